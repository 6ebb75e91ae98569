"""What answers requests: one file for each group of paths."""
