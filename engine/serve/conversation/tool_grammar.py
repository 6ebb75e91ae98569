"""Grammars of replies: calls of tools that a request demands, and its `response_format`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from engine.runtime.errors import UsageError
from engine.serve.conversation.messages import check_values, invalid
from engine.serve.conversation.tools import ToolChoice, ToolFormat
from engine.text.reasoning import CLOSE

if TYPE_CHECKING:  # it imports torch
    from engine.decoding.grammar import Grammar

LINE_BREAK = "\n"
MAX_CALLS = 16  # of one reply: a model that finds no end must not call until max_tokens


def reply_grammar(
    tool_format: ToolFormat, choice: ToolChoice, response_format: Mapping[str, Any] | None, in_reasoning: bool = False
) -> Grammar | None:
    """What the reply to a request must match; None for any text. Raises `ApiError` (400) that names the place.

    `in_reasoning`: the prompt ends inside `<think>`, so the reply begins with reasoning, which is free.
    """
    answer = response_grammar(response_format, in_reasoning)
    if answer is not None and choice.mode != "none":
        raise invalid(
            "response_format",
            "response_format and tools exclude each other, as a reply with tools may be a call instead; use one of "
            'them, or tool_choice "none"',
        )
    return answer or grammar(tool_format, choice, in_reasoning)


def grammar(tool_format: ToolFormat, choice: ToolChoice, in_reasoning: bool = False) -> Grammar | None:
    """The calls that `choice` demands, in the words of the format; None if it demands none.

    Arguments match the tool's `parameters`. With `parallel` there are one to `MAX_CALLS`; llama has one, as its
    templates refuse more.
    """
    if choice.mode != "required":
        return None
    tools = [(index, tool["function"]) for index, tool in enumerate(choice.tools)]
    tools = [(index, function) for index, function in tools if function["name"] in choice.names]
    lines = ["tool: " + " | ".join(f"tool_{index}" for index, _ in tools)]
    for index, function in tools:
        schema = {"type": "object"} | dict(function.get("parameters", {}))
        checked_schema(schema, f"tools[{index}].function.parameters")
        head = _literal(f'{{"name": "{function["name"]}", "{tool_format.arguments}": ')
        lines += [f'tool_{index}: {head} arguments_{index} "}}"', f"arguments_{index}: {_nested(schema)}"]
    opening, closing, between = tool_format.opening, tool_format.closing, ", "
    if tool_format.anywhere:
        lines.append(f"call: {_literal(opening + LINE_BREAK)} tool {_literal(LINE_BREAK + closing)}")
        opening, closing, between = "", "", LINE_BREAK
    else:
        lines.append("call: tool")
    more = f"({_literal(between)} call){{0,{MAX_CALLS - 1}}}" if choice.parallel and tool_format.name != "llama" else ""
    lines.append(f"calls: {_literal(opening)} call {more} {_literal(closing)}")
    return _after_reasoning("calls", lines, in_reasoning, "tools")


def response_grammar(response_format: Mapping[str, Any] | None, in_reasoning: bool = False) -> Grammar | None:
    """The grammar of a request's `response_format`; None for text. Raises `ApiError` (400) for an invalid schema."""
    match response_format:
        case {"type": "json_schema", "json_schema": {"schema": schema}}:
            place = "response_format.json_schema.schema"
        case {"type": "json_object", "schema": dict() as schema}:  # of llama.cpp's clients
            place = "response_format.schema"
        case {"json_schema": schema}:  # without a type: llama.cpp's short form
            place = "json_schema"
        case {"type": "json_object"}:
            schema, place = {"type": "object"}, "response_format"
        case _:
            return None
    result = checked_schema(schema, place)
    return _after_reasoning("answer", [f"answer: {_nested(schema)}"], True, place) if in_reasoning else result


def checked_schema(schema: Mapping[str, Any], place: str) -> Grammar:
    """The grammar of a JSON schema of a request. Raises `ApiError` (400) if it is invalid or not supported."""
    from engine.decoding.grammar import Grammar

    check_values(schema, place)
    try:
        return Grammar.json_schema(schema)
    except UsageError as error:
        raise invalid(place, f"{place}: {error}") from None


def _after_reasoning(rule: str, lines: list[str], in_reasoning: bool, place: str) -> Grammar:
    """The grammar that begins with `rule`, or with reasoning and then `rule`."""
    from engine.decoding.grammar import Grammar

    reasoning = [f"start: reasoning SPACE {rule}", rf'reasoning[suffix="{CLOSE}"]: /(.|\n)*/', r"SPACE: /\n{0,2}/"]
    try:
        return Grammar.lark("\n".join([*(reasoning if in_reasoning else [f"start: {rule}"]), *lines]))
    except UsageError as error:
        raise invalid(place, f"{place}: {error}") from None


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _nested(schema: Mapping[str, Any]) -> str:
    """A JSON schema within a Lark grammar, with the white space of `Grammar.json_schema`."""
    from engine.decoding.grammar import JSON_OPTIONS

    return "%json " + json.dumps(dict(schema) | {"x-guidance": JSON_OPTIONS}, separators=(",", ":"))
