"""Rules for several fields of a request. Fields that may be null are the same as absent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.serve.protocol.rules.scalars import NULL, Invalid, Schema

NOT_NULL: Schema = {"type": ["string", "number", "boolean", "array", "object"]}


def _is_true(name: str) -> Schema:
    return {"required": [name], "properties": {name: {"const": True}}}


def _is_not_true(name: str) -> Schema:
    return {"properties": {name: {"enum": [False, None]}}}


@dataclass(frozen=True)
class Needs:
    """A field that may be given only where another one is true."""

    name: str
    other: str

    def check(self, values: Mapping[str, Any]) -> None:
        if self.name in values and not values.get(self.other):
            raise Invalid(f"needs {self.other}: set it to true, or leave {self.name} out", (self.name,))

    def schema(self) -> Schema:
        return {"anyOf": [{"properties": {self.name: NULL}}, _is_true(self.other)]}


@dataclass(frozen=True)
class ZeroNeeds:
    """A number that may be 0 only where another field is true."""

    name: str
    other: str

    def check(self, values: Mapping[str, Any]) -> None:
        if values.get(self.name) == 0 and not values.get(self.other):
            raise Invalid(f"= 0 needs {self.other}: use 1 or more", (self.name,))

    def schema(self) -> Schema:
        return {"anyOf": [{"properties": {self.name: {"minimum": 1}}}, _is_true(self.other)]}


@dataclass(frozen=True)
class Excludes:
    """A field that may be given only where another one is not true."""

    name: str
    other: str

    def check(self, values: Mapping[str, Any]) -> None:
        if self.name in values and values.get(self.other):
            raise Invalid(f"is not possible with {self.other}: leave one of them out", (self.name,))

    def schema(self) -> Schema:
        return {"anyOf": [{"properties": {self.name: NULL}}, _is_not_true(self.other)]}


@dataclass(frozen=True)
class NotBoth:
    """Two fields of which at most one is true."""

    name: str
    other: str

    def check(self, values: Mapping[str, Any]) -> None:
        if values.get(self.name) and values.get(self.other):
            raise Invalid(f"and {self.other} exclude each other: set one of them to false", (self.name,))

    def schema(self) -> Schema:
        return {"anyOf": [_is_not_true(self.name), _is_not_true(self.other)]}


@dataclass(frozen=True)
class ExactlyOne:
    """Fields of which exactly one is given."""

    names: tuple[str, ...]

    def check(self, values: Mapping[str, Any]) -> None:
        given = [name for name in self.names if name in values]
        if len(given) != 1:
            raise Invalid(f"has {' and '.join(given) or 'no text'}: use one of {', '.join(self.names)}")

    def schema(self) -> Schema:
        return {
            "anyOf": [
                {
                    "required": [name],
                    "properties": {other: NOT_NULL if other == name else NULL for other in self.names},
                }
                for name in self.names
            ]
        }
