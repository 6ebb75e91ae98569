"""Solved examples are chosen and placed as in lm-evaluation-harness (test_prompts compares with its hashes)."""

from __future__ import annotations

import random

from evals.harness.fewshot import build_context, draw_examples, exclude_question


def test_one_generator_draws_the_examples_of_all_questions():
    pool = [f"example {number}" for number in range(50)]
    generator = random.Random(1234)
    expected = [generator.sample(pool, 5) for _ in range(20)]
    assert [[pool[index] for index in indices] for indices in draw_examples(20, 50, 5)] == expected


def test_a_question_is_never_its_own_example():
    for question, indices in enumerate(draw_examples(40, 40, 4)):
        kept = exclude_question(indices, question, 3)
        assert question not in kept
        assert len(kept) == 3


def test_examples_as_text_and_as_turns():
    examples = [("Q1", "A1"), ("Q2", "A2")]
    assert build_context(examples, "Q3", description="Now.\n\n") == "Now.\n\nQ1 A1\n\nQ2 A2\n\nQ3"

    def render(messages):
        return " | ".join(f"{message['role']}: {message['content']}" for message in messages)

    turns = "user: Q1 | assistant: A1 | user: Q2 | assistant: A2 | user: Q3"
    assert build_context(examples, "Q3", render) == turns
    assert build_context(examples, "Q3", render, description="Now.") == f"system: Now. | {turns}"
    assert build_context(examples, "Q3", render, single_turn=True) == "user: Q1 A1\n\nQ2 A2\n\nQ3"
