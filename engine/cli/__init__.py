"""What the programs share: flags, progress, one-line errors; the completion and inspection programs."""
