"""Evaluation of a task: prompts, scoring, resumable runs, and what the programs share."""
