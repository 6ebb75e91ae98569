"""Chat templates: messages to the text that a model was trained on, and to its token ids.

The reference is transformers' `apply_chat_template`, byte for byte.
"""

from __future__ import annotations

import atexit
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from datetime import datetime
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

from engine.runtime.errors import BareloopError, TemplateError, quote
from engine.text.tokenizer import SPECIAL_TOKENS, Tokenizer, check_text

CPU_LIMIT = 0.8  # seconds of CPU time per rendering; real templates take milliseconds
TIMEOUT = 60.0  # seconds of real time for the worker to start, or to answer, however busy the machine is
TAG = "CONTINUE_FINAL_MESSAGE_TAG "  # appended to a prefilled reply while it is rendered
MARK = "\ufdd0"  # a noncharacter, inserted into message text that looks like a control token

OURS = {"messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now", *SPECIAL_TOKENS}

# Parts of a template: comments, the code in blocks and expressions, and the strings in it.
COMMENT, CODE = re.compile(r"\{#.*?#\}", re.DOTALL), re.compile(r"\{%.*?%\}|\{\{.*?\}\}", re.DOTALL)
STRING = re.compile(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"", re.DOTALL)

Message = Mapping[str, Any]  # {"role": …, "content": …}


class ChatTemplate:
    """A checkpoint's template with a fixed time, so that the date that some templates print does not change."""

    def __init__(self, source: str, tokenizer: Tokenizer, now: datetime | None = None) -> None:
        self.source = source
        self.tokenizer = tokenizer
        self.now = (now or datetime.now()).isoformat()

    @staticmethod
    def load(folder: Path, tokenizer: Tokenizer, now: datetime | None = None, file: Path | None = None) -> ChatTemplate:
        """Read a Jinja file: this one, or the folder's chat_template.jinja; or else tokenizer_config.json.

        Raises `BareloopError` if there is no template.
        """
        path = file or folder / "chat_template.jinja"
        if file is not None or path.exists():
            try:
                return ChatTemplate(path.read_text(encoding="utf-8"), tokenizer, now)
            except (OSError, ValueError) as error:  # ValueError: it is not UTF-8
                raise BareloopError(f"cannot read the chat template {path}: {error}") from error
        source = tokenizer.settings.get("chat_template")
        if isinstance(source, list):
            templates = [entry for entry in source if isinstance(entry, dict) and entry.get("name") == "default"]
            source = templates[-1].get("template") if templates else None
        if not isinstance(source, str):
            raise BareloopError(f"{folder} has no chat template: it is a base model; use a plain text prompt")
        return ChatTemplate(source, tokenizer, now)

    def at(self, now: datetime) -> ChatTemplate:
        """The same template at another time, at no cost: for a program that runs for days.

        Prompts share cached prefixes only while their dates are the same, so give it the date without the time of day.
        """
        template = copy(self)
        template.now = now.isoformat()
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

        A message's content may be a list of text parts, {"type": "text", "text": …}, which are joined by line breaks.
        `tools`: functions that the model may call, {"type": "function", "function": {…}} each; ignored by templates
        that do not take them. `continues`: the last message is a reply's beginning, and the text ends inside it; by
        default, if it is the assistant's and a generation prompt is wanted. `variables`: others that a template reads,
        such as `enable_thinking`.
        Raises `TemplateError` with the template's message if it rejects the messages, and `BareloopError` for a content
        that is not text, a last message that cannot be continued, and variables that are not the caller's.
        """
        chat = [{key: value for key, value in message.items() if value is not None} for message in messages]
        for number, message in enumerate(chat, 1):
            if "content" in message:
                message["content"] = _text_content(message["content"], number)
        if not chat:
            raise BareloopError("a conversation needs at least one message")
        is_reply = chat[-1].get("role") == "assistant" and not chat[-1].get("tool_calls")
        if continues and not is_reply:
            raise BareloopError("only a reply can be continued: an assistant's message at the end, without tool calls")
        prefilled = is_reply and (add_generation_prompt if continues is None else continues)
        if prefilled:
            chat[-1]["content"] = f"{chat[-1].get('content', '')}{TAG}"
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
        request = {"source": self.source, "variables": everything, "now": self.now, "cpu_limit": CPU_LIMIT}
        text = _RENDERER.render(request)
        if not prefilled:
            return text
        index = text.rfind(TAG.strip())
        if index < 0:
            raise BareloopError("the chat template drops the last reply, so it cannot be continued")
        return text[:index] if text[index : index + len(TAG)] == TAG else text[:index].rstrip()

    def encode(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continues: bool | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Token ids of a conversation, as `render`.

        What looks like a control token in messages, tools and variables is encoded as plain text.
        """
        text = self.render(
            self.mark(messages),
            add_generation_prompt,
            tools=self.mark(tools),
            continues=continues,
            variables=self.mark(variables),
        )
        if MARK not in text:
            return self.tokenizer.encode(text, add_special_tokens=False)
        ids: list[int] = []
        for part, control in self.split_marked(text):
            ids += self.tokenizer.encode_plain(part) if control is None else [control]
        return ids

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


def _text_content(content: Any, number: int) -> str:
    """The content of message `number` as text: a string, or a list of text parts."""
    if isinstance(content, str):
        parts = [content]
    elif isinstance(content, list | tuple):
        for part in content:
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            if kind != "text" or not isinstance(part.get("text"), str):
                raise BareloopError(f"message {number}: content of type {quote(kind)} is not supported; use text parts")
        parts = [part["text"] for part in content]
    else:
        raise BareloopError(f"message {number}: content is text or a list of text parts, not {type(content).__name__}")
    for part in parts:
        try:
            check_text(part)
        except BareloopError as error:
            raise BareloopError(f"message {number}: {error}") from None
    return "\n".join(parts)


class _Renderer:
    """The worker process, started on first use, and again after a worker that had to be killed."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.lock = threading.Lock()

    def render(self, request: Mapping[str, Any]) -> str:
        """Render one template, within `CPU_LIMIT`."""
        try:
            line = json.dumps(request) + "\n"
        except (TypeError, ValueError) as error:
            raise BareloopError(f"messages may only have text, numbers, lists and objects: {error}") from error
        with self.lock:
            answer = self._ask(line)
        if answer is None:
            raise BareloopError(f"the chat template did not finish within {CPU_LIMIT} seconds or used too much memory")
        if "refusal" in answer:
            raise TemplateError(f"the chat template rejects these messages: {answer['refusal']}")
        if "error" in answer:
            raise BareloopError(f"the chat template fails on these messages: {answer['error']}")
        return str(answer["text"])

    def _ask(self, line: str) -> dict[str, Any] | None:
        process = self._start()
        assert process.stdin is not None
        watchdog = threading.Timer(TIMEOUT, process.kill)
        watchdog.start()
        try:
            process.stdin.write(line)
            process.stdin.flush()
            return self._read(process)
        except OSError:
            self._kill(process)
            return None
        except BaseException:  # an interrupt: the pending answer must not be read by the next request
            self._kill(process)
            raise
        finally:
            watchdog.cancel()

    def _start(self) -> subprocess.Popen[str]:
        if self.process is not None and self.process.poll() is None:
            return self.process
        program = Path(__file__).with_name("template_worker.py")
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(program)],
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # so that Ctrl-C in a terminal does not reach it
        )
        atexit.register(self.process.kill)
        watchdog = threading.Timer(TIMEOUT, self.process.kill)
        watchdog.start()
        assert self.process.stdout is not None
        ready = self.process.stdout.readline()
        watchdog.cancel()
        if not ready:
            assert self.process.stderr is not None
            reason = self.process.stderr.read().strip().splitlines()[-1:] or ["no reason given"]
            raise BareloopError(f"cannot render chat templates: {reason[0]}")
        return self.process

    def _kill(self, process: subprocess.Popen[str]) -> None:
        process.kill()
        process.wait()
        self.process = None

    def _read(self, process: subprocess.Popen[str]) -> dict[str, Any] | None:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.endswith("\n"):
            self._kill(process)
            return None
        answer = json.loads(line)
        return answer if isinstance(answer, dict) else None


_RENDERER = _Renderer()
