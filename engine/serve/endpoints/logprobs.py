"""Log-probabilities as OpenAI's API reports them. The strings of the tokens join to the text of the answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.decoding.loop import Event
from engine.decoding.scheduling.request import Request
from engine.text.tokenizer import Tokenizer

LOWEST = -9999.0  # in place of minus infinity, which JSON does not have

Alternatives = Sequence[tuple[int, float]]  # ids with their log-probabilities, the most likely first


def finite(logprob: float) -> float:
    """A log-probability that JSON can hold."""
    return logprob if math.isfinite(logprob) else LOWEST


class TokenStrings:
    """The strings of a text's tokens. Those that have come join to the text, up to a character that is incomplete."""

    def __init__(self, tokenizer: Tokenizer, continues: bool) -> None:
        self.tokenizer = tokenizer
        self.detokenizer = tokenizer.detokenizer(continues)

    def push(self, token: int) -> str:
        """The text that the next token completes; empty for a part of a character, and for control tokens."""
        return self.detokenizer.push(token)

    def alone(self, token: int) -> str:
        """The string of a token that is not in the text."""
        return self.tokenizer.token_bytes(token).decode(errors="replace")


class ChatLogprobs:
    """The `logprobs` of a chat's choice: for each token its string, bytes, log-probability and alternatives."""

    def __init__(self, tokenizer: Tokenizer, top: int, continues: bool) -> None:
        self.strings, self.top = TokenStrings(tokenizer, continues), top

    def entries(self, events: Sequence[Event]) -> list[dict[str, Any]]:
        """The entries of new tokens."""
        return [
            self._entry(event.token_id, self.strings.push(event.token_id), event.logprob or 0.0)
            | {
                "top_logprobs": [
                    self._entry(token, self.strings.alone(token), logprob)
                    for token, logprob in (event.top_logprobs or ())[: self.top]
                ]
            }
            for event in events
        ]

    def _entry(self, token: int, text: str, logprob: float) -> dict[str, Any]:
        raw = self.strings.tokenizer.token_bytes(token)
        return {"token": text, "logprob": finite(logprob), "bytes": list(raw)}


@dataclass
class CompletionLogprobs:
    """The `logprobs` of a completion: lists with an entry for each token, of the prompt too if it is echoed."""

    strings: TokenStrings
    top: int
    offset: int = 0  # length of the text so far
    columns: dict[str, list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Remove the entries, which have been sent."""
        self.columns = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}

    def add(self, token: int, logprob: float | None, alternatives: Alternatives) -> None:
        """Add a token. `logprob` None: the first token of a prompt, which nothing precedes.

        Of alternatives with the same string the most likely one is kept, and the token itself is one of them.
        """
        text = self.strings.push(token)
        top: dict[str, float] | None = None
        if logprob is not None:
            top = {}
            for other, value in [*alternatives[: self.top], (token, logprob)]:
                key = self.strings.alone(other)
                top[key] = max(finite(value), top.get(key, LOWEST))
        entry = (text, None if logprob is None else finite(logprob), top, self.offset)
        for column, part in zip(self.columns.values(), entry, strict=True):
            column.append(part)
        self.offset += len(text)


def prompt_logprobs(request: Request, tokenizer: Tokenizer) -> list[dict[str, Any] | None]:
    """A prompt's log-probabilities in vLLM's form: for each token but the first, its own and the most likely ones."""
    strings = TokenStrings(tokenizer, continues=True)

    def entry(token: int, logprob: float, rank: int | None) -> dict[str, Any]:
        return {"logprob": finite(logprob), "rank": rank, "decoded_token": strings.alone(token)}

    result: list[dict[str, Any] | None] = []
    for token, scored in zip(request.prompt.ids, request.prompt_logprobs or (), strict=True):
        if scored is None:
            result.append(None)
            continue
        logprob, alternatives = scored
        top = {str(other): entry(other, value, rank) for rank, (other, value) in enumerate(alternatives, 1)}
        result.append({str(token): entry(token, logprob, None)} | top)
    return result
