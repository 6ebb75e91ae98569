"""The embedded model: a small Llama of our own, its textbook, its questions and its trainer.

It knows one little textbook and nothing else. It is here so that every program works at once, without a network:
it demonstrates the machine, not intelligence.
"""

from __future__ import annotations

from pathlib import Path

ABOUT = "demo: a tiny embedded model that knows only its own little textbook"
A_REAL_ONE = "Qwen/Qwen2.5-0.5B-Instruct"
NAME = "demo"  # what LLM.load and --model call it, and --data its questions
FOLDER = Path(__file__).parent / "model"
QUESTIONS = Path(__file__).parent / "mmlu"
