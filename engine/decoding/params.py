"""SamplingParams: how to choose tokens and when to stop. Loads without torch, so that clients can use it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.runtime.errors import BareloopError, UsageError, quote

if TYPE_CHECKING:
    from engine.decoding.grammar import Grammar

LARGEST = 1e6  # temperature, penalty or bias: far beyond what makes a difference, far below float32's limit
MAX_STOPS = 64  # stop strings, each searched after every token


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens and when to stop. The default is greedy: temperature 0."""

    temperature: float = 0.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # for tokens of the prompt and the reply (Keskar et al. 2019)
    presence_penalty: float = 0.0  # once for each token that occurs in the reply
    frequency_penalty: float = 0.0  # for each occurrence of a token in the reply
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None  # None: a new random seed per reply
    logprobs: int = 0  # number of alternatives to report with each token; 0: no log-probabilities
    max_new_tokens: int = 256
    stop: Sequence[str] = ()  # strings that end the reply; they are not part of it
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    grammar: Grammar | None = None  # what the reply must match

    def __post_init__(self) -> None:
        ranges = (
            ("temperature", 0.0, LARGEST),
            ("min_p", 0.0, 1.0),
            ("repetition_penalty", 1 / LARGEST, LARGEST),
            ("presence_penalty", -LARGEST, LARGEST),
            ("frequency_penalty", -LARGEST, LARGEST),
        )
        for name, low, high in ranges:
            value = getattr(self, name)
            if not _is_number(value) or not low <= value <= high:
                raise UsageError(f"{name} = {quote(value)}: use a number from {low:g} to {high:g}")
        for name, least in (("top_k", 0), ("logprobs", 0), ("max_new_tokens", 1)):
            value = getattr(self, name)
            if not _is_integer(value) or value < least:
                raise UsageError(f"{name} = {quote(value)}: use a whole number, {least} or more")
        if not _is_number(self.top_p) or not 0 < self.top_p <= 1:
            raise UsageError(f"top_p = {quote(self.top_p)}: use more than 0, up to 1")
        if self.seed is not None and not _is_integer(self.seed):
            raise UsageError(f"seed = {quote(self.seed)}: use a whole number")
        if isinstance(self.stop, str):
            raise UsageError("stop is a list of strings, not one string")
        for name, kind in (("stop", Sequence), ("stop_token_ids", Collection), ("logit_bias", Mapping)):
            value = getattr(self, name)
            if not isinstance(value, kind) and (value is not None or name != "logit_bias"):
                raise UsageError(f"{name} = {quote(value)}: use a {'mapping' if kind is Mapping else 'list'}")
        if not all(isinstance(text, str) for text in self.stop):
            raise UsageError(f"stop = {quote(self.stop)}: use strings")
        if len(self.stop) > MAX_STOPS or not all(self.stop):
            raise UsageError(f"stop has {len(self.stop)} strings: use up to {MAX_STOPS}, none of them empty")
        for token in (*self.stop_token_ids, *(self.logit_bias or ())):
            if not _is_integer(token):
                raise UsageError(f"token ids are whole numbers, and stop_token_ids or logit_bias has {quote(token)}")
        for token, bias in (self.logit_bias or {}).items():
            if not _is_number(bias) or (abs(bias) > LARGEST and bias != -math.inf):
                span = f"from {-LARGEST:g} to {LARGEST:g}, or -inf to exclude the token"
                raise UsageError(f"logit_bias of token {token} is {quote(bias)}: use a number {span}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def defaults(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling parameters of a checkpoint's generation_config.json, as fields of `SamplingParams`.

    Raises `BareloopError` for a value that is not a number.
    """
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    values = {name: generation_config[name] for name in names if generation_config.get(name) is not None}
    for name, value in values.items():
        kind, types = ("an integer", int) if name == "top_k" else ("a number", int | float)
        if isinstance(value, bool) or not isinstance(value, types):
            raise BareloopError(f"generation_config.json: {name} = {quote(value)} is not {kind}; correct or remove it")
    if generation_config.get("do_sample") is not True:
        return {name: value for name, value in values.items() if name == "repetition_penalty"}
    return {"temperature": 1.0, "top_k": 50} | values  # transformers' defaults with do_sample
