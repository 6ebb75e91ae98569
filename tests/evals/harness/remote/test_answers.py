"""Answers of servers: which tokens' log-probabilities are summed, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from engine.remote.client import RemoteModel
from engine.remote.errors import RemoteError
from evals.harness.remote.answers import choices_of, computed_tokens, read_score

CLIENT = RemoteModel("http://host", "small")
LOGPROBS = [None, -1.0, -0.5, -0.25, -9.0]  # of a prompt of four tokens and one more
TOPS = [None, {"a": -1.0}, {"b": -0.25, "c": -0.5}, {"d": -0.25}, {"e": -0.1}]


def choice(logprobs: Any = LOGPROBS, tops: Any = TOPS) -> dict[str, Any]:
    return {"logprobs": {"token_logprobs": logprobs, "top_logprobs": tops}}


def test_the_last_tokens_before_the_generated_one_count():
    scores = [read_score(CLIENT, choice(), 4, length) for length in (1, 2, 3)]
    assert [(score.loglikelihood, score.is_greedy) for score in scores] == [
        (-0.25, True),
        (-0.75, False),
        (-1.75, False),
    ]


def test_lm_evaluation_harness_reads_the_same():
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    for length in (1, 2, 3):
        ours = read_score(CLIENT, choice(), 4, length)
        theirs = LocalCompletionsAPI.parse_logprobs({"choices": [{"index": 0, **choice()}]}, ctxlens=[4 - length])
        assert theirs == [(ours.loglikelihood, ours.is_greedy)]


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        ({}, "returned no log-probabilities; choices need a server whose /v1/completions has `echo`"),
        ({"logprobs": None}, "returned no log-probabilities"),
        (choice(tops=None), "returned no log-probabilities"),
        (choice(LOGPROBS[-1:], TOPS[-1:]), "returned 1 log-probabilities and 1 of the most likely tokens"),
        (choice(LOGPROBS[:-1], TOPS[:-1]), "returned 4 log-probabilities"),
        (choice(tops=[*TOPS, {}]), "and 6 of the most likely"),
        (choice([None] * 5), "that are not numbers: [None, "),
        (choice([-1.0, -1.0, -1.0, float("nan"), -1.0]), "that are not numbers: [nan, "),
        (choice(tops=[{}] * 5), "that are not numbers: [-0.25, {}]"),
        (choice(tops=[{"a": "b"}] * 5), "that are not numbers"),
        (choice(["-1"] * 5), "that are not numbers"),
    ],
)  # fmt: skip
def test_anything_else_is_one_clear_line(answer, line):
    with pytest.raises(RemoteError) as caught:
        read_score(CLIENT, answer, 4, 1)
    assert str(caught.value).startswith("http://host ")
    assert line in str(caught.value)


def test_choices_are_in_the_order_of_the_prompts():
    shuffled = [{"index": index, "text": str(index)} for index in (2, 0, 1)]
    assert [choice["text"] for choice in choices_of(CLIENT, {"choices": shuffled}, 3)] == ["0", "1", "2"]
    assert choices_of(CLIENT, {"choices": [{"text": "a"}]}, 1) == [{"text": "a"}]


@pytest.mark.parametrize(
    "choices", [None, [], {}, [{"index": 0}], [{"index": 0}] * 2, [{"index": 1}, {"index": 2}], [1, 2]]
)
def test_choices_that_are_not_one_for_each_prompt_are_refused(choices):
    with pytest.raises(RemoteError, match="choices with other indices than the 2 prompts have"):
        choices_of(CLIENT, {"choices": choices}, 2)


def test_tokens_in_the_servers_cache_were_not_computed():
    usage = {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}}
    assert computed_tokens({"usage": usage}) == {"computed": 5}
    for other in (
        None,
        {},
        {"prompt_tokens": 9},
        {**usage, "prompt_tokens_details": None},
        {**usage, "prompt_tokens": "9"},
    ):
        assert computed_tokens({"usage": other}) == {}
