"""Chat through pipes: replies on stdout, each followed by an empty line; notices on stderr. Or JSON lines on stdout."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator
from typing import TextIO

from chat.agent import Agent
from chat.conversation.events import Notice, Piece, Reply
from engine.cli.parser import printable
from engine.runtime.errors import BareloopError


class Pipe:
    """A conversation without a screen."""

    def __init__(self, agent: Agent, as_json: bool = False) -> None:
        self.agent = agent
        self.as_json = as_json

    def talk(self, lines: TextIO) -> bool:
        """Handle line after line; an error is reported, and the next line handled. Return whether all succeeded."""
        succeeded = True
        for line in self._read(lines):
            if not line.strip():
                continue
            try:
                with contextlib.closing(self.agent.handle(line.rstrip("\r\n"))) as events:
                    self.show(events)
            except EOFError:
                break
            except KeyboardInterrupt:
                if not sys.stdin.isatty():
                    raise
                self._notify(Notice("stopped", "stopped"))
            except BareloopError as error:
                succeeded = False
                self._notify(Notice("error", str(error)))
        return succeeded

    def show(self, events: Iterable[Notice | Piece | Reply]) -> None:
        """Write events as they come."""
        for event in events:
            match event:
                case Piece(text) if text and self.agent.stream and not self.as_json:
                    self._write(printable(text))
                case Reply() if self.as_json:
                    self._write(json.dumps(as_dict(event), ensure_ascii=False) + "\n")
                case Reply():
                    self._write(("" if self.agent.stream else printable(event.text)) + "\n\n")
                case Notice():
                    self._notify(event)

    def _read(self, lines: TextIO) -> Iterator[str]:
        while True:
            if sys.stdin.isatty():
                print("> ", end="", file=sys.stderr, flush=True)
            line = lines.readline()
            if not line:
                return
            yield line

    def _write(self, text: str) -> None:
        print(text, end="", flush=True)

    def _notify(self, notice: Notice) -> None:
        if self.as_json:
            self._write(json.dumps({"type": notice.kind, "text": notice.text}, ensure_ascii=False) + "\n")
        else:
            print(printable(notice.text), file=sys.stderr, flush=True)


def as_dict(reply: Reply) -> dict[str, object]:
    """A reply as a JSON object."""
    return {
        "type": "reply",
        "turn": reply.turn,
        "text": reply.text,
        **({"reasoning": reply.reasoning} if reply.reasoning else {}),
        "finish_reason": reply.finish_reason,
        **({"memories": list(reply.memories)} if reply.memories else {}),
        "usage": {
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
            "cached_tokens": reply.cached_tokens,
            "window": reply.window,
        },
        "ttft_seconds": round(reply.ttft, 4),
        "tokens_per_second": round(reply.tokens_per_second, 2),
    }
