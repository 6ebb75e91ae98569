"""Statistics of run files and of the mistakes of several models, as numbers, sentences and text tables."""
