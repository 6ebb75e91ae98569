"""What the benchmark programs share: tasks, prompts, scoring, the resumable run."""
