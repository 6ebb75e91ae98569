"""Prompts against the hashes of every request that lm-evaluation-harness made."""

from __future__ import annotations

import hashlib
import json

import pytest

from evals.data import MMLU
from evals.prompts import Question, encode_pair, mmlu_context, mmlu_requests

SKY = Question("high_school_physics", 0, " Why is the sky blue?\n", ("Rayleigh", " Mie ", "None", "1"), 0)


@pytest.mark.parametrize("shots", [0, 5])
def test_every_request_has_the_harness_hash(shared, shots):
    golden = json.loads((shared / "data" / "lm_eval_golden" / "golden.json").read_text())["runs"][f"mmlu_{shots}shot"]
    data = MMLU(str(shared / "data" / "mmlu"))
    assert len(golden["request_sha256"]) == 10
    for task, expected in golden["request_sha256"].items():
        subject = task.removeprefix("mmlu_")
        digest = hashlib.sha256()
        for question in data.questions(subject, "test"):
            for context, continuation in mmlu_requests(question, data.questions(subject, "dev")[:shots]):
                digest.update(f"{context}\x00{continuation}\x01".encode())
        assert digest.hexdigest() == expected


def test_only_the_question_is_stripped():
    assert mmlu_context(SKY, []) == (
        "The following are multiple choice questions (with answers) about high school physics.\n\n"
        "Why is the sky blue?\nA. Rayleigh\nB.  Mie \nC. None\nD. 1\nAnswer:"
    )
    assert "Answer: A\n\nWhy" in mmlu_context(SKY, [SKY])


def test_white_space_at_the_end_of_a_context_moves_into_the_continuation():
    def encode(text: str) -> list[int]:
        return [ord(character) for character in text]

    assert encode_pair(encode, "ab", " c") == ([97, 98], [32, 99])
    assert encode_pair(lambda text: [len(text)] if text == "ab" else [9, *encode(text)], "ab", "c") == (
        [2],
        [97, 98, 99],
    )
    assert encode_pair(encode, "ab\n\n", "c") == ([97, 98], [10, 10, 99])
