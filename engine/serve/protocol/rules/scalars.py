"""Rules for single values: true and false, numbers, texts, and fields that are not supported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from reprlib import Repr
from typing import Any, Protocol

from engine.runtime.errors import MAX_QUOTE, quote

Path = tuple[str | int, ...]
Schema = dict[str, Any]

NULL: Schema = {"type": "null"}


SHORT = Repr()  # values may be large, and only their beginnings are printed
SHORT.maxstring = SHORT.maxlong = SHORT.maxother = MAX_QUOTE


class Invalid(Exception):  # noqa: N818
    """A value that a rule refuses.

    `message`: what follows its name. `path`: where it is, below what was read. `reached`: how far a list was right.
    """

    def __init__(self, message: str, path: Path = (), reached: Path | None = None) -> None:
        super().__init__(message)
        self.message, self.path = message, path
        self.reached = path if reached is None else reached

    def below(self, key: str | int) -> Invalid:
        """The same for the value that has the refused one at `key`."""
        return Invalid(self.message, (key, *self.path), (key, *self.reached))


class Rule(Protocol):
    """The interface of a rule."""

    def read(self, value: Any) -> Any:
        """The value for Python. Raises `Invalid`."""

    def schema(self) -> Schema:
        """JSON schema of the values that `read` accepts."""

    def __str__(self) -> str:
        """The values that `read` accepts, to follow "use": "a number from 0 to 2"."""


def show(value: object) -> str:
    """A value for a message, as `quote` does, but quick for large lists and objects, too."""
    return quote(value) if isinstance(value, str | int | float | None) else _clip(SHORT.repr(value))


def _clip(text: str) -> str:
    return text if len(text) <= MAX_QUOTE else f"{text[: MAX_QUOTE - 1]}…"


def refuse(value: object, rule: object) -> Invalid:
    """The refusal of a value that a rule does not accept."""
    return Invalid(f"= {show(value)}: use {rule}")


@dataclass(frozen=True)
class Anything:
    """Any JSON value."""

    def read(self, value: Any) -> Any:
        return value

    def schema(self) -> Schema:
        return {}

    def __str__(self) -> str:
        return "any value"


@dataclass(frozen=True)
class Flag:
    """true or false."""

    def read(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise refuse(value, self)
        return value

    def schema(self) -> Schema:
        return {"type": "boolean"}

    def __str__(self) -> str:
        return "true or false"


@dataclass(frozen=True)
class Integer:
    """A whole number. 1.0 is one, too: JSON has numbers of one kind, and so have JSON schemas."""

    minimum: int
    maximum: int

    def read(self, value: Any) -> int:
        is_whole = type(value) is int or (isinstance(value, float) and value.is_integer())
        if not is_whole or not self.minimum <= value <= self.maximum:
            raise refuse(value, self)
        return int(value)

    def accepts(self, values: Sequence[Any]) -> bool:
        """Whether all values are accepted. For prompts of many ids."""
        return {*map(type, values)} == {int} and self.minimum <= min(values) and max(values) <= self.maximum

    def schema(self) -> Schema:
        return {"type": "integer", "minimum": self.minimum, "maximum": self.maximum}

    def __str__(self) -> str:
        is_one = self.minimum == self.maximum
        return str(self.minimum) if is_one else f"a whole number from {self.minimum} to {self.maximum}"


@dataclass(frozen=True)
class Number:
    """A number. `above`: it must be larger than the minimum."""

    minimum: float
    maximum: float
    above: bool = False

    def read(self, value: Any) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not self.minimum <= value <= self.maximum or (self.above and value == self.minimum):
            raise refuse(value, self)
        return value

    def schema(self) -> Schema:
        return {
            "type": "number",
            "exclusiveMinimum" if self.above else "minimum": self.minimum,
            "maximum": self.maximum,
        }

    def __str__(self) -> str:
        span = f"above {self.minimum:g}, up to" if self.above else f"from {self.minimum:g} to"
        return f"a number {span} {self.maximum:g}"


@dataclass(frozen=True)
class Text:
    """A string. `choices`: the allowed ones, all if empty."""

    minimum: int = 0
    maximum: int | None = None
    choices: tuple[str, ...] = ()

    def read(self, value: Any) -> str:
        if not isinstance(value, str) or (self.choices and value not in self.choices):
            raise refuse(value, self)
        if len(value) < self.minimum or (self.maximum is not None and len(value) > self.maximum):
            raise Invalid(f"has {len(value):,} characters: use {self}")
        return value

    def schema(self) -> Schema:
        if self.choices:
            return {"type": "string", "enum": [*self.choices]}
        schema: Schema = {"type": "string"}
        if self.minimum:
            schema["minLength"] = self.minimum
        if self.maximum is not None:
            schema["maxLength"] = self.maximum
        return schema

    def __str__(self) -> str:
        if self.choices:
            return " or ".join(map(quote, self.choices))
        kind = "a text that is not empty" if self.minimum else "a text"
        return kind if self.maximum is None else f"{kind}, up to {self.maximum:,} characters"


@dataclass(frozen=True)
class Neutral:
    """A field that is not supported, and may only have a value that changes nothing. `hint`: what to do instead."""

    values: tuple[Any, ...] = ()
    hint: str = "leave it out"

    def read(self, value: Any) -> Any:
        if not any(_same(value, neutral) for neutral in self.values):
            raise Invalid(f"= {show(value)} is not supported: {self}")
        return value

    def schema(self) -> Schema:
        return {"enum": [*self.values]}

    def __str__(self) -> str:
        return self.hint


def _same(one: Any, other: Any) -> bool:
    """Equality of JSON values, in which true is not 1."""
    return isinstance(one, bool) == isinstance(other, bool) and one == other
