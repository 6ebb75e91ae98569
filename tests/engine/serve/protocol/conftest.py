"""A JSON schema validator for the keywords that the API's schemas use, written from the standard."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

KINDS: dict[str, Callable[[Any], bool]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: type(value) is int or (isinstance(value, float) and value.is_integer()),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}
BOUNDS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "minimum": ("number", lambda value, bound: value >= bound),
    "maximum": ("number", lambda value, bound: value <= bound),
    "exclusiveMinimum": ("number", lambda value, bound: value > bound),
    "minLength": ("string", lambda value, bound: len(value) >= bound),
    "maxLength": ("string", lambda value, bound: len(value) <= bound),
    "pattern": ("string", lambda value, bound: re.search(bound.replace("$", r"\Z"), value) is not None),
    "minItems": ("array", lambda value, bound: len(value) >= bound),
    "maxItems": ("array", lambda value, bound: len(value) <= bound),
    "items": ("array", lambda value, bound: all(accepts(bound, item) for item in value)),
    "required": ("object", lambda value, bound: all(name in value for name in bound)),
    "maxProperties": ("object", lambda value, bound: len(value) <= bound),
    "propertyNames": ("object", lambda value, bound: all(accepts(bound, name) for name in value)),
    "additionalProperties": ("object", lambda value, bound: all(accepts(bound, item) for item in value.values())),
    "properties": (
        "object",
        lambda value, bound: all(accepts(schema, value[name]) for name, schema in bound.items() if name in value),
    ),
}
WITHOUT_RULES = {"description", "default"}


def same(one: Any, other: Any) -> bool:
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def accepts(schema: dict[str, Any], value: Any) -> bool:
    """Whether a value is valid. `additionalProperties` is used only without `properties`."""
    for word, bound in schema.items():
        if word in BOUNDS:
            kind, holds = BOUNDS[word]
            valid = not KINDS[kind](value) or holds(value, bound)
        elif word == "type":
            valid = any(KINDS[kind](value) for kind in ([bound] if isinstance(bound, str) else bound))
        elif word in ("enum", "const"):
            valid = any(same(value, each) for each in (bound if word == "enum" else [bound]))
        elif word in ("anyOf", "allOf"):
            valid = (any if word == "anyOf" else all)(accepts(each, value) for each in bound)
        elif word == "not":
            valid = not accepts(bound, value)
        else:
            assert word in WITHOUT_RULES, word
            valid = True
        if not valid:
            return False
    return True


@pytest.fixture(scope="session")
def validates():
    return accepts
