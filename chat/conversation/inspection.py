"""The tokens of a reply with their probabilities, and what it would have been with another token. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from chat.context import Message
from chat.conversation.streaming import PARTIAL, text_before
from chat.models.interface import ChatModel, TokenProbability
from engine.runtime.errors import UsageError, quote


def score_reply(model: ChatModel, messages: Sequence[Message]) -> list[TokenProbability]:
    """The tokens of the last message, a reply, after the others, with their probabilities.

    Raises `BareloopError` if the server does not tell them.
    """
    tokens = model.score(messages)
    prompt = [token for token, _ in model.tokens(messages[:-1])]
    start = 0
    while start < min(len(prompt), len(tokens)) and tokens[start].id == prompt[start]:
        start += 1
    reply = tokens[start:]
    excess = sum(len(token.piece) for token in reply) - len(messages[-1]["content"])  # a space before the reply
    for index, token in enumerate(reply):
        if excess <= 0:
            break
        reply[index] = replace(token, piece=token.piece[excess:])
        excess -= len(token.piece)
    return reply


def with_times(scored: list[TokenProbability], recorded: Sequence[TokenProbability]) -> list[TokenProbability]:
    """Scored tokens with the times at which they were generated, as long as they are the same."""
    for index, (token, other) in enumerate(zip(scored, recorded, strict=False)):
        if token.id is None or token.id != other.id:
            break
        scored[index] = replace(token, seconds=other.seconds)
    return scored


def alternative(
    model: ChatModel, reply: Mapping[str, Any], tokens: Sequence[TokenProbability], index: int, choice: int
) -> tuple[str, TokenProbability]:
    """A reply's text before a token, and the chosen alternative as the token in its place; indices count from 0.

    The `piece` of an end token is empty. Raises `UsageError` where a reply cannot go on; it counts from 1.
    """
    if not 0 <= index < len(tokens):
        raise UsageError(f"token {index + 1}: this reply has {len(tokens):,}")
    token, here = tokens[index], f"token {index + 1}"
    if not token.alternatives:
        raise UsageError(f"{here} has no alternatives; /set logprobs 5 records those of the next reply")
    if not 0 <= choice < len(token.alternatives):
        raise UsageError(f"choice {choice + 1}: {here} has {len(token.alternatives)} alternatives")
    before = text_before(reply["content"], tokens, index)
    if reply.get("reasoning") and not before and not token.piece:
        raise UsageError(f"{here} is inside the reasoning; a reply goes on from its answer only")
    if index and _is_inside_character(tokens[index - 1]):
        raise UsageError(f"{here} is inside a character; choose the token before")
    text, logprob = token.alternatives[choice]
    ends = model.ends(text)
    if not ends and (not text or PARTIAL in text):
        raise UsageError(f"choice {choice + 1} is only a part of a character; choose another")
    if not ends and model.is_control(text):
        raise UsageError(f"choice {choice + 1}, {quote(text)}, is a control token, after which there is no reply")
    return before, TokenProbability(text, logprob, token.alternatives, "" if ends else text)


def _is_inside_character(token: TokenProbability) -> bool:
    """Whether a character has begun in this token and not ended: it cannot be in its piece yet."""
    whole = token.text.strip(PARTIAL)
    return token.text.endswith(PARTIAL) and (token.piece.endswith(whole) if whole else not token.piece)
