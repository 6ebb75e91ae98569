"""Solved examples: drawn and placed as the harness does (its hashes are in test_prompts)."""

from __future__ import annotations

import random

from evals.harness.fewshot import context, draws, others


def test_every_question_draws_afresh_from_one_generator():
    pool = [f"example {number}" for number in range(50)]
    generator = random.Random(1234)
    expected = [generator.sample(pool, 5) for _ in range(20)]
    assert [[pool[place] for place in places] for places in draws(20, 50, 5)] == expected


def test_a_question_is_never_its_own_example():
    drawn = draws(40, 40, 4)
    for own, places in enumerate(drawn):
        kept = others(places, own, 3)
        assert own not in kept
        assert len(kept) == 3


def test_examples_as_text_and_as_turns():
    examples = [("Q1", "A1"), ("Q2", "A2")]
    assert context(examples, "Q3", description="Now.\n\n") == "Now.\n\nQ1 A1\n\nQ2 A2\n\nQ3"

    def render(messages):
        return " | ".join(f"{message['role']}: {message['content']}" for message in messages)

    turns = "user: Q1 | assistant: A1 | user: Q2 | assistant: A2 | user: Q3"
    assert context(examples, "Q3", render) == turns
    assert context(examples, "Q3", render, description="Now.") == f"system: Now. | {turns}"
    assert context(examples, "Q3", render, single_turn=True) == "user: Q1 A1\n\nQ2 A2\n\nQ3"
