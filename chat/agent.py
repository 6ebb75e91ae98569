"""The agent: a session, its commands and its file. Whatever drives it (a terminal, a pipe, a test) gives it lines.

agent = Agent(load, "demo", Settings())
for event in agent.take("Hi!"):         # a message, or a /command
    ...
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from functools import cache
from pathlib import Path

from chat import store
from chat.commands import execute, is_command
from chat.events import Answer, Notice, Reply, Settings
from chat.session import Session
from engine.checkpoints.pickles import find_tensors
from engine.checkpoints.safetensors import fingerprint
from engine.llm import LLM
from engine.runtime.errors import BareloopError, UsageError
from engine.runtime.files import local_path
from engine.runtime.memory import peak_memory
from engine.text.chat_template import ChatTemplate


def _stamp(path: Path) -> int:
    """When a file was written; 0 where there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


_fingerprint = cache(fingerprint)  # it reads hundreds of megabytes, and every turn is saved


class Agent:
    """One user's conversation, autosaved after every turn."""

    def __init__(self, load: Callable[[str], LLM], name: str, settings: Settings, autosave: bool = True) -> None:
        self.load_model = load
        self.name = name
        self.autosave = autosave
        self.stream = True
        self.draft = ""  # a message that waits to be sent again
        self.session = Session(load(name), settings)
        self._unsaved: Notice | None = None
        self._move_to(self._new_path())

    def take(self, line: str) -> Answer:
        """A message or a command. Raises `BareloopError`, and `EOFError` where the user leaves."""
        if self._unsaved is not None:
            yield self._unsaved
        events = execute(self, line.strip()) if is_command(line.strip()) else self.session.send(line)
        kept = False
        try:
            for event in events:
                if isinstance(event, Reply):
                    warning, kept = self._keep(), True
                    yield event
                    if warning:
                        yield warning
                else:
                    yield event
        finally:
            events.close()  # a reply that is left keeps what it said
            self._unsaved = None if kept else self._keep()  # told before the next line

    def begin(self) -> None:
        """A new conversation, with a file of its own."""
        self._keep()
        self.session.clear()
        self.session.now = datetime.now()
        self._move_to(self._new_path())

    def conversation(self) -> store.Conversation:
        """What is saved."""
        session = self.session
        return store.Conversation(
            turns=session.turns,
            settings=session.settings,
            start=session.start,
            summary=session.summary,
            model=self.name,
            fingerprint=self._weights_hash(),
            template=self._template_hash(),
            date=session.now.isoformat(),
        )

    def save(self, name: str = "") -> Path:
        """Write the conversation to a file, or to its own place. A file that is no conversation is left alone."""
        if not name:
            if self._changed_by_others():
                self._move_to(self._new_path())
            store.save(self.conversation(), self.path)
            self._written = _stamp(self.path)
            return self.path
        path = local_path(name)
        if path.is_file():
            try:
                store.load(path)
            except BareloopError:
                raise UsageError(f"{path} exists and is no conversation; name another file") from None
        store.save(self.conversation(), path)
        return path

    def load(self, path: Path) -> Iterator[Notice]:
        """Go on with a saved conversation; the present one is kept in its own file. Raises where it cannot be read."""
        found = store.load(path)
        settings = found.settings
        if not found.model:  # a plain list of messages
            own = self.session.settings
            settings = replace(own, system=found.settings.system or own.system)
        turns, unanswered = found.turns, ""
        if turns and len(turns[-1]) == 1:
            *turns, last = turns
            unanswered = last[0]["content"]
        session = Session(self.session.llm, settings, datetime.fromisoformat(found.date) if found.date else None)
        session.turns, session.start, session.summary = turns, min(found.start, max(0, len(turns) - 1)), found.summary
        _ = session.budget, session.params  # which say what makes no sense
        self._keep()
        self.session = session
        self._move_to(path if path.parent == store.folder() else self._new_path())
        yield Notice("info", f"loaded {len(turns)} turns from {path}")
        for message in turns[-1] if turns else ():
            yield Notice("info", f"{message['role']}: {message['content']}")
        if unanswered:
            self.draft = unanswered
            yield Notice("warning", f"the last message has no reply, and waits to be sent again: {unanswered}")
        if found.template and found.template != self._template_hash():
            yield Notice("warning", f"it was held with {found.model}, whose chat template is another one")
        elif found.fingerprint and found.fingerprint != self._weights_hash():
            yield Notice("warning", f"it was held with {found.model}, and this is {self.name}")

    def change_model(self, name: str) -> Iterator[Notice]:
        """Go on with another model; it reads the conversation anew."""
        llm = self.load_model(name)
        before, session = self.session, Session(llm, self.session.settings, self.session.now)
        session.turns, session.summary, session.start = before.turns, before.summary, before.start
        session.statistics = before.statistics
        self.session, self.name = session, name
        yield Notice("info", f"now {name}, with a window of {session.budget.window:,} tokens")
        yield from session.warnings

    def describe(self) -> str:
        """What /stats shows."""
        session, numbers = self.session, self.session.statistics
        said = [message for turn in session.turns for message in turn]
        budget = session.budget
        used = session.count(session.shown()) if session.turns else 0
        lines = [
            f"model      {self.name}, {session.llm.device.type}, {str(session.llm.dtype).removeprefix('torch.')}",
            f"messages   {len(said)} in {len(session.turns)} turns, "
            + (f"from turn {session.start + 1} on in the window" if session.settings.history else "the last one shown"),
            f"window     {used:,} of {budget.window:,} tokens ({used / budget.window:.0%}), "
            f"{budget.reserve:,} reserved for the reply",
            f"strategy   {session.settings.strategy}, history {'on' if session.settings.history else 'off'}",
            f"dropped    {numbers.dropped_turns} turns, {numbers.dropped_tokens:,} tokens, in {numbers.evictions} "
            f"evictions; {numbers.summaries} summaries",
        ]
        if numbers.replies:
            prompts = sum(reply.prompt_tokens for reply in numbers.replies)
            written = sum(reply.completion_tokens for reply in numbers.replies)
            cached = sum(reply.cached_tokens for reply in numbers.replies)
            last = numbers.replies[-1]
            lines += [
                f"tokens     {prompts:,} read, {cached:,} of them from the cache ({cached / max(prompts, 1):.0%}); "
                f"{written:,} written, {written / len(numbers.replies):.0f} a turn",
                f"last       TTFT {last.ttft:.2f} s, {last.tokens_per_second:.1f} tokens/s",
            ]
        memory = peak_memory(session.llm.device)
        if memory:
            lines.append(f"memory     {memory / 2**30:.2f} GiB at most")
        return "\n".join(lines)

    def alternatives(self) -> str:
        """What /logprobs shows: each token of the last reply, how likely it was, and what else could have been."""
        replies = self.session.statistics.replies
        if not replies or not replies[-1].events or replies[-1].events[0].top_logprobs is None:
            return "no probabilities are known yet: /set logprobs 3, then say something"
        spell = self.session.llm.tokenizer.decode
        lines = []
        for event in replies[-1].events:
            others = ", ".join(
                f"{spell([token], False)!r} {math.exp(value):.1%}" for token, value in event.top_logprobs or ()
            )
            lines.append(f"{spell([event.token_id], False)!r:<16} {math.exp(event.logprob or 0):>6.1%}   {others}")
        return "\n".join(lines)

    def _keep(self) -> Notice | None:
        """Autosave; a full disk is told and costs nothing else."""
        if not self.autosave or not (self.session.turns or self._written):
            return None
        before = self.path
        try:
            self.save()
        except BareloopError as error:
            return Notice("warning", f"not saved: {error}")
        if self.path != before:
            return Notice("warning", f"{before} was changed by another program; this goes on in {self.path}")
        return None

    def _move_to(self, path: Path) -> None:
        """Save there from now on."""
        self.path = path
        self._written = _stamp(path)

    def _changed_by_others(self) -> bool:
        return _stamp(self.path) != self._written

    def _weights_hash(self) -> str:
        folder = self.session.llm.folder
        assert folder is not None  # it has a tokenizer
        return _fingerprint(find_tensors(folder))

    def _template_hash(self) -> str:
        template = self.session.template
        source = template.source if isinstance(template, ChatTemplate) else ""
        return hashlib.sha256(source.encode()).hexdigest()

    def _new_path(self) -> Path:
        return store.folder() / f"{store.new_id(datetime.now())}.json"
