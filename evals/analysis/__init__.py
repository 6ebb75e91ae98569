"""What the mistakes of several models say: statistics, words and tables, from run files alone."""
