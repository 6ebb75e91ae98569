"""A small set of questions in the files of FastChat's llm_judge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.evals.synthetic_judged import write_lines

QUESTIONS = (  # id, category, turns, references
    (81, "writing", ("Hello! My name is Ada.", "What is my name?"), ()),
    (101, "reasoning", ("What is the capital of France?", "And what is the capital of Italy?"), ("Paris.", "Rome.")),
    (111, "math", ("What is the capital of Norway?", "Who are you?"), ("Oslo.", "I am a model.")),
    (131, "stem", ("What is the chemical symbol of lead?", "Thank you!"), ()),
)
SINGLE = "[[rating]]", "[Question]\n{question}\n[Answer]\n{answer}", "{question_1}|{answer_1}|{question_2}|{answer_2}"
PAIR = (
    "[[A]]",
    "{question}|{answer_a}|{answer_b}",
    "{question_1}|{question_2}|{answer_a_1}|{answer_b_1}|{answer_a_2}|{answer_b_2}",
)
PROMPTS = {"single-v1": SINGLE, "single-math-v1": SINGLE, "pair-v2": PAIR, "pair-math-v1": PAIR}


def question_rows(questions: Sequence[Any] = QUESTIONS) -> list[dict[str, Any]]:
    return [
        {"question_id": number, "category": category, "turns": [*turns]} for number, category, turns, _ in questions
    ]


def reference_rows(questions: Sequence[Any] = QUESTIONS) -> list[dict[str, Any]]:
    return [
        {"question_id": number, "model_id": "gpt-4", "choices": [{"index": 0, "turns": [*references]}]}
        for number, _, _, references in questions
        if references
    ]


def prompt_rows() -> list[dict[str, Any]]:
    return [
        {
            "name": f"{name}{'-multi-turn' * (turn == 1)}",
            "type": "pairwise" if name.startswith("pair") else "single",
            "system_prompt": "Judge.",
            "prompt_template": templates[turn] + ("\n[Reference] {ref_answer_1}" if "math" in name else ""),
            "description": "",
            "category": "general",
            "output_format": output_format,
        }
        for name, (output_format, *templates) in PROMPTS.items()
        for turn in (0, 1)
    ]


def write_question_set(folder: Path, questions: Sequence[Any] = QUESTIONS) -> Path:
    """Write a flat folder with all three files."""
    write_lines(folder / "question.jsonl", question_rows(questions))
    write_lines(folder / "reference_answer/gpt-4.jsonl", reference_rows(questions))
    write_lines(folder / "judge_prompts.jsonl", prompt_rows())
    return folder
