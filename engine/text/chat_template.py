"""Chat templates: messages to the text that a model was trained on, and to its token ids.

The reference is transformers' `apply_chat_template`, byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from datetime import datetime
from functools import cached_property, lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

from engine.runtime.errors import BareloopError, quote
from engine.runtime.files import read_json
from engine.runtime.wording import plural
from engine.text.image_prompt import IMAGE
from engine.text.message_parts import (
    ImageEncoder,
    Part,
    Source,
    image_sources,
    joined_text,
    read_parts,
    without_sources,
)
from engine.text.template_renderer import render as render_template
from engine.text.tokenizer import SPECIAL_TOKENS, Tokenizer

TAG = "CONTINUE_FINAL_MESSAGE_TAG "  # appended to a prefilled reply while it is rendered
PROBE = "bareloop"  # a text to find in what a template makes of it
MARK = "\ufdd0"  # a noncharacter, inserted into message text that looks like a control token

OURS = {"messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now", *SPECIAL_TOKENS}

# Parts of a template: comments, the code in blocks and expressions, and the strings in it.
COMMENT, CODE = re.compile(r"\{#.*?#\}", re.DOTALL), re.compile(r"\{%.*?%\}|\{\{.*?\}\}", re.DOTALL)
IMAGE_TYPE = re.compile(r"""['"]image['"]""")
STRING = re.compile(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"", re.DOTALL)

Message = Mapping[str, Any]  # {"role": …, "content": …}


class ChatTemplate:
    """A checkpoint's template with a fixed time, so that the date that some templates print does not change."""

    def __init__(
        self, source: str, tokenizer: Tokenizer, now: datetime | None = None, images: ImageEncoder | None = None
    ) -> None:
        """`images`: what gives images their token ids; None for a model that takes no images."""
        self.source = source
        self.tokenizer = tokenizer
        self.now = (now or datetime.now()).isoformat()
        self.images = images

    @staticmethod
    def load(
        folder: Path,
        tokenizer: Tokenizer,
        now: datetime | None = None,
        file: Path | None = None,
        images: ImageEncoder | None = None,
    ) -> ChatTemplate:
        """Read a Jinja file: this one, or the folder's chat_template.jinja; or else a JSON file that has the template:
        chat_template.json, a processor's, or tokenizer_config.json.

        Raises `BareloopError` if there is no template.
        """
        path = file or folder / "chat_template.jinja"
        if file is not None or path.exists():
            try:
                return ChatTemplate(path.read_text(encoding="utf-8"), tokenizer, now, images)
            except (OSError, ValueError) as error:  # ValueError: it is not UTF-8
                raise BareloopError(f"cannot read the chat template {path}: {error}") from error
        path = folder / "chat_template.json"
        source = read_json(path).get("chat_template") if path.exists() else None
        source = tokenizer.settings.get("chat_template") if source is None else source
        if isinstance(source, list):
            templates = [entry for entry in source if isinstance(entry, dict) and entry.get("name") == "default"]
            source = templates[-1].get("template") if templates else None
        if not isinstance(source, str):
            raise BareloopError(f"{folder} has no chat template: it is a base model; use a plain text prompt")
        return ChatTemplate(source, tokenizer, now, images)

    def at(self, now: datetime) -> ChatTemplate:
        """The same template at another time, at no cost: for a program that runs for days.

        Prompts share cached prefixes only while their dates are the same, so give it the date without the time of day.
        """
        template = copy(self)
        template.now = now.isoformat()
        return template

    def with_images(self, images: ImageEncoder) -> ChatTemplate:
        """The same template with another encoder of images, which may keep those of one prompt."""
        template = copy(self)
        template.images = images
        return template

    @cached_property
    def takes_tools(self) -> bool:
        """Whether the template prints `tools`: whether its code refers to them."""
        code = "".join(CODE.findall(COMMENT.sub("", self.source)))
        return re.search(r"(?<![\w.])tools\b", STRING.sub("", code)) is not None

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continues: bool | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a conversation.

        A message's content may be a list of parts: text, {"type": "text", "text": …}, and, for a model that takes them,
        images, {"type": "image", "image": source}, which are `<image>` in the text. A template that takes text alone
        gets text parts joined by line breaks; one that takes parts alone gets text as a part.
        `tools`: functions that the model may call, {"type": "function", "function": {…}} each; ignored by templates
        that do not take them. `continues`: the last message is a reply's beginning, and the text ends inside it; by
        default, if it is the assistant's and a generation prompt is wanted. `variables`: others that a template reads,
        such as `enable_thinking`.
        Raises `TemplateError` with the template's message if it rejects the messages, and `BareloopError` for a content
        that is not text or images, a last message that cannot be continued, and variables that are not the caller's.
        """
        chat, _ = self._read(messages)
        return self._render(chat, add_generation_prompt, tools, continues, variables)

    def encode(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continues: bool | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Token ids of a conversation, as `render`, with those that `images` gives to each image in its place.

        What looks like a control token in messages, tools and variables is encoded as plain text, `<image>` too.
        """
        chat, sources = self._read(messages)
        chat = [self._apart(message) for message in self.mark(chat)]
        text = self._render(chat, add_generation_prompt, self.mark(tools), continues, self.mark(variables))
        if MARK not in text:
            ids = self.tokenizer.encode(text, add_special_tokens=False)
        else:
            ids = []
            for part, control in self.split_marked(text):
                ids += self.tokenizer.encode_plain(part) if control is None else [control]
        return ids if self.images is None else self._with_images(ids, sources)

    def _read(self, messages: Sequence[Message]) -> tuple[list[dict[str, Any]], list[Source]]:
        """The messages with their contents as parts, without images' sources; these sources, in order."""
        chat: list[dict[str, Any]] = []
        sources: list[Source] = []
        for number, message in enumerate(messages, 1):
            chat.append({key: value for key, value in message.items() if value is not None})
            if "content" in chat[-1]:
                parts = read_parts(chat[-1]["content"], number, self.images is not None)
                sources += image_sources(parts)
                chat[-1]["content"] = without_sources(parts)
        if not chat:
            raise BareloopError("a conversation needs at least one message")
        if sources and not shows_images(self.source, self._special):
            raise BareloopError("this model's chat template takes no images; send text, or use another template")
        return chat, sources

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None,
        continues: bool | None,
        variables: Mapping[str, Any] | None,
    ) -> str:
        """`render` for messages whose contents are parts without sources."""
        chat = [dict(message) for message in messages]
        is_reply = chat[-1].get("role") == "assistant" and not chat[-1].get("tool_calls")
        if continues and not is_reply:
            raise BareloopError("only a reply can be continued: an assistant's message at the end, without tool calls")
        prefilled = is_reply and (add_generation_prompt if continues is None else continues)
        for message in chat:
            if "content" in message and not self._keeps_parts(message["content"]):
                message["content"] = joined_text(message["content"])
        if prefilled:
            chat[-1]["content"] = _tagged(chat[-1].get("content", [] if self._keeps_parts([]) else ""))
        special = self.tokenizer.special_tokens
        for name in variables or ():
            if name in OURS or name in special:
                raise BareloopError(f"the template variable {quote(name)} is not for the caller to set; leave it out")
        everything = {
            **(variables or {}),
            **special,
            "messages": chat,
            "tools": list(tools) if tools else None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt and not prefilled,
        }
        text = render_template(self.source, everything, self.now)
        if not prefilled:
            return text
        index = text.rfind(TAG.strip())
        if index < 0:
            raise BareloopError("the chat template drops the last reply, so it cannot be continued")
        return text[:index] if text[index : index + len(TAG)] == TAG else text[:index].rstrip()

    @property
    def _special(self) -> tuple[tuple[str, str], ...]:
        return tuple(self.tokenizer.special_tokens.items())

    def _with_images(self, ids: Sequence[int], sources: Sequence[Source]) -> list[int]:
        """The ids with those of the k-th image in place of the k-th `<image>`."""
        assert self.images is not None
        image = self.tokenizer.token_id(IMAGE)
        found = sum(token == image for token in ids)
        if found != len(sources):
            raise BareloopError(
                f"the chat template shows {plural(found, 'image')} where the messages have {len(sources)}; "
                "use another template, or fewer messages with images"
            )
        left = iter(sources)
        result: list[int] = []
        for token in ids:
            result += self.images.encode(next(left)) if token == image else [token]
        return result

    def _keeps_parts(self, parts: Sequence[Part]) -> bool:
        """Whether the template gets a message's parts, and not their text."""
        has_images = any(part["type"] == "image" for part in parts)
        return has_images or takes_parts_alone(self.source, self._special)

    def _apart(self, message: dict[str, Any]) -> dict[str, Any]:
        """A marked message, with a `MARK` after each text if the template could make a control token of several."""
        parts = message.get("content", ())
        texts = [part["text"] for part in parts if part["type"] == "text"]
        if len(texts) < 2 or not self._control.search("".join(texts)) or not self._keeps_parts(parts):
            return message
        apart = [part | {"text": part["text"] + MARK} if part["type"] == "text" else part for part in parts]
        return {**message, "content": apart}

    def mark(self, value: Any) -> Any:
        """The same messages, tools or variables, with a `MARK` in what looks like a control token."""
        if isinstance(value, str):
            return self._control.sub(lambda match: match[0][:1] + MARK + match[0][1:], value)
        if isinstance(value, Mapping):
            return {self.mark(key): self.mark(item) for key, item in value.items()}
        return [self.mark(item) for item in value] if isinstance(value, list | tuple) else value

    def split_marked(self, text: str) -> Iterator[tuple[str, int | None]]:
        """Split the text of marked messages into control tokens, with ids, and the texts between, without marks."""
        position = 0
        for match in self._control.finditer(text):
            if position < match.start():
                yield text[position : match.start()].replace(MARK, ""), None
            yield match[0], self.tokenizer.control_tokens[match[0]]
            position = match.end()
        if position < len(text):
            yield text[position:].replace(MARK, ""), None

    @cached_property
    def _control(self) -> re.Pattern[str]:
        """Any control token; the longest one where several begin."""
        names = sorted(self.tokenizer.control_tokens, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names)) or "(?!)")

    def reply_starts(self, ids: Sequence[int]) -> list[int]:
        """The lengths in a conversation's ids right after each generation prompt, where a reply begins.

        Up to there it equals the prompt of that reply. Empty for a template whose generation prompt has no control
        token, by which it would be found.
        """
        pattern, ids = self._generation_prompt, list(ids)
        if not pattern:
            return []
        starts = (index for index, token in enumerate(ids) if token == pattern[0])
        return [index + len(pattern) for index in starts if ids[index : index + len(pattern)] == pattern]

    @cached_property
    def _generation_prompt(self) -> list[int]:
        """The ids that `add_generation_prompt` adds, from the first control token; empty if there is none."""
        try:
            without, ids = (self.encode([{"role": "user", "content": "x"}], wanted) for wanted in (False, True))
        except BareloopError:  # it wants another conversation
            return []
        start = next((i for i, pair in enumerate(zip_longest(ids, without)) if pair[0] != pair[1]), len(ids))
        return next((ids[i:] for i in range(start, len(ids)) if ids[i] in self.tokenizer.special_ids), [])


@lru_cache(maxsize=16)
def takes_parts_alone(source: str, special: tuple[tuple[str, str], ...]) -> bool:
    """Whether a template shows text only as a list of parts, as SmolVLM's, which goes through a string's characters.

    It is tried once; a template that does not speak of images is not, as it is one for text.
    """
    if IMAGE_TYPE.search(source) is None:
        return False
    part = [{"type": "text", "text": PROBE}]
    return PROBE not in _tried(source, special, PROBE) and PROBE in _tried(source, special, part)


@lru_cache(maxsize=16)
def shows_images(source: str, special: tuple[tuple[str, str], ...]) -> bool:
    """Whether a template writes `<image>` for an image part. It is tried once."""
    parts = [{"type": "image"}, {"type": "text", "text": PROBE}]
    return _tried(source, special, parts).count(IMAGE) == 1


def _tried(source: str, special: tuple[tuple[str, str], ...], content: Any) -> str:
    """A template's text of one message; empty if it fails."""
    variables = {**dict(special), "messages": [{"role": "user", "content": content}], "add_generation_prompt": True}
    try:
        return render_template(source, variables, datetime(2024, 1, 1).isoformat())
    except BareloopError:
        return ""


def _tagged(content: Any) -> Any:
    """A reply's content with `TAG` at its end."""
    if isinstance(content, str):
        return content + TAG
    if content and content[-1]["type"] == "text":
        return [*content[:-1], {"type": "text", "text": content[-1]["text"] + TAG}]
    return [*content, {"type": "text", "text": TAG}]
