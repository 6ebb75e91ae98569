"""One tool call, {"name": …, "arguments": {…}}, read as a model writes it."""

from __future__ import annotations

import json
from typing import Any, Literal

ARGUMENTS = ("arguments", "parameters")
KEYS = {"name", "type", "id", *ARGUMENTS}  # of a call
SPACE = " \t\r\n"
JSON_CHARACTERS = frozenset(f'{{}}[]:,"-+.0123456789eEtrufalsn{SPACE}')  # those outside strings


class CallScanner:
    """Follows one JSON object piece by piece, in linear time.

    It begins in the head, where it may turn out to be no call. Arguments that are an object and come after the name are
    streamed. Otherwise the call is known at the end of the object: its arguments may come first, be missing, or be a
    string with JSON in it. After the arguments comes the tail: further keys, which are ignored, and the last bracket,
    which models forget at times.
    """

    def __init__(self, names: frozenset[str], is_marked: bool) -> None:
        """`names`: of the tools. `is_marked`: a tag came before, so that any key may come before the name."""
        self.names, self.is_marked = names, is_marked
        self.state: Literal["head", "arguments", "tail", "done", "failed"] = "head"
        self.name: str | None = None  # once this is certainly a call
        self.held: list[str] = []  # characters of the head, or the tail; they are plain text if it fails
        self._new: list[str] = []  # of the arguments
        self._depth = 0
        self._in_string = self._escaped = False
        self._string: list[str] = []  # the last string directly in the object, with its quotes
        self._key: Any = None  # of the present member
        self._named: Any = None  # the name, in the head
        self._start, self._end = -1, 0  # in the head: where arguments are that came before the name

    def push(self, text: str) -> tuple[int, str]:
        """Read text until the object ends or fails. Return how many characters were read, and the new arguments."""
        count = 0
        for character in text:
            read = {"head": self._head, "arguments": self._arguments, "tail": self._tail}.get(self.state)
            if read is None or not read(character):
                break
            count += 1
        new, self._new = "".join(self._new), []
        return count, new

    def _head(self, character: str) -> bool:
        """Read a character before it is certain that this is a call. False: it does not belong to the object."""
        within = self._in_string
        if not self._is_json(character):
            return False
        self._follow(character)
        self.held.append(character)
        if within or character == '"':
            if self._depth == 1:
                if not within:
                    self._string = []
                self._string.append(character)
            return True
        if character == ":" and self._depth == 1:
            self._key = _loaded("".join(self._string))
            if not isinstance(self._key, str) or not (self.is_marked or self._key in KEYS):
                self.state = "failed"
        elif character == "{" and self._depth == 2 and self._key in ARGUMENTS:
            self._start = len(self.held) - 1
            if self._named is not None:
                self._begin_arguments()
        elif character == "}" and self._depth == 1:
            self._end = len(self.held)
        elif self._depth == 0 or (character == "," and self._depth == 1):
            if self._key == "name":
                self._named = _loaded("".join(self._string))
                if not isinstance(self._named, str) or self._named not in self.names:
                    self.state = "failed"
            self._key = None
            if self._depth == 0 and self.state == "head":
                self._end_object()
        return True

    def _begin_arguments(self) -> None:
        """An object begins that is the arguments, and the name is known."""
        if _loaded("".join([*self.held[:-1], "null}"])) is None:
            self.state = "failed"
        else:
            self.state, self.name, self._new, self.held = "arguments", self._named, ["{"], []

    def _end_object(self) -> None:
        """The object has ended, and no arguments were streamed."""
        text = "".join(self.held)
        call = _loaded(text)
        arguments = None
        if isinstance(call, dict) and call.get("name") == self._named is not None:
            value: Any = next((call[key] for key in ARGUMENTS if call.get(key) is not None), {})
            if isinstance(value, dict):
                arguments = text[self._start : self._end] if self._start >= 0 else "{}"
            elif isinstance(value, str) and isinstance(_loaded(value or "{}"), dict):
                arguments = value or "{}"
        if arguments is None:
            self.state = "failed"
        else:
            self.state, self.name, self._new, self.held = "done", self._named, [arguments], []

    def _arguments(self, character: str) -> bool:
        """Read a character of the arguments. Faults in them are for the client to see, but a tag ends them."""
        if character == "<" and not self._in_string:
            self.state = "done"
            return False
        self._follow(character)
        self._new.append(character)
        if self._depth == 1:
            self.state = "tail"
        return True

    def _tail(self, character: str) -> bool:
        """Read a character after the arguments."""
        if not self.held:
            if character in SPACE:
                return True
            if character not in ",}":
                self.state = "done"
                return False
        if not self._is_json(character):
            return False
        self._follow(character)
        self.held.append(character)
        if self._depth == 0:
            self.state = "done"
        return True

    def _is_json(self, character: str) -> bool:
        """Whether a character may come next in JSON, roughly. If not, the object has failed."""
        if character in "\r\n" if self._in_string else character not in JSON_CHARACTERS:
            self.state = "failed"
        return self.state != "failed"

    def _follow(self, character: str) -> None:
        """Keep track of strings and brackets."""
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = True
            elif character == '"':
                self._in_string = False
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1


def _loaded(text: str) -> Any:
    """The value of a JSON text; None if it is invalid."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
