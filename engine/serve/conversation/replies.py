"""A streamed reply as OpenAI's clients read it: content, reasoning and tool calls, each as soon as it is certain."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from engine.serve.conversation.call_scanner import CallScanner
from engine.serve.conversation.tools import GENERIC, ToolFormat
from engine.text.reasoning import ReasoningSplitter

CHUNK = 4096  # characters; longer texts are read in parts, so that each state copies little


@dataclass(frozen=True)
class Delta:
    """A part of a message: text, or one entry of tool_calls."""

    kind: Literal["content", "reasoning_content", "tool_calls"]
    value: Any

    def as_dict(self) -> dict[str, Any]:
        """The `delta` of a chunk."""
        return {self.kind: [self.value] if self.kind == "tool_calls" else self.value}


def new_call_id() -> str:
    """A random id."""
    return f"call_{secrets.token_hex(12)}"


class ReplyParser:
    """Reads the text of one reply in pieces of any size, in linear time.

    Nothing is given out that may still be the start of `<think>` or of a call. A call that is malformed, or of an
    unknown tool, stays content. White space around calls and around the reasoning is dropped.
    """

    def __init__(
        self,
        tool_format: ToolFormat | None,
        in_reasoning: bool = False,
        separates_reasoning: bool = True,
        *,
        names: frozenset[str] = frozenset(),
        parallel: bool = True,
        new_id: Callable[[], str] = new_call_id,
    ) -> None:
        """`tool_format` None: no calls are looked for. `names`: of the tools.

        `in_reasoning`: the prompt ends inside `<think>`. `separates_reasoning` False: reasoning is content, with its
        tags. `parallel` False: everything after the first call is dropped.
        """
        self.has_calls = False
        self.is_complete_call = False  # a call has ended, so that a reply with one call is complete
        self._looks_for_calls, self._tool_format = tool_format is not None, tool_format or GENERIC
        self._names, self._parallel, self._new_id = names, parallel, new_id
        self._separates = separates_reasoning
        self._splitter: ReasoningSplitter | None = ReasoningSplitter(in_reasoning)
        self._leading: list[str] = []  # white space at the beginning
        self._unsplit = ""  # text that may be reasoning or content
        self._message = _Message()
        self._thought_space, self._space = _Space(), _Space()
        self._after_call = False
        self._raw: list[str] = []  # of what may become a call
        self._partial = ""  # what may become a tag
        self._scanner = CallScanner(names, False)
        self._state = self._plain
        if tool_format is not None:
            self._state = self._text if tool_format.anywhere else self._start

    def push(self, text: str) -> list[Delta]:
        """Add text. Return what is now certain."""
        for start in range(0, len(text), CHUNK):
            self._split(text[start : start + CHUNK])
        return self._message.take()

    def flush(self) -> list[Delta]:
        """End the reply. Return the rest: what might have become a tag or a call is content."""
        if self._splitter is not None:
            self._split("", is_last=True)
        if self._state == self._object and self._scanner.name is None:
            self._raw += self._scanner.held
        if self._state not in (self._after, self._nothing):
            self._content("".join([*self._raw, self._partial]))
        self._raw, self._partial, self._state = [], "", self._nothing
        if not self._after_call:
            self._message.add("content", self._space.take())
        return self._message.take()

    def message(self) -> dict[str, Any]:
        """The whole message: role, content, and reasoning_content and tool_calls if there are any."""
        return self._message.as_dict()

    def _split(self, text: str, is_last: bool = False) -> None:
        """Separate the reasoning at the beginning of a reply from its answer."""
        splitter = self._splitter
        if splitter is None:
            self._read(text)
            return
        if splitter.in_reasoning is None and text.isspace():  # which the splitter would look at again and again
            self._leading.append(text)
            return
        text = "".join([*self._leading, text])
        self._leading = []
        self._unsplit += text
        known = len(splitter.reasoning)
        answer = splitter.push(text)
        if is_last:
            answer += splitter.flush()
        if splitter.in_reasoning is not None or is_last:
            certain = self._unsplit[: len(self._unsplit) - len(answer)]
            self._unsplit = ""
            if not self._separates:
                self._content(certain)
            elif thought := self._thought_space.push(splitter.reasoning[known:]):
                self._message.add("reasoning_content", thought if self._message.reasoning else thought.lstrip())
        splitter.reasoning = splitter.reasoning[-1:]  # or adding to it would take longer and longer
        if splitter.answer:
            self._splitter = None
        self._read(answer)

    def _read(self, text: str) -> None:
        """Read text of the answer: each state takes a part of it and returns the rest."""
        while text:
            text = self._state(text)

    def _nothing(self, text: str) -> str:  # noqa: ARG002
        """After the last call that is wanted."""
        return ""

    def _plain(self, text: str) -> str:
        """Text in which no call can follow."""
        self._content(text)
        return ""

    def _text(self, text: str) -> str:
        """Text in which a tag begins a call."""
        opening = self._tool_format.opening
        before, tag, after = (self._partial + text).partition(opening)
        sizes = range(min(len(before), len(opening) - 1), 0, -1)
        overlap = 0 if tag else next((size for size in sizes if before.endswith(opening[:size])), 0)
        self._partial = before[len(before) - overlap :]
        self._content(before[: len(before) - overlap])
        if tag:
            self._raw, self._state = [tag], self._before_object
        return after

    def _start(self, text: str) -> str:
        """The beginning of a reply that is calls or plain text: perhaps a control token's text."""
        prefix = self._tool_format.prefix
        text = self._skip_space(self._partial + text)
        self._partial = text if prefix.startswith(text) and text != prefix else ""
        if self._partial or not text:
            return ""
        if text.startswith(prefix):
            self._raw.append(prefix)
            text = text.removeprefix(prefix)
        self._state = self._before_first
        return text

    def _before_first(self, text: str) -> str:
        """Before the bracket that opens a list of calls, if the format has one."""
        opening = self._tool_format.opening
        text = self._skip_space(text)
        if not text:
            return ""
        if not text.startswith(opening):
            return self._give_back(text)
        self._raw.append(opening)
        self._state = self._before_object
        return text.removeprefix(opening)

    def _before_object(self, text: str) -> str:
        """Where a call's JSON object has to begin."""
        text = self._skip_space(text)
        if not text:
            return ""
        if not text.startswith("{"):
            return self._give_back(text)
        self._scanner = CallScanner(self._names, is_marked=self._tool_format.anywhere)
        self._state = self._object
        return text

    def _object(self, text: str) -> str:
        """Within a call's JSON object."""
        scanner, was_known = self._scanner, self._scanner.name is not None
        count, arguments = scanner.push(text)
        if scanner.name is not None and not was_known:
            self.has_calls = self._after_call = True
            self._raw = []
            self._space.take()
            self._message.begin_call(self._new_id(), scanner.name)
        self._message.add_arguments(arguments)
        if scanner.state == "failed" and scanner.name is None:
            self._raw += scanner.held
            return self._give_back(text[count:])
        if scanner.state in ("done", "failed"):
            self.is_complete_call = True
            self._state = self._after if self._parallel else self._nothing
            if scanner.state == "failed" and self._parallel:
                self._content("".join(scanner.held))
        return text[count:]

    def _after(self, text: str) -> str:
        """After a call's JSON object."""
        closing, separator = self._tool_format.closing, self._tool_format.separator
        text = (self._partial + text).lstrip()
        self._partial = text if closing.startswith(text) and text != closing else ""
        if self._partial or not text:
            return ""
        if separator and text.startswith(separator):
            self._raw, self._state = [separator], self._before_object
            return text.removeprefix(separator)
        self._state = self._text if self._tool_format.anywhere else self._plain
        return text.removeprefix(closing)

    def _skip_space(self, text: str) -> str:
        rest = text.lstrip()
        self._raw.append(text[: len(text) - len(rest)])
        return rest

    def _give_back(self, rest: str) -> str:
        """What began like a call is none: it is content, and `rest` may be anything."""
        self._content("".join(self._raw))
        self._raw, self._state = [], self._text if self._tool_format.anywhere else self._plain
        return rest

    def _content(self, text: str) -> None:
        """Add content. White space at its end waits for what follows."""
        if self._looks_for_calls:
            text = self._space.push(text)
        if text and self._after_call:
            self._after_call = False
            text = "\n" * bool(self._message.content) + text.lstrip()
        self._message.add("content", text)


class _Message:
    """The whole message, and what is new in it."""

    def __init__(self) -> None:
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.calls: list[tuple[dict[str, Any], list[str]]] = []  # without the arguments, and these
        self._new: list[Delta] = []

    def add(self, kind: Literal["content", "reasoning_content"], text: str) -> None:
        """Add text to the content or to the reasoning."""
        if text:
            (self.content if kind == "content" else self.reasoning).append(text)
            self._new.append(Delta(kind, text))

    def begin_call(self, identifier: str, name: str) -> None:
        """Add a call, without its arguments."""
        head = {"id": identifier, "type": "function", "function": {"name": name, "arguments": ""}}
        self._new.append(Delta("tool_calls", {"index": len(self.calls)} | head))
        self.calls.append((head, []))

    def add_arguments(self, text: str) -> None:
        """Add to the arguments of the last call."""
        if text:
            self.calls[-1][1].append(text)
            self._new.append(Delta("tool_calls", {"index": len(self.calls) - 1, "function": {"arguments": text}}))

    def take(self) -> list[Delta]:
        """What is new, with adjacent texts joined."""
        result: list[Delta] = []
        for kind, deltas in groupby(self._new, key=lambda delta: delta.kind):
            if kind == "tool_calls":
                result += deltas
            else:
                result.append(Delta(kind, "".join(delta.value for delta in deltas)))
        self._new = []
        return result

    def as_dict(self) -> dict[str, Any]:
        """The `message` of a choice."""
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self.content)}
        if self.calls and not self.content:
            message["content"] = None
        if self.reasoning:
            message["reasoning_content"] = "".join(self.reasoning)
        if self.calls:
            message["tool_calls"] = [
                head | {"function": head["function"] | {"arguments": "".join(arguments)}}
                for head, arguments in self.calls
            ]
        return message


class _Space:
    """The white space at the end of a streamed text, which may turn out to stand before a call, or at the end."""

    def __init__(self) -> None:
        self._held: list[str] = []

    def push(self, text: str) -> str:
        """Add text. Return all but the white space at its end."""
        body = text.rstrip()
        if not body:
            self._held.append(text)
            return ""
        result = self.take() + body
        self._held = [text[len(body) :]]
        return result

    def take(self) -> str:
        """Return the white space, and forget it."""
        held, self._held = self._held, []
        return "".join(held)
