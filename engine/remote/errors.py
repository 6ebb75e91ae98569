"""What a client says about a server that refuses, fails or cannot be reached: one line each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from engine.runtime.errors import BareloopError

MAX_SAID = 240  # characters of a server's own message
KEY_HINT = "set BARELOOP_API_KEY (or OPENAI_API_KEY) to the server's key, or add --api-key-file FILE"


class RemoteError(BareloopError):
    """A server refuses a request, fails, or cannot be reached.

    `status`: of HTTP; None if there was no answer. `details`: the server's error object: message, type, code, …
    """

    def __init__(self, message: str, status: int | None = None, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status, self.details = status, details or {}


class UnreachableError(RemoteError):
    """No connection to the server can be made: nothing listens there, or its name is unknown."""


def said(text: str, secrets: Sequence[str] = ()) -> str:
    """Quote a server's message: in one line, clipped, without control characters and without our own key."""
    for secret in secrets:
        text = text.replace(secret, "[…]")
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * MAX_SAID]).split())
    return f'"{line if len(line) <= MAX_SAID else line[: MAX_SAID - 1] + "…"}"'


def message_in(body: bytes) -> str:
    """The message in the body of an error: OpenAI's {"error": {"message": …}}, or as other servers write it."""
    text = body[: 2**20].decode("utf-8", errors="replace")
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return message_of(value)


def details_in(body: bytes) -> dict[str, Any]:
    """The error object in the body of an error; empty without one."""
    try:
        value = json.loads(body[: 2**20])
    except ValueError:
        return {}
    value = value.get("error", value) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def message_of(value: Any) -> str:
    """The message in an error object."""
    for _ in range(4):
        if not isinstance(value, dict):
            break
        value = next((value[key] for key in ("error", "message", "detail", "msg") if value.get(key)), str(value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def retry_after(header: str | None) -> float | None:
    """Seconds that a server asks to wait: a number, or a date. None without a valid header."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            date = parsedate_to_datetime(header)
        except ValueError:
            return None
        seconds = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(seconds, 0.0) if seconds < float("inf") else None
