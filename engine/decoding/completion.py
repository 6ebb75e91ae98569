"""Completion: what a request to the scheduler has generated, once it has ended."""

from __future__ import annotations

from dataclasses import dataclass

from engine.decoding.scheduling.request import Request, Usage


@dataclass(frozen=True)
class Completion:
    """The continuation of one prompt. `text` is None for a model without a tokenizer."""

    text: str | None
    token_ids: list[int]  # without the prompt, with the token that ended it
    logprobs: list[float] | None  # of each token, if requested
    finish_reason: str  # "stop" (an EOS token, stop token or stop string, a complete grammar) or "length"
    usage: Usage


def completion_of(request: Request, has_text: bool) -> Completion:
    """Wait for the end of a request. Raises its error. `has_text`: the model has a tokenizer."""
    events = list(request)
    return Completion(
        text="".join(event.text for event in events) if has_text else None,
        token_ids=[event.token_id for event in events],
        logprobs=[e.logprob for e in events if e.logprob is not None] if request.params.logprobs else None,
        finish_reason=str(request.finish_reason),
        usage=request.usage,
    )
