"""Answers of /v1/completions -> scores and texts. What a server should not have answered is a `RemoteError`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.remote.client import RemoteModel
from engine.remote.errors import RemoteError
from engine.runtime.errors import quote

NO_ECHO = (
    "choices need a server whose /v1/completions has `echo` with `logprobs`, such as python -m engine.serve or vLLM"
)


@dataclass(frozen=True)
class RemoteScore:
    """The score of a choice: see `engine.decoding.scoring.Score`."""

    loglikelihood: float
    is_greedy: bool


def choices_of(client: RemoteModel, answer: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """The choices of an answer, in the order of the prompts. Raises `RemoteError` if they are not one for each."""
    choices = answer.get("choices")
    by_index = {
        choice.get("index", 0 if count == 1 else None): choice
        for choice in (choices if isinstance(choices, list) else ())
        if isinstance(choice, dict)
    }
    if not isinstance(choices, list) or len(choices) != count or by_index.keys() != set(range(count)):
        number = len(choices) if isinstance(choices, list) else 0
        raise RemoteError(f"{client.url} returned {number} choices with other indices than the {count} prompts have")
    return [by_index[index] for index in range(count)]


def read_score(client: RemoteModel, choice: Mapping[str, Any], tokens: int, length: int) -> RemoteScore:
    """Read the score of the last `length` of a prompt's `tokens` from an answer with one token more.

    Raises `RemoteError` if the answer does not have it.
    """
    logprobs = choice.get("logprobs")
    fields = logprobs if isinstance(logprobs, dict) else {}
    chosen, tops = fields.get("token_logprobs"), fields.get("top_logprobs")
    if not isinstance(chosen, list) or not isinstance(tops, list):
        raise RemoteError(f"{client.url} returned no log-probabilities; {NO_ECHO}")
    if len(chosen) != tokens + 1 or len(tops) != tokens + 1:
        raise RemoteError(
            f"{client.url} returned {len(chosen)} log-probabilities and {len(tops)} of the most likely tokens for a "
            f"prompt of {tokens} tokens and one more; {NO_ECHO}"
        )
    loglikelihood, is_greedy = 0.0, True
    for logprob, top in zip(chosen[-1 - length : -1], tops[-1 - length : -1], strict=True):
        values: list[Any] = [logprob, *top.values()] if isinstance(top, dict) and top else [None]
        if not all(type(value) in (float, int) and math.isfinite(value) for value in values):
            raise RemoteError(f"{client.url} returned log-probabilities that are not numbers: {quote([logprob, top])}")
        loglikelihood += logprob
        is_greedy &= logprob == max(values[1:])
    return RemoteScore(float(loglikelihood), is_greedy)


def computed_tokens(answer: Mapping[str, Any]) -> dict[str, float]:
    """Return the number of prompt tokens that a server has computed, if it tells how many were in its cache."""
    usage = answer.get("usage")
    details = usage.get("prompt_tokens_details") if isinstance(usage, dict) else None
    cached = count_of(details, "cached_tokens")
    prompt = count_of(usage, "prompt_tokens")
    return {"computed": max(prompt - cached, 0)} if prompt is not None and cached is not None else {}


def count_of(usage: Any, name: str) -> int | None:
    """Return a number of tokens in a server's account, or None."""
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if type(count) is int and count >= 0 else None
