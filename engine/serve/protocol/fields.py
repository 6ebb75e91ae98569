"""Requests as frozen dataclasses, whose fields carry their rule: JSON body -> instance, and dataclass -> JSON schema.

    temperature: float | None = option(Number(0, 2), "0: the likeliest token")

null is the same as absent. Unknown fields are ignored; those in REFUSED would change the result and are not supported.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, Protocol, TypeVar

from engine.runtime.errors import quote
from engine.serve.protocol.errors import ApiError
from engine.serve.protocol.rules.containers import nullable
from engine.serve.protocol.rules.scalars import Anything, Invalid, Neutral, Path, Rule, Schema, refuse
from engine.text.surrogates import SURROGATE

MAX_DEPTH = 100  # of nested lists and objects
MAX_URLS = 4096  # data: URLs of a body
MAX_CONTAINERS = 50_000  # lists and objects: a body of 2 MB could have a million, which take seconds to check
STRING = re.compile(r'"(?:[^"\\]|\\.)*+"?', re.DOTALL)  # an unfinished one, too, so that the time is linear
SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")  # valid pairs, too


class Condition(Protocol):
    """The interface of a rule for several fields of a request."""

    def check(self, values: Mapping[str, Any]) -> None:
        """Raise `Invalid` unless the fields that are given go together."""

    def schema(self) -> Schema:
        """The same for the JSON object."""


@dataclass(frozen=True)
class Fields:
    """The base of what is read from a JSON object."""

    REFUSED: ClassVar[Mapping[str, Neutral]] = {}
    IGNORED: ClassVar[tuple[str, ...]] = ()
    CONDITIONS: ClassVar[tuple[Condition, ...]] = ()
    TAKES_IMAGES: ClassVar[bool] = False  # its messages may have images, as data: URLs


T = TypeVar("T", bound=Fields)


def option(rule: Rule, description: str, default: Any = None) -> Any:
    """A field that may be absent."""
    return field(default=default, metadata={"rule": rule, "description": description})


def required(rule: Rule, description: str) -> Any:
    """A field that must be there."""
    return field(metadata={"rule": rule, "description": description})


def read_request(kind: type[T], body: bytes) -> T:
    """Read the JSON body of a request. Raises `ApiError` 400 that names the field, its value and the limit."""
    try:
        return read_fields(kind, parse(body))
    except Invalid as error:
        param = write_path(error.path)
        raise ApiError(400, f"{param or 'the body'} {error.message}", param=param or None) from None


def text_size(body: bytes) -> int:
    """Bytes of a JSON body without its data: URLs, which are found without parsing it.

    What lies between `"data:` and the next quotation mark is within one string of the JSON text, however it is written.
    """
    size, position = len(body), 0
    for _ in range(MAX_URLS):
        start = body.find(b'"data:', position)
        if start < 0:
            break
        position = body.find(b'"', start + 1)
        if position < 0:
            return size - (len(body) - start)
        size -= position - start
    return size


def write_path(path: Path) -> str:
    """("messages", 2, "content") -> messages[2].content"""
    text = ""
    for key in path:
        name = key if isinstance(key, int) or re.fullmatch(r"[A-Za-z_]\w{0,63}", key) else quote(key)
        text += f"[{name}]" if name != key or isinstance(key, int) else f".{name}"
    return text.removeprefix(".")


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object of a body. Raises `Invalid` for all that is not one, by the standard (RFC 8259)."""
    try:
        text = body.decode()
        count = _containers(text)
        if count > MAX_CONTAINERS:
            raise Invalid(f"has {count:,} lists and objects: use up to {MAX_CONTAINERS:,}")
        value = json.loads(text, parse_constant=_constant, parse_float=_float)
    except UnicodeDecodeError as error:
        raise Invalid(f"is not UTF-8: byte {error.start} is 0x{body[error.start]:02x}") from None
    except json.JSONDecodeError as error:
        raise Invalid(f"is not valid JSON: {error}") from None
    except RecursionError:
        raise Invalid(f"is nested too deeply: use up to {MAX_DEPTH} levels") from None
    except ValueError:
        raise Invalid("has a number with too many digits") from None
    if not isinstance(value, dict):
        raise refuse(value, "a JSON object")
    has_surrogates = SURROGATE_ESCAPE.search(text) is not None
    if has_surrogates or count > MAX_DEPTH:
        _check_values(value, has_surrogates)
    return value


def _containers(text: str) -> int:
    """At least as many as there are lists and objects in a JSON text."""
    count = text.count("[") + text.count("{")
    if count <= MAX_CONTAINERS:
        return count
    text = STRING.sub("", text)
    return text.count("[") + text.count("{")


def _constant(name: str) -> float:
    raise Invalid(f"has {name}, which is not a JSON number")


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise Invalid(f"has {quote(text)}, which is too large a number")
    return value


def _check_values(value: dict[str, Any], has_surrogates: bool) -> None:
    """Check the depth, and all texts for lone surrogates, which cannot be encoded again."""
    level: list[tuple[Path, dict[str, Any] | list[Any]]] = [((), value)]
    for _ in range(MAX_DEPTH):
        below: list[tuple[Path, dict[str, Any] | list[Any]]] = []
        for path, container in level:
            for key, item in container.items() if isinstance(container, dict) else enumerate(container):
                if isinstance(item, dict | list):
                    below.append(((*path, key), item))
                if has_surrogates:
                    for text, place in ((key, path), (item, (*path, key))):
                        if isinstance(text, str) and (match := SURROGATE.search(text)):
                            half = f"U+{ord(match[0]):04X}, half of a surrogate pair"
                            raise Invalid(f"is not valid Unicode: character {match.start()} is {half}", place)
        level = below
    if level:
        raise Invalid(f"is nested too deeply: use up to {MAX_DEPTH} levels", level[0][0][:1])


def read_fields(kind: type[T], value: Mapping[str, Any]) -> T:
    """An instance from a JSON object. Raises `Invalid`."""
    values = {}
    for each in fields(kind):
        given = value.get(each.name)
        rule: Rule = each.metadata["rule"]
        try:
            if given is not None:
                values[each.name] = rule.read(given)
            elif each.default is MISSING:
                raise Invalid(f"is missing: use {rule}")
        except Invalid as error:
            raise error.below(each.name) from None
    for name, rule in kind.REFUSED.items():
        try:
            if value.get(name) is not None:
                rule.read(value[name])
        except Invalid as error:
            raise error.below(name) from None
    for condition in kind.CONDITIONS:
        condition.check(values)
    return kind(**values)


def schema_of(kind: type[Fields]) -> Schema:
    """The JSON schema of the objects that `read_fields` accepts."""
    properties: Schema = {}
    for each in fields(kind):
        schema = each.metadata["rule"].schema()
        if each.default is not MISSING:
            has_default = isinstance(each.default, bool | int | float | str)
            schema = nullable(schema) | ({"default": each.default} if has_default else {})
        properties[each.name] = schema | {"description": each.metadata["description"]}
    for name, rule in kind.REFUSED.items():
        properties[name] = nullable(rule.schema()) | {"description": f"Not supported: {rule}."}
    for name in kind.IGNORED:
        properties[name] = Anything().schema() | {"description": "Accepted, without effect."}
    result: Schema = {"type": "object", "properties": properties}
    if names := [each.name for each in fields(kind) if each.default is MISSING]:
        result["required"] = names
    if kind.CONDITIONS:
        result["allOf"] = [condition.schema() for condition in kind.CONDITIONS]
    return result


@dataclass(frozen=True)
class Record:
    """An object that is read into a dataclass."""

    kind: type[Fields]
    example: str

    def read(self, value: Any) -> Any:
        if not isinstance(value, dict):
            raise refuse(value, self)
        return read_fields(self.kind, value)

    def schema(self) -> Schema:
        return schema_of(self.kind)

    def __str__(self) -> str:
        return self.example
