"""Chat templates: messages -> the text that a model was trained to see, and its ids.

The reference is transformers' `apply_chat_template`, byte for byte.
"""

from __future__ import annotations

import atexit
import json
import re
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from engine.runtime.errors import BareloopError, TemplateError
from engine.text.tokenizer import Tokenizer

SECONDS = 0.8  # for one rendering; real templates take milliseconds
STARTUP = 30.0  # seconds for the renderer to start
TAG = "CONTINUE_FINAL_MESSAGE_TAG "  # stands after a prefilled answer while it is rendered
MARK = "\ufdd0"  # a code point that is no character: stands inside what only looks like a control token

Message = Mapping[str, Any]  # {"role": …, "content": …}


class ChatTemplate:
    """One checkpoint's template, at one moment: the date that some templates print does not change under way."""

    def __init__(self, source: str, tokenizer: Tokenizer, now: datetime | None = None) -> None:
        self.source = source
        self.tokenizer = tokenizer
        self.now = (now or datetime.now()).isoformat()

    @staticmethod
    def load(folder: Path, tokenizer: Tokenizer, now: datetime | None = None) -> ChatTemplate:
        """From chat_template.jinja or tokenizer_config.json; raises where a checkpoint has none."""
        path = folder / "chat_template.jinja"
        if path.exists():
            return ChatTemplate(path.read_text(encoding="utf-8"), tokenizer, now)
        found = tokenizer.settings.get("chat_template")
        if isinstance(found, list):
            named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
            found = named.get("default")
        if not isinstance(found, str):
            raise BareloopError(f"{folder} has no chat template: it is a base model; give it plain text to continue")
        return ChatTemplate(found, tokenizer, now)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The text of a conversation.

        Where the last message is the assistant's, it is a prefilled answer: the text ends inside it.
        Raises `BareloopError` with the template's own words where it refuses the messages.
        """
        chat = [{key: value for key, value in message.items() if value is not None} for message in messages]
        for message in chat:
            if not isinstance(message.get("content", ""), str):
                raise BareloopError(f"a message's content is text, not {type(message['content']).__name__}")
        if not chat:
            raise BareloopError("a conversation needs at least one message")
        prefilled = add_generation_prompt and chat[-1].get("role") == "assistant"
        if prefilled:
            chat[-1]["content"] = f"{chat[-1].get('content', '')}{TAG}"
        variables = {
            **self.tokenizer.special_tokens,
            "messages": chat,
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt and not prefilled,
        }
        text = _RENDERER.render({"source": self.source, "variables": variables, "now": self.now})
        if not prefilled:
            return text
        at = text.rfind(TAG.strip())
        if at < 0:
            raise BareloopError("the chat template drops the last answer, so it cannot be continued")
        return text[:at] if text[at : at + len(TAG)] == TAG else text[:at].rstrip()

    def encode(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]:
        """The ids of a conversation. What looks like a control token inside a message stays plain text."""
        control = re.compile(
            "|".join(map(re.escape, sorted(self.tokenizer.control_tokens, key=len, reverse=True))) or "(?!)"
        )

        def mark(value: Any) -> Any:
            if isinstance(value, str):
                return control.sub(lambda hit: hit[0][:1] + MARK + hit[0][1:], value)
            if isinstance(value, Mapping):
                return {key: mark(item) for key, item in value.items()}
            return [mark(item) for item in value] if isinstance(value, list | tuple) else value

        marked = [mark(message) for message in messages]
        text = self.render(marked, add_generation_prompt)
        if MARK not in text:
            return self.tokenizer.encode(text, add_special_tokens=False)
        ids: list[int] = []
        position = 0
        for hit in [*control.finditer(text), None]:
            plain = text[position : hit.start() if hit else len(text)].replace(MARK, "")
            ids += self.tokenizer.encode_plain(plain) if plain else []
            if hit:
                ids.append(self.tokenizer.control_tokens[hit[0]])
                position = hit.end()
        return ids


class _Renderer:
    """The rendering process, started on first use and again after one that had to be ended."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.lock = threading.Lock()

    def render(self, request: Mapping[str, Any]) -> str:
        """One template's text, within a second."""
        try:
            line = json.dumps(request) + "\n"
        except (TypeError, ValueError) as error:
            raise BareloopError(f"messages are plain text, numbers and lists: {error}") from error
        with self.lock:
            answer = self._ask(line)
        if answer is None:
            raise BareloopError(f"the chat template did not finish within {SECONDS} seconds or used too much memory")
        if "refusal" in answer:
            raise TemplateError(f"the chat template refuses these messages: {answer['refusal']}")
        if "error" in answer:
            raise BareloopError(f"the chat template fails on these messages: {answer['error']}")
        return str(answer["text"])

    def _ask(self, line: str) -> dict[str, Any] | None:
        process = self._started()
        assert process.stdin is not None
        watchdog = threading.Timer(SECONDS, process.kill)
        watchdog.start()
        try:
            process.stdin.write(line)
            process.stdin.flush()
            return self._read(process)
        except OSError:
            self._end(process)
            return None
        except BaseException:  # an interrupt: its answer must not become the next request's
            self._end(process)
            raise
        finally:
            watchdog.cancel()

    def _started(self) -> subprocess.Popen[str]:
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
            start_new_session=True,  # a terminal's Ctrl-C is not for it
        )
        atexit.register(self.process.kill)
        watchdog = threading.Timer(STARTUP, self.process.kill)
        watchdog.start()
        assert self.process.stdout is not None
        ready = self.process.stdout.readline()
        watchdog.cancel()
        if not ready:
            assert self.process.stderr is not None
            reason = self.process.stderr.read().strip().splitlines()[-1:] or ["no reason given"]
            raise BareloopError(f"cannot render chat templates: {reason[0]}")
        return self.process

    def _end(self, process: subprocess.Popen[str]) -> None:
        process.kill()
        process.wait()
        self.process = None

    def _read(self, process: subprocess.Popen[str]) -> dict[str, Any] | None:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.endswith("\n"):
            self._end(process)
            return None
        answer = json.loads(line)
        return answer if isinstance(answer, dict) else None


_RENDERER = _Renderer()
