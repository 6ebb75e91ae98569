"""A model that says what a test tells it, and when; and a server of the page with it, in a thread of the test.

page.script.say("Hello ", "world")     # the tokens of the next reply; without any it repeats the message
page.script.hold()                     # from now on a token comes only when the test lets it
page.script.let(1)
page.script.go()                       # all come at once again
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

from chat.context import Message
from chat.conversation.events import Settings
from chat.images import images_of, text_of
from chat.models.interface import Origin, TokenProbability
from chat.web.app import Site, make_app
from chat.web.library import Library
from chat.web.models.interface import Machine, MakeModel, Models, Progress
from chat.web.models.remote import NoEngines
from chat.web.program import PageServer, RemoteState
from engine.runtime.errors import BareloopError
from engine.serve.metrics import Metrics
from engine.serve.request_log import Observer
from engine.serve.server import listen

GUARD = 60.0  # seconds after which a test that waits has failed
KEY = "key-of-the-tests-0123456789"
END = "<|end|>"


class Script:
    """What the models of a page say. Any thread may use it."""

    def __init__(self) -> None:
        self.prompts: list[list[Message]] = []  # that models have got
        self.failure: Exception | None = None  # raised in place of the next reply
        self.blind: set[str] = set()  # models that take no images
        self._replies: deque[list[str]] = deque()
        self._allowed: float = float("inf")
        self._changed = threading.Condition()

    def say(self, *tokens: str) -> None:
        """The next reply, after those that were said before."""
        with self._changed:
            self._replies.append(list(tokens))

    def hold(self) -> None:
        """Let no token come until `let` or `go`."""
        with self._changed:
            self._allowed = 0

    def let(self, tokens: int) -> None:
        """Let so many further tokens come."""
        with self._changed:
            self._allowed += tokens
            self._changed.notify_all()

    def go(self) -> None:
        """Let all tokens come."""
        self.let(cast("int", float("inf")))

    def wait_for_prompts(self, number: int) -> None:
        """Wait until models have got so many prompts."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.prompts) >= number, GUARD)

    def next_reply(self, messages: Sequence[Message]) -> list[str]:
        """The tokens of the reply to these messages."""
        with self._changed:
            self.prompts.append([dict(message) for message in messages])
            self._changed.notify_all()
            if self.failure is not None:
                failure, self.failure = self.failure, None
                raise failure
            return self._replies.popleft() if self._replies else split(text_of(messages[-1]["content"]))

    def wait_for_turn(self, generation: Generation) -> bool:
        """Wait until a token may come. -> whether it may; the reply may have been cancelled"""
        with self._changed:
            allowed = self._changed.wait_for(lambda: self._allowed >= 1 or generation.is_cancelled, GUARD)
            if generation.is_cancelled or not allowed:
                return False
            self._allowed -= 1
            return True

    def wake(self) -> None:
        """Let replies that wait see that they were cancelled."""
        with self._changed:
            self._changed.notify_all()


@dataclass(frozen=True)
class Event:
    """A token of a reply."""

    text: str
    token_id: int | None
    finish_reason: str | None = None


class Generation:
    """A reply, as the script says it."""

    in_reasoning = False

    def __init__(self, script: Script, messages: Sequence[Message], limit: int) -> None:
        self.script, self.limit = script, limit
        self.tokens = script.next_reply(messages)
        self.prompt_tokens = count(messages)
        self.completion_tokens = 0
        self.cached_tokens = self.prompt_tokens // 2
        self.is_cancelled = False

    def __iter__(self) -> Iterator[Event]:
        for number, text in enumerate(self.tokens):
            if number >= self.limit:
                yield Event("", None, "length")
                return
            if not self.script.wait_for_turn(self):
                yield Event("", None, "cancelled")
                return
            self.completion_tokens += 1
            yield Event(text, hash(text) % 10_000)
        yield Event("", None, "stop")

    def cancel(self) -> None:
        self.is_cancelled = True
        self.script.wake()


class ScriptedModel:
    """A model whose tokens are words."""

    description = "scripted"
    others = "the name of a model"
    system_role = "anywhere"
    counts_exactly = True
    drafts = None
    peak_memory = 0
    can_score = True
    defaults = {"temperature": 0.5}  # noqa: RUF012

    def __init__(self, script: Script, name: str, window: int) -> None:
        self.script, self.name = script, name
        self.takes_images = name not in script.blind
        self.max_length = self.limit = window

    def at(self, now: object) -> ScriptedModel:
        return self

    def origin(self) -> Origin:
        return Origin(f"weights of {self.name}", "template")

    def warnings(self, window: int | None) -> list[str]:
        return []

    def count(self, messages: Sequence[Message]) -> int:
        return count(messages)

    def generate(self, messages: Sequence[Message], sampling: dict[str, Any], continues: bool) -> Generation:
        return Generation(self.script, messages, sampling["max_new_tokens"])

    def tokens(self, messages: Sequence[Message]) -> list[tuple[int, str]]:
        return [(hash(text) % 10_000, text) for message in messages for text in spelled(message)]

    def prompt_text(self, messages: Sequence[Message]) -> str:
        return "".join(text for _, text in self.tokens(messages))

    def probabilities(self, events: Sequence[Event]) -> list[TokenProbability]:
        return [token(event.text) for event in events if event.text]

    def score(self, messages: Sequence[Message]) -> list[TokenProbability]:
        first, *rest = [token(text) for _, text in self.tokens(messages)]
        return [TokenProbability(first.text, None, (), first.piece, 0.0, first.id), *rest]

    def token_bytes(self, context: int) -> int:
        return 1_000_000 + 100 * context

    def bandwidth(self) -> float:
        return 2e9

    def ends(self, text: str) -> bool:
        return text == END

    def is_control(self, text: str) -> bool:
        return text.startswith("<|")


def split(text: str) -> list[str]:
    """Words as tokens, each with the space before it."""
    words = text.split(" ")
    return [words[0], *(f" {word}" for word in words[1:])]


def spelled(message: Message) -> list[str]:
    """A message as the template writes it; an image has four tokens."""
    content, images = message["content"], ["<image>"] * 4 * len(images_of(message["content"]))
    return [
        f"<|{message['role']}|>",
        *images,
        *split(text_of(content)),
        *([END] if message["role"] != "assistant" else []),
    ]


def count(messages: Sequence[Message]) -> int:
    return sum(len(spelled(message)) for message in messages)


def token(text: str) -> TokenProbability:
    """A token with half of the probability, and three alternatives: itself, another word, the end."""
    alternatives = [(text, -0.6931471805599453), (" other", -1.3862943611198906), (END, -2.772588722239781)]
    return TokenProbability(
        text, -0.6931471805599453, alternatives, "" if text.startswith("<|") else text, 0.0, hash(text) % 10_000
    )


class ScriptedModels(Models):
    """Models with one script. `hold_loading` lets them load only when the test says so."""

    def __init__(self, script: Script, names: list[str], window: int) -> None:
        self.script, self.window = script, window
        self._names = names
        self.loaded: set[str] = set()
        self.may_load = threading.Event()
        self.may_load.set()
        self.load_failure: Exception | None = None

    @property
    def names(self) -> list[str]:
        return self._names

    def about(self, name: str) -> str:
        return f"{name} says what a test tells it"

    def resolve(self, name: str) -> str | None:
        return name if name in self.names else None

    def is_wanted(self, name: str) -> bool:
        return name in self.loaded

    @asynccontextmanager
    async def use(self, name: str, progress: Progress) -> AsyncIterator[MakeModel]:
        if name not in self.loaded:
            progress(0.0, 1000, False)
            await asyncio.to_thread(self.may_load.wait, GUARD)
            if self.load_failure is not None:
                failure, self.load_failure = self.load_failure, None
                progress(0.5, 1000, True)
                raise failure
            self.loaded.add(name)
            progress(0.5, 1000, True)
        yield lambda now: ScriptedModel(self.script, name, self.window)

    def machine(self, model: object) -> Machine:
        return Machine("cpu", "words", 1000)


class RunningPage:
    """A server of the page on a free port. `url` has the key; `XDG_DATA_HOME` says where conversations are kept."""

    def __init__(
        self,
        names: Sequence[str] = ("scripted", "other"),
        window: int = 4096,
        autosave: bool = True,
        port: int = 0,
        **settings: Any,
    ) -> None:
        self.names, self.window = list(names), window
        self.state = RemoteState(NoEngines(self.names), Observer(Metrics([]), quiet=True))
        self.listener = listen("127.0.0.1", port)
        self.port = self.listener.getsockname()[1]
        self.base = f"http://127.0.0.1:{self.port}"
        self.url = f"{self.base}/?key={KEY}"
        self.settings, self.autosave = Settings(**settings), autosave
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._begin()
        self._thread = threading.Thread(target=self._run, name="page")
        self._thread.start()
        assert self._ready.wait(GUARD), self._failure

    def _begin(self) -> None:
        """An empty script, and the conversations that are in the folder now."""
        self.script = Script()
        self.models = ScriptedModels(self.script, self.names, self.window)
        self.library = Library(self.models, self.settings, self.autosave)
        self._app = make_app(Site(self.library), self.state, KEY, self.port)

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        await self._app(scope, receive, send)

    def _run(self) -> None:
        self.server = PageServer(self.library, self._answer, self.state)
        self.server.on_start = self._ready.set
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._failure = error
            raise

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self.server.serve(sockets=[self.listener])

    @property
    def is_running(self) -> bool:
        """Whether no test has ended it."""
        return self._thread.is_alive() and not self.state.draining

    def leave(self) -> None:
        """Stop and save replies, as at the end of the program; the server stays for `begin_again`."""
        self.script.go()
        asyncio.run_coroutine_threadsafe(self.library.close(), self._loop).result(GUARD)

    def begin_again(self) -> None:
        """As if the program was started again, for another user: nothing of what was before is left, but the port."""
        self._begin()
        self.server.library = self.library

    def close(self) -> None:
        """End it as a signal does: replies are stopped and saved."""
        self.server.stop()
        self._thread.join(GUARD)
        self.listener.close()
        assert not self._thread.is_alive()


def refuse(text: str) -> BareloopError:
    """An expected failure, for `Script.failure` and `ScriptedModels.load_failure`."""
    return BareloopError(text)
