"""What a value of a request may be. A rule reads a JSON value, and describes itself as a JSON schema.

Both accept the same values, so that /openapi.json is true. The one difference: to a JSON schema 1.0 is an integer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from reprlib import Repr
from typing import Any, Protocol

from engine.runtime.errors import MAX_QUOTE, quote

Path = tuple[str | int, ...]
Schema = dict[str, Any]


SHORT = Repr()  # values may be large, and only their beginnings are printed
SHORT.maxstring = SHORT.maxlong = SHORT.maxother = MAX_QUOTE


class Invalid(Exception):  # noqa: N818
    """A value that a rule refuses. `message`: what follows its name. `path`: where it is, below what was read."""

    def __init__(self, message: str, path: Path = ()) -> None:
        super().__init__(message)
        self.message, self.path = message, path

    def below(self, key: str | int) -> Invalid:
        """The same for the value that has the refused one at `key`."""
        return Invalid(self.message, (key, *self.path))


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
    """A whole number, written without a decimal point."""

    minimum: int
    maximum: int

    def read(self, value: Any) -> int:
        if type(value) is not int or not self.minimum <= value <= self.maximum:
            raise refuse(value, self)
        return value

    def accepts(self, values: Sequence[Any]) -> bool:
        """Whether all values are accepted. For prompts of many ids."""
        return {*map(type, values)} == {int} and self.minimum <= min(values) and max(values) <= self.maximum

    def schema(self) -> Schema:
        return {"type": "integer", "minimum": self.minimum, "maximum": self.maximum}

    def __str__(self) -> str:
        return f"a whole number from {self.minimum} to {self.maximum}"


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
class Items:
    """A list. `name`: of its items, in plural. `max_size`: characters of its JSON text."""

    item: Rule
    name: str
    minimum: int = 0
    maximum: int | None = None
    max_size: int | None = None

    def read(self, value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise refuse(value, self)
        if len(value) < self.minimum or (self.maximum is not None and len(value) > self.maximum):
            raise Invalid(f"has {len(value):,} {self.name}: use {self}")
        if isinstance(self.item, Integer) and self.item.accepts(value):
            return value
        result, index = [], 0
        try:
            for index, item in enumerate(value):  # noqa: B007 the last one is the one that was refused
                result.append(self.item.read(item))
        except Invalid as error:
            raise error.below(index) from None
        check_size(value, self.max_size)
        return result

    def schema(self) -> Schema:
        schema: Schema = {"type": "array", "items": self.item.schema()}
        if self.minimum:
            schema["minItems"] = self.minimum
        if self.maximum is not None:
            schema["maxItems"] = self.maximum
        return schema

    def __str__(self) -> str:
        least = "1 or more " if self.minimum and self.maximum is None else ""
        bounds = f"{self.minimum or 'up'} to {self.maximum:,} " if self.maximum is not None else least
        return f"a list of {bounds}{self.name}"


@dataclass(frozen=True)
class Members:
    """An object. `required`: members that it must have, and their rules. `reserved`: names that it must not have."""

    required: Mapping[str, Rule] = field(default_factory=dict)
    reserved: tuple[str, ...] = ()
    maximum: int | None = None
    max_size: int | None = None

    def read(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise refuse(value, self)
        if self.maximum is not None and len(value) > self.maximum:
            raise Invalid(f"has {len(value):,} members: use up to {self.maximum:,}")
        if names := sorted(value.keys() & set(self.reserved)):
            raise Invalid("is set by the server: leave it out", (names[0],))
        for name, rule in self.required.items():
            try:
                if name not in value:
                    raise Invalid(f"is missing: use {rule}")
                rule.read(value[name])
            except Invalid as error:
                raise error.below(name) from None
        check_size(value, self.max_size)
        return value

    def schema(self) -> Schema:
        schema: Schema = {"type": "object"}
        if self.required:
            schema["properties"] = {name: rule.schema() for name, rule in self.required.items()}
            schema["required"] = [*self.required]
        if self.reserved:
            schema["propertyNames"] = {"not": {"enum": [*self.reserved]}}
        if self.maximum is not None:
            schema["maxProperties"] = self.maximum
        return schema

    def __str__(self) -> str:
        return f"an object with {' and '.join(self.required)}" if self.required else "an object"


@dataclass(frozen=True)
class Table:
    """An object whose names are token ids, and whose values follow one rule. Read as {id: value}."""

    value: Rule
    maximum: int

    NAME = "^(0|[1-9][0-9]{0,8})$"

    def read(self, value: Any) -> dict[int, Any]:
        if not isinstance(value, dict):
            raise refuse(value, self)
        if len(value) > self.maximum:
            raise Invalid(f"has {len(value):,} tokens: use up to {self.maximum:,}")
        result = {}
        for name, item in value.items():
            if not re.fullmatch(self.NAME[1:-1], name):
                raise Invalid(f"has {quote(name)}, which is not a token id such as '1504'")
            try:
                result[int(name)] = self.value.read(item)
            except Invalid as error:
                raise error.below(name) from None
        return result

    def schema(self) -> Schema:
        return {
            "type": "object",
            "propertyNames": {"pattern": self.NAME},
            "additionalProperties": self.value.schema(),
            "maxProperties": self.maximum,
        }

    def __str__(self) -> str:
        return f"an object of token ids with {self.value} each"


@dataclass(frozen=True)
class Either:
    """A value of one of several kinds."""

    rules: tuple[Rule, ...]

    def read(self, value: Any) -> Any:
        errors = []
        for rule in self.rules:
            try:
                return rule.read(value)
            except Invalid as error:
                errors.append(error)
        # The kind that was meant is the one that got furthest.
        ranks = [tuple((0, key) if isinstance(key, int) else (1, key) for key in error.path) for error in errors]
        furthest = [error for error, rank in zip(errors, ranks, strict=True) if rank == max(ranks)]
        raise furthest[0] if len(furthest) == 1 and furthest[0].path else refuse(value, self)

    def schema(self) -> Schema:
        return {"anyOf": [rule.schema() for rule in self.rules]}

    def __str__(self) -> str:
        names = [*map(str, self.rules)]
        return f"{', '.join(names[:-1])}, or {names[-1]}"


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


def check_size(value: Any, maximum: int | None) -> None:
    """Raise `Invalid` if the JSON text of a value has more than `maximum` characters."""
    if maximum is None:
        return
    size = len(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    if size > maximum:
        raise Invalid(f"has {size:,} characters of JSON: use up to {maximum:,}")
