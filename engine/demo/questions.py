"""The demo's own MMLU: questions in wordings that the textbook does not use, a quarter of them on untaught facts."""

from __future__ import annotations

from random import Random
from typing import Any

from engine.demo.facts import SUBJECTS, Relation
from engine.demo.pages import fill_in
from engine.demo.textbook import BY_SUBJECT, shuffle_choices

TAUGHT, UNTAUGHT = 15, 5  # test questions per subject
DEV = 5  # questions per subject, on other taught facts; the remaining facts are for validation
TEST_TEMPLATE, OTHER_TEMPLATE = 0, 1  # indices in `Relation.unseen`

Fact = tuple[Relation, str]  # a relation and a key


def rows(seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each split, with MMLU's columns. Every fact is in one split only."""
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
        splits["test"] += [_row(random, fact, TEST_TEMPLATE) for fact in test]
        splits["dev"] += [_row(random, fact, OTHER_TEMPLATE) for fact in dev]
        splits["validation"] += [_row(random, fact, OTHER_TEMPLATE) for fact in validation]
    return splits


def is_taught(row: dict[str, Any]) -> bool:
    """Whether the textbook teaches the answer to a row's question."""
    return any(set(row["choices"]) <= set(relation.taught.values()) for relation in BY_SUBJECT[row["subject"]])


def _row(random: Random, fact: Fact, template: int) -> dict[str, Any]:
    """One row. The choices are either all taught or all untaught, so that only knowledge of the fact decides."""
    relation, key = fact
    values = relation.taught if key in relation.taught else relation.untaught
    choices, answer = shuffle_choices(random, values[key], list(values.values()))
    question = fill_in(relation.unseen[template], k=key)
    return {"question": question, "subject": relation.subject, "choices": choices, "answer": answer}
