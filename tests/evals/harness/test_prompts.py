"""Prompts: the hashes of every request of lm-evaluation-harness, white space, system messages."""

from __future__ import annotations

import hashlib

import pytest

from engine.runtime.errors import BareloopError, TemplateError
from evals.data.question import MMLUQuestion
from evals.harness.fewshot import render_chat
from evals.harness.prompts import encode_pairs
from evals.mmlu import question_context
from tests.evals import lm_harness

SKY = MMLUQuestion("high_school_physics", 0, " Why is the sky blue?\n", ("Rayleigh", " Mie ", "None", "1"), 0)


@pytest.mark.parametrize("run", lm_harness.RUNS)
def test_every_request_has_the_hash_of_the_harness(shared, run):
    expected = lm_harness.golden(shared, run)["request_sha256"]
    task = lm_harness.task(shared, run)
    assert set(expected) == {task.full_name(subject) for subject in task.questions}
    for subject, rows in task.questions.items():
        digest = hashlib.sha256()
        for row in rows:
            item = task.make_item(row, lm_harness.chatml if "chatml" in run else None)
            for context, continuation in item.requests:
                digest.update(f"{context}\x00{continuation}\x01".encode())
        assert digest.hexdigest() == expected[task.full_name(subject)]


def test_only_the_question_is_stripped():
    assert question_context(SKY, []) == (
        "The following are multiple choice questions (with answers) about high school physics.\n\n"
        "Why is the sky blue?\nA. Rayleigh\nB.  Mie \nC. None\nD. 1\nAnswer:"
    )
    assert "Answer: A\n\nWhy" in question_context(SKY, [SKY])


def test_a_template_that_rejects_a_system_role_is_rendered_without_it():
    def render(messages):
        if messages[0]["role"] == "system":
            raise TemplateError("no system role here")
        return " ".join(message["content"] for message in messages)

    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert render_chat(render, turns) == "u"
    with pytest.raises(BareloopError, match="no system role"):
        render_chat(lambda messages: render(turns), turns[1:])

    def render_too_long(messages):
        raise BareloopError("did not finish")

    with pytest.raises(BareloopError, match="did not finish"):  # not an error about the messages
        render_chat(render_too_long, turns)


def test_white_space_at_the_end_of_a_context_moves_into_the_continuation():
    def by_character(texts):
        return [[ord(character) for character in text] for text in texts]

    def merging(texts):
        return [[len(text)] if text == "ab" else [9, *map(ord, text)] for text in texts]

    assert encode_pairs(by_character, [("ab", " c"), ("ab", " d")]) == [([97, 98], [32, 99]), ([97, 98], [32, 100])]
    assert encode_pairs(merging, [("ab", "c")]) == [([2], [97, 98, 99])]
    assert encode_pairs(by_character, [("ab\n\n", "c")]) == [([97, 98], [10, 10, 99])]
