"""The messages of a chat request: checked, and in the shape that chat templates read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from engine.runtime.errors import BareloopError, quote
from engine.serve.conversation import images
from engine.serve.protocol.common import MAX_TEXT
from engine.serve.protocol.errors import ApiError
from engine.serve.protocol.fields import MAX_DEPTH
from engine.text.tokenizer import check_text

MAX_NAME = 256  # characters of a role, a name or an id


def prepare(messages: Any) -> list[dict[str, Any]]:
    """Messages for a chat template: contents are text, and the arguments of tool calls are objects.

    Kept: role (developer becomes system), content (text parts are joined by line breaks), name; of a tool also
    tool_call_id; of the assistant also tool_calls and reasoning_content, which may be called reasoning. Everything else
    is dropped. The content of a message with images stays a list of parts: {"type": "text", "text": …} and
    {"type": "image", "image": bytes}.
    Raises `ApiError` (400) whose `param` names the place, such as `messages[3].content[0].type`.
    """
    if not isinstance(messages, list) or not messages:
        raise invalid("messages", "messages must be a list of at least one message")
    length = check_values(messages, "messages") - sum(len(url) for _, url in images.find_images(messages))
    if length > MAX_TEXT:
        raise invalid("messages", f"messages have {length:,} characters of text: use up to {MAX_TEXT:,}")
    return [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _message(message: Any, place: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise invalid(place, f"{place} must be an object with role and content, not {quote(message)}")
    role = message.get("role")
    if not isinstance(role, str) or not 1 <= len(role) <= MAX_NAME:
        wanted = "system, developer, user, assistant or tool"
        raise invalid(f"{place}.role", f"{place}.role must be {wanted}, not {quote(role)}")
    is_assistant = role == "assistant"
    content = message.get("content")
    result: dict[str, Any] = {"role": "system" if role == "developer" else role}
    if message.get("name") is not None:
        result["name"] = name(message["name"], f"{place}.name")
    if role == "tool" and message.get("tool_call_id") is not None:
        result["tool_call_id"] = name(message["tool_call_id"], f"{place}.tool_call_id")
    if is_assistant:
        if message.get("function_call") is not None:
            raise invalid(f"{place}.function_call", f"{place}.function_call is not supported: use tool_calls")
        key = "reasoning" if message.get("reasoning_content") is None else "reasoning_content"
        if message.get(key) is not None:
            result["reasoning_content"] = text(message[key], f"{place}.{key}")
        if message.get("tool_calls"):
            result["tool_calls"] = _tool_calls(message["tool_calls"], f"{place}.tool_calls")
        if content is None and message.get("refusal") is not None:
            content = text(message["refusal"], f"{place}.refusal")
    if content is None and not (result.keys() & {"tool_calls", "reasoning_content"}):
        needed = "content or tool_calls" if is_assistant else "content"
        raise invalid(f"{place}.content", f"{place} has no {needed}")
    # Some templates fail on an assistant's message without content, or print None.
    return result | {"content": "" if content is None else _content(content, f"{place}.content", role)}


def _content(content: Any, place: str, role: str) -> str | list[dict[str, Any]]:
    """A content as text, whose parts are joined as `ChatTemplate` joins them; a list of parts if there are images."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise invalid(place, f"{place} must be text or a list of parts, not {quote(content)}")
    parts: list[dict[str, Any]] = []
    for index, part in enumerate(content):
        at = f"{place}[{index}]"
        if not isinstance(part, Mapping):
            raise invalid(at, f'{at} must be a part such as {{"type": "text", "text": "…"}}, not {quote(part)}')
        kind = part.get("type")
        if kind == images.TYPE:
            if role != "user":
                raise invalid(f"{at}.type", f"{at}: only messages of the user have images, not those of {quote(role)}")
            parts.append(images.read_part(part, at))
            continue
        if kind != "text" and not (kind == "refusal" and role == "assistant"):
            known = "text parts, or image_url parts of the user"
            raise invalid(f"{at}.type", f"{at}: parts of type {quote(kind)} are not supported: send {known}")
        parts.append({"type": "text", "text": text(part.get(kind), f"{at}.{kind}")})
    if any(part["type"] == "image" for part in parts):
        return parts
    return "\n".join(part["text"] for part in parts)


def _tool_calls(calls: Any, place: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise invalid(place, f"{place} must be a list of tool calls, not {quote(calls)}")
    return [_tool_call(call, f"{place}[{index}]") for index, call in enumerate(calls)]


def _tool_call(call: Any, place: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        shape = '{"id": "…", "type": "function", "function": {"name": "…", "arguments": "{…}"}}'
        raise invalid(place, f"{place} must be {shape}, not {quote(call)}")
    if call.get("type", "function") != "function":
        raise invalid(f"{place}.type", f"{place}.type must be 'function', not {quote(call['type'])}")
    identifier = {} if call.get("id") is None else {"id": name(call["id"], f"{place}.id")}
    called = name(function.get("name"), f"{place}.function.name")
    arguments = _arguments(function.get("arguments"), f"{place}.function.arguments")
    return identifier | {"type": "function", "function": {"name": called, "arguments": arguments}}


def _arguments(arguments: Any, place: str) -> dict[str, Any]:
    """A tool call's arguments as an object: clients send JSON text, and templates print it with `tojson`."""
    if arguments in (None, ""):  # of a function without parameters
        return {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise invalid(place, f"{place} is not valid JSON ({error}): {quote(arguments)}") from None
        check_values(arguments, place)
    if not isinstance(arguments, Mapping):
        raise invalid(place, f"{place} must be the JSON text of an object, not {quote(arguments)}")
    return dict(arguments)


def _no_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def check_values(value: Any, place: str) -> int:
    """Check JSON values. -> the number of characters of all texts

    Raises `ApiError` for values that are nested too deeply to be rendered, or have half a surrogate pair.
    """
    pending, length = [(value, 1, place)], 0
    while pending:
        item, depth, at = pending.pop()
        if isinstance(item, str):
            _check_text(item, at)
            length += len(item)
        if isinstance(item, Mapping | list) and depth > MAX_DEPTH:
            raise invalid(place, f"{place} is nested more than {MAX_DEPTH} levels deep")
        if isinstance(item, list):
            pending += [(child, depth + 1, f"{at}[{index}]") for index, child in enumerate(item)]
        elif isinstance(item, Mapping):
            for key, child in item.items():
                _check_text(key, at)
                length += len(key)
                named = f"{at}.{key}" if key.isidentifier() and len(key) <= MAX_NAME else f"{at}[{quote(key)}]"
                pending.append((child, depth + 1, named))
    return length


def _check_text(value: str, place: str) -> None:
    try:
        check_text(value)
    except BareloopError as error:
        raise invalid(place, f"{place}: {error}") from None


def text(value: Any, place: str) -> str:
    """A string of a request, or `ApiError`."""
    if not isinstance(value, str):
        raise invalid(place, f"{place} must be text, not {quote(value)}")
    return value


def name(value: Any, place: str) -> str:
    """A short string of a request, or `ApiError`."""
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_NAME:
        raise invalid(place, f"{place} must be text of 1 to {MAX_NAME} characters, not {quote(value)}")
    return value


def invalid(param: str, message: str) -> ApiError:
    """A refusal that names the field."""
    return ApiError(400, message, param)
