"""The embedded demo model's name and place, known without torch. What it is made from is in engine/demo."""

from __future__ import annotations

from pathlib import Path

ABOUT = "demo: a tiny embedded model that knows only its own little textbook"
EXAMPLE_MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
NAME = "demo"  # what LLM.load and --model call it, and --data its questions
FOLDER = Path(__file__).parents[1] / "demo" / "model"
QUESTIONS = Path(__file__).parents[1] / "demo" / "mmlu"
