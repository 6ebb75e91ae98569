"""Rules for lists and objects, and for values of several kinds."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.runtime.errors import quote
from engine.serve.protocol.rules.scalars import NULL, Integer, Invalid, Rule, Schema, refuse


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
        result = value[: self.maximum]
        if not isinstance(self.item, Integer) or not self.item.accepts(result):
            result = self._read_items(result)
        if len(value) < self.minimum or len(result) < len(value):
            raise Invalid(f"has {len(value):,} {self.name}: use {self}", reached=(len(result),) if result else ())
        check_size(value, self.max_size)
        return result

    def _read_items(self, value: list[Any]) -> list[Any]:
        result, index = [], 0
        try:
            for index, item in enumerate(value):  # noqa: B007 the last one is the one that was refused
                result.append(self.item.read(item))
        except Invalid as error:
            raise error.below(index) from None
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
    """An object, and rules for some of its members. `reserved`: names that it must not have.

    `maximum`: members. `max_size`: characters of its JSON text.
    """

    required: Mapping[str, Rule] = field(default_factory=dict)
    optional: Mapping[str, Rule] = field(default_factory=dict)
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
        for name, rule in {**self.required, **self.optional}.items():
            try:
                if value.get(name) is not None:
                    rule.read(value[name])
                elif name in self.required:
                    raise Invalid(f"is missing: use {rule}")
            except Invalid as error:
                raise error.below(name) from None
        check_size(value, self.max_size)
        return value

    def schema(self) -> Schema:
        schema: Schema = {"type": "object"}
        required = {name: rule.schema() for name, rule in self.required.items()}
        if properties := required | {name: nullable(rule.schema()) for name, rule in self.optional.items()}:
            schema["properties"] = properties
        if required:
            schema["required"] = [*required]
        if self.reserved:
            schema["propertyNames"] = {"not": {"enum": [*self.reserved]}}
        if self.maximum is not None:
            schema["maxProperties"] = self.maximum
        return schema

    def __str__(self) -> str:
        return f"an object with {' and '.join(self.required)}" if self.required else "an object"


@dataclass(frozen=True)
class Tagged:
    """An object of one of several kinds, which its member `type` names. `example` is for messages."""

    kinds: Mapping[str, Members]
    example: str

    def read(self, value: Any) -> dict[str, Any]:
        tag = value.get("type") if isinstance(value, dict) else None
        if not isinstance(tag, str) or tag not in self.kinds:
            raise refuse(value, self)
        return self.kinds[tag].read(value)

    def schema(self) -> Schema:
        schemas = []
        for tag, kind in self.kinds.items():
            schema = kind.schema()
            properties = {"type": {"type": "string", "enum": [tag]}} | schema.get("properties", {})
            schemas.append(schema | {"properties": properties, "required": ["type", *schema.get("required", [])]})
        return {"anyOf": schemas}

    def __str__(self) -> str:
        return self.example


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
        ranks = [tuple((0, key) if isinstance(key, int) else (1, key) for key in error.reached) for error in errors]
        furthest = [error for error, rank in zip(errors, ranks, strict=True) if rank == max(ranks)]
        raise furthest[0] if len(furthest) == 1 and furthest[0].reached else refuse(value, self)

    def schema(self) -> Schema:
        return {"anyOf": [rule.schema() for rule in self.rules]}

    def __str__(self) -> str:
        names = [*map(str, self.rules)]
        return f"{', '.join(names[:-1])}, or {names[-1]}"


def check_size(value: Any, maximum: int | None) -> None:
    """Raise `Invalid` if the JSON text of a value has more than `maximum` characters."""
    if maximum is None:
        return
    size = len(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    if size > maximum:
        raise Invalid(f"has {size:,} characters of JSON: use up to {maximum:,}")


def nullable(schema: Schema) -> Schema:
    """The same values, and null."""
    result = dict(schema)
    if "type" in schema:
        result["type"] = [schema["type"], "null"]
    if "enum" in schema:
        result["enum"] = [*schema["enum"], None]
    if "anyOf" in schema:
        result["anyOf"] = [*schema["anyOf"], NULL]
    return result
