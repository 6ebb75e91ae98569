"""Prompts against the hashes of every request that lm-evaluation-harness made."""

from __future__ import annotations

import hashlib

import pytest

from engine.runtime.errors import BareloopError, TemplateError
from evals.data.question import Question
from evals.harness.fewshot import render_chat
from evals.harness.prompts import encode_pairs
from evals.mmlu import context
from tests.evals import lm_harness

SKY = Question("high_school_physics", 0, " Why is the sky blue?\n", ("Rayleigh", " Mie ", "None", "1"), 0)


@pytest.mark.parametrize("run", lm_harness.RUNS)
def test_every_request_has_the_harness_hash(shared, run):
    expected = lm_harness.run(shared, run)["request_sha256"]
    task = lm_harness.task(shared, run)
    assert set(expected) == {task.full_name(subject) for subject in task.questions}
    for subject, rows in task.questions.items():
        digest = hashlib.sha256()
        for row in rows:
            for asked, continuation in task.item(row, lm_harness.chatml if "chatml" in run else None).requests:
                digest.update(f"{asked}\x00{continuation}\x01".encode())
        assert digest.hexdigest() == expected[task.full_name(subject)]


def test_only_the_question_is_stripped():
    assert context(SKY, []) == (
        "The following are multiple choice questions (with answers) about high school physics.\n\n"
        "Why is the sky blue?\nA. Rayleigh\nB.  Mie \nC. None\nD. 1\nAnswer:"
    )
    assert "Answer: A\n\nWhy" in context(SKY, [SKY])


def test_a_template_without_a_system_role_gets_none():
    def refuses(messages):
        if messages[0]["role"] == "system":
            raise TemplateError("no system role here")
        return " ".join(message["content"] for message in messages)

    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert render_chat(refuses, turns) == "u"
    with pytest.raises(BareloopError, match="no system role"):
        render_chat(lambda messages: refuses(turns), turns[1:])

    def hangs(messages):
        raise BareloopError("did not finish")

    with pytest.raises(BareloopError, match="did not finish"):  # no reason to ask something else
        render_chat(hangs, turns)


def test_white_space_at_the_end_of_a_context_moves_into_the_continuation():
    def letters(texts):
        return [[ord(character) for character in text] for text in texts]

    def merging(texts):
        return [[len(text)] if text == "ab" else [9, *map(ord, text)] for text in texts]

    assert encode_pairs(letters, [("ab", " c"), ("ab", " d")]) == [([97, 98], [32, 99]), ([97, 98], [32, 100])]
    assert encode_pairs(merging, [("ab", "c")]) == [([2], [97, 98, 99])]
    assert encode_pairs(letters, [("ab\n\n", "c")]) == [([97, 98], [10, 10, 99])]
