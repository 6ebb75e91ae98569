"""The demo's own MMLU: questions in wordings that the textbook does not use, a quarter on what it never teaches."""

from __future__ import annotations

from random import Random
from typing import Any

from engine.demo.facts import SUBJECTS, Relation
from engine.demo.pages import sentence
from engine.demo.textbook import BY_SUBJECT, shuffled

TAUGHT, UNTAUGHT = 15, 5  # test questions of a subject
DEV = 5  # on further taught facts; the rest is for validation
TEST_WORDING, OTHER_WORDING = 0, 1

Fact = tuple[Relation, str]  # a relation and a key


def rows(seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """The rows of each split in MMLU's columns. Every fact is in one split only."""
    splits: dict[str, list[dict[str, Any]]] = {"dev": [], "validation": [], "test": []}
    for subject in SUBJECTS:
        random = Random(f"{seed} {subject}")
        taught = [(relation, key) for relation in BY_SUBJECT[subject] for key in relation.taught]
        untaught = [(relation, key) for relation in BY_SUBJECT[subject] for key in relation.untaught]
        random.shuffle(taught)
        random.shuffle(untaught)
        test = taught[:TAUGHT] + untaught[:UNTAUGHT]
        random.shuffle(test)
        dev, validation = taught[TAUGHT : TAUGHT + DEV], taught[TAUGHT + DEV :] + untaught[UNTAUGHT:]
        splits["test"] += [_row(random, fact, TEST_WORDING) for fact in test]
        splits["dev"] += [_row(random, fact, OTHER_WORDING) for fact in dev]
        splits["validation"] += [_row(random, fact, OTHER_WORDING) for fact in validation]
    return splits


def is_taught(row: dict[str, Any]) -> bool:
    """Whether the textbook teaches what a row asks for."""
    return any(set(row["choices"]) <= set(relation.taught.values()) for relation in BY_SUBJECT[row["subject"]])


def _row(random: Random, fact: Fact, wording: int) -> dict[str, Any]:
    """Choices are all of what is taught, or all of what is not: nothing but knowledge tells the right one."""
    relation, key = fact
    values = relation.taught if key in relation.taught else relation.untaught
    choices, answer = shuffled(random, values[key], list(values.values()))
    question = sentence(relation.unseen[wording], k=key)
    return {"question": question, "subject": relation.subject, "choices": choices, "answer": answer}
