"""Dialogues with questions about what was said before: of a script, or the built-in ones. Loads without torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.runtime.errors import BareloopError


@dataclass(frozen=True)
class Line:
    """One message. `expect`: text that a correct reply contains, said `distance` turns before."""

    say: str
    expect: str = ""
    distance: int = 0


def read_script(path: Path) -> list[list[Line]]:
    """Read the user's dialogues. Raises `BareloopError` for a file of another form."""
    from engine.runtime.files import parse_json

    content = parse_json(path)
    if not isinstance(content, list) or not content or not all(isinstance(dialogue, list) for dialogue in content):
        raise BareloopError(f"{path} is not a list of dialogues, each a list of messages")
    return [lines(dialogue, f"{path}, dialogue {number}") for number, dialogue in enumerate(content, 1)]


def lines(dialogue: Sequence[Any], where: str) -> list[Line]:
    """Messages with their distances, counted from the last earlier message that contains the expected text."""
    result: list[Line] = []
    for number, message in enumerate(dialogue, 1):
        entry = {"say": message} if isinstance(message, str) else message
        fields = {"say": str, "expect": str}
        if not isinstance(entry, dict) or not entry.get("say") or entry.keys() - fields:
            raise BareloopError(f'{where}, message {number} is neither a string nor {{"say": …, "expect": …}}')
        if not all(isinstance(value, str) for value in entry.values()):
            raise BareloopError(f"{where}, message {number}: say and expect must be strings")
        expect = entry.get("expect", "")
        sources = [index for index, line in enumerate(result) if expect and contains(line.say, expect)]
        result.append(Line(entry["say"], expect, len(result) - sources[-1] if sources else 0))
    return result


def contains(text: str, expected: str) -> bool:
    """Whether a text contains these whole words, in any case."""
    return re.search(rf"(?<!\w){re.escape(expected.lower())}(?!\w)", text.lower()) is not None


DISTANCES = (1, 2, 4, 12, 32)
FACTS = (  # a statement, the question about it later, and the values
    ("My name is {}.", "What is my name?", ("Zorvan", "Mirela", "Tobin", "Kusari", "Anna")),
    ("I live in {}.", "Where do I live?", ("Rome", "Oslo", "Boston", "Lisbon", "Cairo")),
    ("My dog is called {}.", "What is my dog called?", ("Rex", "Bonzo", "Luna", "Pip", "Nero")),
    (
        "My favourite colour is {}.",
        "What is my favourite colour?",
        ("green", "red", "blue", "yellow", "black"),
    ),
    ("My favourite food is {}.", "What is my favourite food?", ("soup", "pizza", "rice", "bread", "cake")),
)
FILLERS = (  # messages between the two
    *("How are you?", "What is the capital of France?", "Thank you!", "Who are you?", "What can you do?"),
    *("What is the capital of Italy?", "I see.", "Are you a human?", "What is the capital of Spain?", "Interesting."),
    *("How big are you?", "What is the capital of Norway?"),
)


def builtin_script() -> list[list[Line]]:
    """Every kind of fact, asked for at every distance, with other messages in between."""
    return [
        lines(
            [
                statement.format(values[index]),
                *(FILLERS[(index + number) % len(FILLERS)] for number in range(distance - 1)),
                {"say": question, "expect": values[index]},
            ],
            "the built-in script",
        )
        for statement, question, values in FACTS
        for index, distance in enumerate(DISTANCES)
    ]
