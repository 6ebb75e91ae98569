"""A conversation as the page reads it: JSON, made in the thread that works with the session."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chat.conversation.events import Notice, Reply
from chat.conversation.session import Session
from chat.conversation.tree import Node
from chat.images import images_of, text_of
from chat.models.interface import TokenProbability
from chat.web.agent import PageAgent
from chat.web.models.interface import Absent
from chat.web.streams import encode
from engine.runtime.errors import BareloopError

Notices = Mapping[int, Sequence[Notice]]  # of turns, by the keys of their nodes


def encode_tokens(tokens: Sequence[TokenProbability]) -> tuple[bytes, ...]:
    """Tokens as the page reads them: [text, piece, probability, alternatives, milliseconds, id]."""
    return tuple(encode(_token(token)) for token in tokens)


def encode_view(agent: PageAgent, notices: Notices, warnings: Sequence[str]) -> bytes:
    """What a snapshot says about a conversation in which nothing runs, as members of a JSON object.

    `warnings`: further ones. May ask a server to count tokens.
    """
    session = agent.session
    tree = session.tree
    turns = [_turn(node, tree.version(index), notices, agent) for index, node in enumerate(tree.path)]
    settings = session.settings
    content = {
        "title": session.title,
        "model": agent.name,
        "settings": {
            name: getattr(settings, name) for name in ("system", "strategy", "history", "window", "reserve", "sampling")
        },
        "start": session.start,
        "summary": session.summary,
        "memory": _memory(session),
        **_window(session, warnings),
        "turns": turns,
    }
    return encode(content)[1:-1]


@dataclass
class Running:
    """The reply that is being generated, as far as the tabs know of it."""

    turn: int | None = None  # None before it has begun
    message: str | None = None  # None: the one that the turn has already
    images: list[dict[str, str]] | None = None  # of the message, as tabs are told of them; None: likewise
    text: str = ""  # at its beginning
    reasoning: str = ""
    tokens: list[bytes] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    pieces: list[tuple[str, str]] = field(default_factory=list)  # of text and reasoning since; joined when asked for

    def encoded(self) -> bytes:
        """As a snapshot says it; null before the reply has begun."""
        if self.turn is None:
            return b"null"
        content = {
            "turn": self.turn,
            "message": self.message,
            "images": self.images,
            "text": self.text + "".join(text for text, _ in self.pieces),
            "reasoning": self.reasoning + "".join(reasoning for _, reasoning in self.pieces),
            "notices": [{"kind": notice.kind, "text": notice.text} for notice in self.notices],
        }
        return encode(content)[:-1] + b',"tokens":[' + b",".join(self.tokens) + b"]}"


def _token(token: TokenProbability) -> list[Any]:
    alternatives = [[text, _probability(logprob)] for text, logprob in token.alternatives]
    milliseconds = round(1000 * token.seconds, 2)
    return [token.text, token.piece, _probability(token.logprob), alternatives, milliseconds, token.id]


def _probability(logprob: float | None) -> float | None:
    """A probability with five digits; None if it is unknown."""
    if logprob is None or math.isnan(logprob):
        return None
    return float(f"{min(1.0, math.exp(min(0.0, logprob))):.5g}")


def _turn(node: Node, version: tuple[int, int], notices: Notices, agent: PageAgent) -> dict[str, Any]:
    turn, content = node.turn, node.turn[0]["content"]
    reply = turn[1] if len(turn) > 1 else {}
    return {
        "key": node.key,
        "version": version,
        "message": text_of(content),
        "images": agent.shown_images.tell(images_of(content)),
        "reply": reply.get("content"),
        "reasoning": reply.get("reasoning", ""),
        "finish_reason": reply.get("finish_reason", "stop" if reply else None),
        "notices": [{"kind": notice.kind, "text": notice.text} for notice in notices.get(node.key, ())],
        "statistics": None if node.reply is None else _statistics(node.reply),
        "recorded": _is_recorded(node),
        "memories": reply.get("memories", []),
    }


def _is_recorded(node: Node) -> bool:
    """Whether the probabilities of a reply's tokens are at hand."""
    return bool(node.tokens) and any(token.logprob is not None for token in node.tokens or ())


def _statistics(reply: Reply) -> dict[str, Any]:
    return {
        "ttft": round(reply.ttft, 4),
        "tokens_per_second": round(reply.tokens_per_second, 2),
        "prompt_tokens": reply.prompt_tokens,
        "cached_tokens": reply.cached_tokens,
        "completion_tokens": reply.completion_tokens,
        "seconds": round(reply.seconds, 4),
    }


def _memory(session: Session) -> dict[str, Any] | None:
    """The memories in the prompt; None if memory is off."""
    if session.memory is None:
        return None
    return {"recalled": len(session.memory.recalled.pieces), "tokens": session.memory.recalled.tokens}


def _window(session: Session, warnings: Sequence[str]) -> dict[str, Any]:
    """How full the window is, and what the model says of itself; zeros if it is not loaded or does not say it."""
    model = session.model
    texts = [*warnings, *(notice.text for notice in session.warnings)]
    used = limit = reserve = 0
    if not isinstance(model, Absent):
        try:
            budget = session.budget
            limit, reserve = budget.window, budget.reserve
            used = session.count(session.visible_messages()) if session.turns else 0
        except BareloopError as error:
            texts.append(str(error))
    return {
        "defaults": {
            name: value for name, value in (model.defaults or {}).items() if isinstance(value, int | float | str)
        },
        "used": used,
        "limit": limit,
        "reserve": reserve,
        "counts_exactly": model.counts_exactly,
        "warnings": texts,
        "can_score": model.can_score,
        "takes_images": model.takes_images,
    }
