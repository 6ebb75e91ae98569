"""The kinds of rows: a conversation, a prompt with its completion, or a text; checked, and not yet encoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.runtime.errors import BareloopError, quote
from engine.text.tokenizer import check_text

ROLES = ("system", "user", "assistant")
SQUAD_COLUMNS = ("title", "context", "question", "answers")
KINDS = "messages, prompt and completion, text, or SQuAD's title, context, question and answers"
HINTS = {  # a column of another program's rows -> what to do
    "conversations": "write ShareGPT's conversations as messages, each with role (system, user, assistant) and content",
    "instruction": "write Alpaca's instruction and input as prompt, and its output as completion",
}


@dataclass(frozen=True)
class Conversation:
    """Messages. `learned`: the assistant's messages that are learned, by their place."""

    messages: list[dict[str, Any]]
    learned: list[int]
    has_tools: bool = False  # which are not rendered


@dataclass(frozen=True)
class Prompted:
    """A prompt, and what is to follow it."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Text:
    """A text that is learned as a whole."""

    text: str


Row = Conversation | Prompted | Text


def parse_row(row: Any, place: str) -> Row:
    """What a row says. Raises `BareloopError`, which begins with `place`, for one that cannot be learned from."""
    try:
        if not isinstance(row, Mapping):
            raise BareloopError(f"it is a JSON {type(row).__name__}, not an object")
        row = {key: value for key, value in row.items() if value is not None}  # parquet fills missing columns
        if "messages" in row:
            return _conversation(_messages(row["messages"], "messages"), 0, bool(row.get("tools")))
        if "prompt" in row and "completion" in row:
            return _prompted(row["prompt"], row["completion"], bool(row.get("tools")))
        if "text" in row:
            return Text(_text(row["text"], "text"))
        if all(column in row for column in SQUAD_COLUMNS):
            return _squad(row)
        names = ", ".join(quote(name) for name in list(row)[:8]) or "nothing"
        hint = next((f"; {text}" for column, text in HINTS.items() if column in row), "")
        raise BareloopError(f"it has {names}; a row has {KINDS}{hint}")
    except BareloopError as error:
        raise BareloopError(f"{place}: {error}") from None


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise BareloopError(f"{name} is a {type(value).__name__}, not text")
    if not value.strip():
        raise BareloopError(f"{name} is empty")
    check_text(value)
    return value


def _messages(value: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise BareloopError(f"{name} is a {type(value).__name__}, not a list")
    if not value:
        raise BareloopError(f"{name} is empty")
    return [_message(message, f"message {number} of {name}") for number, message in enumerate(value, 1)]


def _message(message: Any, name: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise BareloopError(f"{name} is a {type(message).__name__}, not an object with role and content")
    message = {key: value for key, value in message.items() if value is not None}
    role = message.get("role")
    if role not in ROLES:
        raise BareloopError(f"{name} has the role {quote(role)}; use one of {', '.join(ROLES)}")
    if message.get("tool_calls"):
        raise BareloopError(f"{name} calls a tool, which cannot be learned yet; leave this row out")
    content = message.get("content")
    if isinstance(content, list):  # parts, which the template's renderer checks
        if any(isinstance(part, Mapping) and str(part.get("type")).startswith("image") for part in content):
            raise BareloopError(f"{name} has an image, which cannot be learned from yet; leave this row out")
        parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        content = "\n".join(part if isinstance(part, str) else "" for part in parts)
    if role == "assistant":
        _text(content, f"the content of {name}")
    elif not isinstance(content, str):
        raise BareloopError(f"the content of {name} is a {type(content).__name__}, not text")
    return message


def _conversation(messages: Sequence[Mapping[str, Any]], first: int, has_tools: bool) -> Conversation:
    """The assistant's messages from `first` on are learned, but those of weight 0, as in OpenAI's files."""
    replies = [i for i, message in enumerate(messages) if i >= first and message["role"] == "assistant"]
    if not replies:
        raise BareloopError("it has no assistant message, so there is nothing to learn")
    learned = [i for i in replies if messages[i].get("weight", 1) != 0]
    if not learned:
        raise BareloopError("all its assistant messages have weight 0, so there is nothing to learn")
    plain = [{key: value for key, value in message.items() if key != "weight"} for message in messages]
    return Conversation(plain, learned, has_tools)


def _prompted(prompt: Any, completion: Any, has_tools: bool) -> Row:
    if isinstance(prompt, list) and isinstance(completion, list):
        before, after = _messages(prompt, "prompt"), _messages(completion, "completion")
        return _conversation([*before, *after], len(before), has_tools)
    if isinstance(prompt, list) or isinstance(completion, list):
        raise BareloopError("one of prompt and completion is a list; use two texts, or two lists of messages")
    return Prompted(_text(prompt, "prompt"), _text(completion, "completion"))


def _squad(row: Mapping[str, Any]) -> Prompted:
    """A row of SQuAD as `python -m evals.squad` asks it zero-shot, with its first answer."""
    answers = row["answers"]
    texts = answers.get("text") if isinstance(answers, Mapping) else None
    if not isinstance(texts, Sequence) or isinstance(texts, str) or not len(texts):
        raise BareloopError("answers has no text; SQuAD 2's questions without an answer cannot be learned")
    title, passage, question = (_text(row[name], name) for name in SQUAD_COLUMNS[:3])
    prompt = f"Title: {title}\nBackground: {passage}\nQuestion: {question}\nAnswer:"
    return Prompted(prompt, f" {_text(texts[0], 'the first answer').strip()}")
