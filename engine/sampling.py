"""How the next token is chosen from its logits. Greedy so far."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from engine.errors import UsageError


@dataclass(frozen=True)
class SamplingParams:
    """When to stop: after `max_new_tokens`, or at an end-of-sequence token or one of `stop_token_ids`."""

    max_new_tokens: int = 256
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens = {self.max_new_tokens}: use 1 or more")


def choose(logits: Tensor) -> Tensor:
    """logits [R, V] -> the next token of every row [R]; the lowest id wins a tie."""
    return logits.argmax(dim=-1)
