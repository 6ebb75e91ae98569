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
from engine.checkpoint import fingerprint
from engine.device import peak_memory
from engine.errors import BareloopError
from engine.files import local_path
from engine.llm import LLM
from engine.pickled import find_tensors
from engine.template import ChatTemplate

_fingerprint = cache(fingerprint)  # it reads hundreds of megabytes, and every turn is saved


class Agent:
    """One user's conversation, autosaved after every turn."""

    def __init__(self, load: Callable[[str], LLM], name: str, settings: Settings, autosave: bool = True) -> None:
        self.load_model = load
        self.name = name
        self.autosave = autosave
        self.stream = True
        self.session = Session(load(name), settings)
        self.path = self._new_path()

    def take(self, line: str) -> Answer:
        """A message or a command. Raises `BareloopError`, and `EOFError` where the user leaves."""
        events = execute(self, line) if is_command(line) else self.session.send(line)
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
            if not kept:
                self._keep()

    def begin(self) -> None:
        """A new conversation, with a file of its own."""
        self._keep()
        self.session.clear()
        self.session.now = datetime.now()
        self.path = self._new_path()

    def conversation(self) -> store.Conversation:
        """What is saved."""
        session = self.session
        assert session.llm.folder is not None  # it has a tokenizer
        return store.Conversation(
            turns=session.turns,
            settings=session.settings,
            start=session.start,
            summary=session.summary,
            model=self.name,
            fingerprint=_fingerprint(find_tensors(session.llm.folder)),
            template=self._template_hash(),
            date=session.now.isoformat(),
        )

    def save(self, name: str = "") -> Path:
        """Write the conversation to a file, or to its own place."""
        path = local_path(name) if name else self.path
        store.save(self.conversation(), path)
        return path

    def load(self, path: Path) -> Iterator[Notice]:
        """Go on with a saved conversation; the present one is kept in its own file. Raises where it cannot be read."""
        found = store.load(path)
        self._keep()
        settings = found.settings if found.model else replace(self.session.settings, system=found.settings.system)
        now = datetime.fromisoformat(found.date) if found.date else datetime.now()
        self.session = Session(self.session.llm, settings, now)
        self.session.turns, self.session.start, self.session.summary = found.turns, found.start, found.summary
        self.path = path if path.parent == store.folder() else self._new_path()
        yield Notice("info", f"loaded {len(found.turns)} turns from {path}")
        if found.template and found.template != self._template_hash():
            yield Notice("warning", f"it was held with {found.model}, whose chat template is another one")

    def change_model(self, name: str) -> Iterator[Notice]:
        """Go on with another model; it reads the conversation anew."""
        llm = self.load_model(name)
        before, session = self.session, Session(llm, self.session.settings, self.session.now)
        session.turns, session.summary, session.start = before.turns, before.summary, before.start
        session.statistics = before.statistics
        self.session, self.name = session, name
        yield Notice("info", f"now {name}, with a window of {llm.max_length:,} tokens")
        yield from session.warnings

    def describe(self) -> str:
        """What /stats shows."""
        session, numbers = self.session, self.session.statistics
        said = [message for turn in session.turns for message in turn]
        budget = session.budget
        used = session.count(session.shown()) if session.turns else 0
        lines = [
            f"model      {self.name}, {session.llm.device.type}, {str(session.llm.dtype).removeprefix('torch.')}",
            f"messages   {len(said)} in {len(session.turns)} turns, from turn {session.start + 1} on in the window",
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
        if not self.autosave or not self.session.turns:
            return None
        try:
            self.save()
        except BareloopError as error:
            return Notice("warning", f"not saved: {error}")
        return None

    def _template_hash(self) -> str:
        template = self.session.template
        source = template.source if isinstance(template, ChatTemplate) else ""
        return hashlib.sha256(source.encode()).hexdigest()

    def _new_path(self) -> Path:
        return store.folder() / f"{store.new_id(datetime.now())}.json"
