"""Tools of a chat request, and how models are told of them and call them.

| format | how a call is written | models |
|---|---|---|
| hermes | `<tool_call>` {"name": …, "arguments": {…}} `</tool_call>`, anywhere, repeated | Qwen2.5, Qwen3 |
| llama | the whole reply is {"name": …, "parameters": {…}} | Llama 3.1, 3.2 |
| mistral | the whole reply is [{"name": …, "arguments": {…}}, …] | Mistral Nemo |
| generic | as hermes | templates that print no tools: the system message describes them |
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Literal

from engine.runtime.errors import quote
from engine.serve.conversation.messages import check_values, invalid, text
from engine.serve.protocol.common import MAX_TOOLS

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
MISTRAL_ID = re.compile(r"[A-Za-z0-9]{9}")

# As Qwen2.5's and Hermes' templates write it, so that models which saw that format know it.
DESCRIPTION = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""

Message = Mapping[str, Any]


@dataclass(frozen=True)
class ToolChoice:
    """The tools of a request, and which of them a reply may or must call."""

    tools: list[dict[str, Any]]
    mode: Literal["none", "auto", "required"] = "none"
    name: str | None = None  # the only tool that may be called; mode is then "required"
    parallel: bool = True

    @property
    def names(self) -> frozenset[str]:
        """The names of the tools that may be called; none in mode "none"."""
        if self.mode == "none":
            return frozenset()
        return frozenset({self.name} if self.name else {tool["function"]["name"] for tool in self.tools})


def check(tools: Any, tool_choice: Any = None, parallel: bool | None = None) -> ToolChoice:
    """A request's `tools`, `tool_choice` and `parallel_tool_calls`. Raises `ApiError` (400) that names the place."""
    if tools is not None and not isinstance(tools, list):
        raise invalid("tools", f"tools must be a list, not {quote(tools)}")
    if tools and len(tools) > MAX_TOOLS:
        raise invalid("tools", f"{len(tools)} tools are too many: send up to {MAX_TOOLS}")
    checked = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools or [])]
    names = [tool["function"]["name"] for tool in checked]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise invalid(f"tools[{index}].function.name", f"two tools have the name {quote(name)}: names are unique")
    parallel = parallel is not False
    if tool_choice is None or tool_choice == "auto":
        return ToolChoice(checked, "auto" if checked else "none", parallel=parallel)
    if tool_choice == "none":
        return ToolChoice(checked, "none", parallel=parallel)
    named = _named(tool_choice)
    if not checked:
        raise invalid("tool_choice", f"tool_choice {quote(tool_choice)} needs tools, and this request has none")
    if named is None:
        return ToolChoice(checked, "required", parallel=parallel)
    if named not in names:
        known = ", ".join(map(quote, names[:10]))
        raise invalid("tool_choice.function.name", f"tool_choice names {quote(named)}, and the tools are {known}")
    return ToolChoice(checked, "required", named, parallel=False)


def _named(tool_choice: Any) -> str | None:
    """The tool that a choice names; None for "required"."""
    if tool_choice == "required":
        return None
    if isinstance(tool_choice, str):
        raise invalid("tool_choice", f"tool_choice must be none, auto, required or an object, not {quote(tool_choice)}")
    kind = tool_choice.get("type") if isinstance(tool_choice, Mapping) else None
    function = tool_choice.get("function") if kind == "function" else None
    if isinstance(function, Mapping):
        return text(function.get("name"), "tool_choice.function.name")
    shape = '{"type": "function", "function": {"name": "…"}}'
    place = "tool_choice.type" if kind not in (None, "function") else "tool_choice"
    raise invalid(place, f"tool_choice must be none, auto, required or {shape}, not {quote(tool_choice)}")


def _tool(tool: Any, place: str) -> dict[str, Any]:
    """A tool as templates print it: without keys that are not part of the API."""
    check_values(tool, place)
    function = tool.get("function") if isinstance(tool, Mapping) else None
    kind = tool.get("type") if isinstance(tool, Mapping) else None
    if kind != "function" or not isinstance(function, Mapping):
        shape = '{"type": "function", "function": {"name": "…", "parameters": {…}}}'
        at = f"{place}.type" if kind not in (None, "function") else place
        raise invalid(at, f"{place} must be {shape}, not {quote(tool)}")
    at = f"{place}.function"
    name = function.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise invalid(f"{at}.name", f"{at}.name must be 1 to 64 letters, digits, _, . or -, not {quote(name)}")
    result: dict[str, Any] = {"name": name}
    if function.get("description") is not None:
        result["description"] = text(function["description"], f"{at}.description")
    parameters, strict = function.get("parameters"), function.get("strict")
    if parameters is not None:
        if not isinstance(parameters, Mapping):
            raise invalid(f"{at}.parameters", f"{at}.parameters must be a JSON schema, not {quote(parameters)}")
        if parameters.get("type", "object") != "object":
            kind = quote(parameters["type"])
            raise invalid(f"{at}.parameters", f"{at}.parameters must be the schema of an object, not of type {kind}")
        result["parameters"] = parameters
    if strict is not None and not isinstance(strict, bool):
        raise invalid(f"{at}.strict", f"{at}.strict must be true or false, not {quote(strict)}")
    return {"type": "function", "function": result}


@dataclass(frozen=True)
class ToolFormat:
    """How a model is told of tools, and how it writes a call. `of` finds it in the chat template."""

    name: Literal["hermes", "llama", "mistral", "generic"]
    native: bool = True  # the template prints tools; otherwise `messages` describes them
    has_system_role: bool = True  # otherwise they are described in the first user message
    anywhere: bool = False  # calls may follow text; otherwise a reply is only calls, or none
    prefix: str = ""  # may come before the first call
    opening: str = ""  # before each call if `anywhere`, else before the first
    separator: str = ""  # between calls that are not `anywhere`
    closing: str = ""  # after each call if `anywhere`, else after the last
    arguments: str = "arguments"  # the key of a call's arguments

    @staticmethod
    def of(template_source: str | None) -> ToolFormat:
        """The format of a chat template, or of a model without one."""
        source = template_source or ""
        prints_tools = re.search(r"\btools\b", source) is not None
        if prints_tools and "[TOOL_CALLS]" in source:
            return MISTRAL
        if prints_tools and "<tool_call>" in source and "<function=" not in source:  # Qwen3-Coder's calls are XML
            return HERMES
        if prints_tools and "ipython" in source and '"parameters": ' in source:
            return LLAMA
        refuses_system = re.search(r"system role (is )?not supported", source, re.IGNORECASE) is not None
        return replace(GENERIC, has_system_role=not refuses_system)

    def messages(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Prepared messages as this format's templates can render them. To be called without tools, too.

        generic: tools are described in the system message, and earlier calls and results become text. llama: each
        message has one call, followed by its result, as the template refuses more. mistral: ids have nine characters,
        as the template demands. Give the tools to the template itself only if `native`.
        """
        if self.name == "generic":
            return self._described([_as_text(message) for message in _joined(messages)], tools)
        if self.name == "llama":
            return _one_call_each(messages)
        if self.name == "mistral":
            return [_with_short_ids(message) for message in messages]
        return [dict(message) for message in messages]

    def _described(self, messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        if not tools:
            return messages
        description = DESCRIPTION.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
        if messages and messages[0]["role"] == "system":
            first = messages[0] | {"content": f"{messages[0]['content']}\n\n{description}".lstrip()}
            return [first, *messages[1:]]
        if self.has_system_role:
            return [{"role": "system", "content": description}, *messages]
        for index, message in enumerate(messages):
            if message["role"] == "user":
                first = message | {"content": _after(f"{description}\n\n", message["content"])}
                return [*messages[:index], first, *messages[index + 1 :]]
        return [{"role": "user", "content": description}, *messages]


HERMES = ToolFormat("hermes", anywhere=True, opening="<tool_call>", closing="</tool_call>")
GENERIC = replace(HERMES, name="generic", native=False)
LLAMA = ToolFormat("llama", prefix="<|python_tag|>", separator=";", arguments="parameters")
MISTRAL = ToolFormat("mistral", prefix="[TOOL_CALLS]", opening="[", separator=",", closing="]")


def _after(text: str, content: str | Sequence[Mapping[str, Any]]) -> str | list[Mapping[str, Any]]:
    """A message's content, which may be a list of parts, after a text."""
    return text + content if isinstance(content, str) else [{"type": "text", "text": text}, *content]


def _joined(messages: Sequence[Message]) -> list[Message]:
    """Results of tools that follow each other become one message, as roles often have to alternate."""
    result: list[Message] = []
    for message in messages:
        if message["role"] == "tool":
            content = f"<tool_response>\n{message['content']}\n</tool_response>"
            if result and result[-1].get("role") == "results":
                result[-1] = {"role": "results", "content": f"{result[-1]['content']}\n{content}"}
            else:
                result.append({"role": "results", "content": content})
        else:
            result.append(message)
    return result


def _as_text(message: Message) -> dict[str, Any]:
    """A message without tool calls: they are written out in its content."""
    result = {key: value for key, value in message.items() if key != "tool_calls"}
    if message["role"] == "results":
        result["role"] = "user"
    for call in message.get("tool_calls", ()):
        written = json.dumps(call["function"], ensure_ascii=False)
        result["content"] = f"{result['content']}\n<tool_call>\n{written}\n</tool_call>".lstrip()
    return result


def _one_call_each(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Calls made at once as calls one after the other, each with its result."""
    result: list[dict[str, Any]] = []
    taken: set[int] = set()
    for index, message in enumerate(messages):
        calls = message.get("tool_calls", ())
        if len(calls) < 2:
            result += [] if index in taken else [dict(message)]
            continue
        for call in calls:
            result.append(dict(message) | {"tool_calls": [call]})
            for place in range(index + 1, len(messages)):
                if messages[place]["role"] != "tool":
                    break
                if place not in taken and messages[place].get("tool_call_id") == call.get("id"):
                    taken.add(place)
                    result.append(dict(messages[place]))
                    break
    return result


def _with_short_ids(message: Message) -> dict[str, Any]:
    """A message whose ids are nine letters or digits: others are replaced by a hash."""

    def short(identifier: str) -> str:
        return identifier if MISTRAL_ID.fullmatch(identifier) else sha256(identifier.encode()).hexdigest()[:9]

    result = dict(message)
    if "tool_call_id" in result:
        result["tool_call_id"] = short(result["tool_call_id"])
    if "tool_calls" in result:
        result["tool_calls"] = [call | {"id": short(call.get("id", ""))} for call in result["tool_calls"]]
    return result
