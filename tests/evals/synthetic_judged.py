"""Synthetic answers and judgments of invented models in FastChat's layout, reproducible from a seed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any

CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
WITH_REFERENCE = ("reasoning", "math", "coding")
REFERENCE = "[The Start of Reference Answer]\n{reference}\n[The End of Reference Answer]\n\n"


def write_judged(
    folder: Path,
    models: Mapping[str, float],
    *,
    judges: Sequence[str] = ("judge",),
    categories: Sequence[str] = CATEGORIES,
    questions: int = 2,
    passes: int = 1,
    unscored: float = 0.0,
    noise: float = 1.0,
    pairs: bool = False,
    swaps: float = 0.1,
    saved: bool = True,
    answers: bool = True,
    seed: int = 0,
) -> Path:
    """Write answers, judgments and questions to a folder and return it.

    `models`: mean score by model. `questions`: number in each category. `unscored`: share of judgments without a score.
    `noise`: standard deviation of what differs between two passes. `pairs`: also compare every two models; `swaps`:
    share of verdicts for the answer shown first. `saved`: write the question file; `answers`: write the answers.
    """
    numbers = {81 + index: category for index, category in enumerate(c for c in categories for _ in range(questions))}
    asked = [_question(number, category) for number, category in numbers.items()]
    if saved:
        write_lines(folder / "question.jsonl", asked)
    for model in models if answers else ():
        write_lines(folder / "model_answer" / f"{model}.jsonl", [_answer(row["question_id"], model) for row in asked])
    for judge in judges:
        for number in range(1, passes + 1):
            of_pass = Random(f"{seed} {judge} {number}")
            end = f".pass{number}.jsonl" if number > 1 else ".jsonl"
            rows = []
            for model, quality in models.items():
                for question in asked:
                    difficulty = Random(f"{seed} {model} {question['question_id']}").gauss(0, 1.5)
                    for turn in (1, 2):
                        value = quality + difficulty - 0.5 * (turn == 2) + of_pass.gauss(0, noise)
                        score = -1 if of_pass.random() < unscored else min(10, max(1, round(value)))
                        rows.append(_judgment(question, model, judge, turn, score))
            write_lines(folder / "model_judgment" / f"{judge}_single{end}", rows)
            if pairs:
                compared = [
                    _comparison(question, pair, judge, turn, _winners(of_pass, models, pair, swaps))
                    for pair in combinations(models, 2)
                    for question in asked
                    for turn in (1, 2)
                ]
                write_lines(folder / "model_judgment" / f"{judge}_pair{end}", compared)
    return folder


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _question(number: int, category: str) -> dict[str, Any]:
    row = {"question_id": number, "category": category, "turns": [f"Question {number}?", f"And more of {number}?"]}
    return row | ({"reference": [f"own {number}.1", f"own {number}.2"]} if category in WITH_REFERENCE else {})


def _answer(number: int, model: str) -> dict[str, Any]:
    turns = [f"{model} answers {number}, turn {turn}." for turn in (1, 2)]
    choices = [{"index": 0, "turns": turns}]
    return {"question_id": number, "answer_id": f"a{number}", "model_id": model, "choices": choices, "tstamp": 1.0}


def _prompt(question: Mapping[str, Any], text: str, turn: int) -> str:
    number = question["question_id"]
    has_reference = question["category"] in WITH_REFERENCE
    reference = REFERENCE.format(reference=f"judge's {number}.{turn}") if has_reference else ""
    return f"[Question]\n{question['turns'][turn - 1]}\n\n{reference}[The Start of Assistant's Answer]\n{text}"


def _judgment(question: Mapping[str, Any], model: str, judge: str, turn: int, score: float) -> dict[str, Any]:
    text = "No number." if score == -1 else f"It is good. Rating: [[{score}]]"
    number = question["question_id"]
    prompt = _prompt(question, f"{model} answers {number}, turn {turn}.", turn)
    names = {"question_id": number, "model": model, "judge": [judge, "single-v1"]}
    return names | {"user_prompt": prompt, "judgment": text, "score": score, "turn": turn, "tstamp": 2.0}


def _winners(random: Random, models: Mapping[str, float], pair: tuple[str, str], swaps: float) -> tuple[str, str]:
    if random.random() < 0.05:
        return ("error", "tie") if random.random() < 0.5 else ("model_1", "error")
    if random.random() < swaps:
        return "model_1", "model_2"
    gap = models[pair[0]] - models[pair[1]] + random.gauss(0, 2)
    winner = "tie" if abs(gap) < 0.5 else "model_1" if gap > 0 else "model_2"
    return winner, winner


def _comparison(
    question: Mapping[str, Any], pair: tuple[str, str], judge: str, turn: int, winners: tuple[str, str]
) -> dict[str, Any]:
    games = {}
    for game, (winner, models) in enumerate(zip(winners, (pair, pair[::-1]), strict=True), 1):
        games[f"g{game}_user_prompt"] = _prompt(question, " and ".join(models), turn)
        games[f"g{game}_judgment"] = f"Game {game}: {winner}"
    return {
        "question_id": question["question_id"],
        "model_1": pair[0],
        "model_2": pair[1],
        "g1_winner": winners[0],
        "g2_winner": winners[1],
        "judge": [judge, "pair-v2"],
        **games,
        "turn": turn,
        "tstamp": 3.0,
    }
