"""Judges: a model that is computed here, or one of an OpenAI-compatible server. No torch until one is loaded."""

from __future__ import annotations

import contextlib
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from engine.checkpoints import embedded
from engine.cli.parser import model_options
from engine.remote.address import Address
from engine.remote.client import RemoteModel
from engine.remote.errors import KEY_HINT, RemoteError, UnreachableError
from engine.runtime.errors import BareloopError, TemplateError, UsageError, quote
from engine.text.reasoning import CLOSE, OPEN, opens_reasoning
from evals.harness.identity import file_name, machine, start
from evals.judging.settings import of_model, of_server

if TYPE_CHECKING:
    import torch

    from engine import LLM
    from engine.checkpoints.opening import Opened
    from engine.decoding.scheduling.scheduler import Scheduler

MAX_NEW_TOKENS = 2_048  # of a judgment, as in FastChat
MIN_NEW_TOKENS = 64  # that a prompt must leave in the window
TEMPERATURE = 0.7  # of a local judge's further passes: at 0 they would equal the first
LOCAL_CONCURRENCY, REMOTE_CONCURRENCY = 16, 4  # judgments at a time
NOT_OF_JUDGES = frozenset({"adapter", "draft", "dtype", "quant"})  # flags that are those of the model that answers
FATAL = frozenset({401, 402, 403, 404})  # statuses after which no further request can succeed
REFUSALS = frozenset({400, 422})  # statuses of a request that a server does not take
LIMITS = ("max_tokens", "max_completion_tokens")  # the field for the longest reply, by preference
REASONING = ("reasoning_content", "reasoning")  # fields of a reply: of llama.cpp, DeepSeek and ours; of vLLM
SYSTEM, TEMPERATURE_FIELD = "system", "temperature"


class JudgeError(BareloopError):
    """One judgment has failed. Others may succeed."""


class PromptTooLongError(JudgeError):
    """A prompt does not fit into the judge's window. It says nothing about other prompts."""


class Judge(Protocol):
    """What judges answers. Several threads may use it at once."""

    name: str  # for names of files
    concurrency: int  # judgments at a time, by default

    def check(self) -> None:
        """Raise `BareloopError` if it cannot judge anything. It takes no more than seconds: before other work."""
        ...

    def settings(self) -> dict[str, Any]:
        """Return what its judgments depend on."""
        ...

    def start(self) -> None:
        """Get ready for the first judgment. Raises as `check`. A judge that has started stays as it is."""
        ...

    def judge(self, system: str, prompt: str, number: int) -> str:
        """Return a judgment. `number`: the pass, from 1. Raises `JudgeError` if this one has failed."""
        ...


class LocalJudge:
    """A model that is computed here: greedily in the first pass, sampled with the pass's number as seed in others.

    `start` loads it. The flags for device, memory and pickles are used, those for the weights of the model that answers
    are not.
    """

    concurrency = LOCAL_CONCURRENCY

    def __init__(self, name: str, options: Any) -> None:
        """`name`: a folder, file or hub id. Raises `UsageError` for the demo model."""
        if name == embedded.NAME:
            raise UsageError(
                f"{name} cannot judge: it knows nothing beyond its own textbook, and its window of 1,024 tokens is too "
                "short for most of the judge's prompts; use a larger model, or a server (--judge-url)"
            )
        self.name = file_name(name)
        self._source = name
        self._options = {flag: value for flag, value in model_options(options).items() if flag not in NOT_OF_JUDGES}
        self._thread: threading.Thread | None = None  # that computes, once it has started

    def __enter__(self) -> LocalJudge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop computing: judgments that are waited for fail."""
        if self._thread is not None:
            self._scheduler.close()
            self._thread.join()

    def check(self) -> None:
        """Raise `BareloopError` if there is no such model, or if it has no chat template. No weights are loaded."""
        from engine.text.chat_template import ChatTemplate
        from engine.text.tokenizer import Tokenizer

        opened, _ = self._open()
        try:
            ChatTemplate.load(opened.folder, Tokenizer.load(opened.folder))
        except BareloopError as error:
            raise BareloopError(f"{quote(self._source)} cannot judge: {error}") from None

    def settings(self) -> dict[str, Any]:
        """Return the hashes of its files, and how it is computed."""
        opened, device = self._open()
        return {**of_model(self._source, opened, device), **start(), "machine": machine(device)}

    def _open(self) -> tuple[Opened, torch.device]:
        from engine.checkpoints.opening import open_model
        from engine.runtime.device import choose_device

        flags = {"device": "auto", "allow_pickle": False, **self._options}
        device = choose_device(flags["device"])
        return open_model(self._source, allow_pickle=flags["allow_pickle"], device=device), device

    def start(self) -> None:
        """Load the model, and start the thread that computes."""
        if self._thread is None:
            self.check()
            self._llm.pack()
            self._thread = threading.Thread(target=self._run, args=(self._scheduler,), daemon=True, name="judge")
            self._thread.start()

    def judge(self, system: str, prompt: str, number: int) -> str:
        """Return a judgment of up to 2,048 tokens, fewer if the window is smaller. Raises `JudgeError`."""
        from engine import SamplingParams

        llm = self._llm
        try:
            ids = self._encode(system, prompt)
            room = llm.max_length - len(ids)
            if room < MIN_NEW_TOKENS:
                raise PromptTooLongError(
                    f"the prompt has {len(ids):,} tokens, and {self.name}'s window holds {llm.max_length:,}, of which "
                    f"{MIN_NEW_TOKENS} are kept for the judgment"
                )
            sampling: dict[str, Any] = {} if number == 1 else {"temperature": TEMPERATURE, "seed": number}
            params = SamplingParams(max_new_tokens=min(MAX_NEW_TOKENS, room), **sampling)
            request = self._scheduler.submit(ids, params, continues=False)
            text = "".join(event.text for event in request)
        except JudgeError:
            raise
        except BareloopError as error:
            raise JudgeError(str(error)) from error
        if request.finish_reason == "cancelled":
            raise JudgeError(f"{self.name} was stopped before its judgment was complete")
        return f"{OPEN}{text}" if opens_reasoning(llm.tokenizer, ids) else text

    @cached_property
    def _llm(self) -> LLM:
        from engine import LLM

        return LLM.load(self._source, **self._options)

    @cached_property
    def _scheduler(self) -> Scheduler:
        from engine.decoding.scheduling.scheduler import Scheduler
        from engine.decoding.sequence import PREFILL_CHUNK

        chunk = None if self._llm.device.type == "cuda" else PREFILL_CHUNK
        # exact: a judgment must not depend on what was judged before
        return Scheduler(self._llm, LOCAL_CONCURRENCY, chunk, exact=True)

    @staticmethod
    def _run(scheduler: Scheduler) -> None:
        with contextlib.suppress(Exception):  # it is raised where a judgment is waited for
            scheduler.run()

    def _encode(self, system: str, prompt: str) -> list[int]:
        """Token ids of a conversation's beginning. A template without a system role gets it in front of the prompt."""
        template = self._llm.chat_template
        if system:
            with contextlib.suppress(TemplateError):
                return template.encode(_messages(system, prompt))
        return template.encode(_messages("", _folded(system, prompt)))


class RemoteJudge:
    """A model of an OpenAI-compatible server, at temperature 0 in every pass.

    A field that the server refuses is left out, or replaced by its newer name, from then on.
    """

    concurrency = REMOTE_CONCURRENCY

    def __init__(self, url: str, model: str, key: str | None = None, timeout: float = 600.0) -> None:
        """`key` None: that of the environment. `timeout`: seconds without any byte of an answer."""
        self.name = file_name(model)
        self._source, self._address = model, Address.parse(url)
        self._client = RemoteModel(url, model, key, timeout)
        self._refused: set[str] = set()  # fields, and SYSTEM for the role
        self._lock = threading.Lock()

    def __enter__(self) -> RemoteJudge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections: judgments that are waited for fail."""
        self._client.close()

    def check(self) -> None:
        """Raise `RemoteError` if the server cannot be reached, refuses the key, or does not have the model."""
        try:
            with own_flags():
                self._client.check()
        except RemoteError as error:
            if error.status in (None, 401, 404):  # else it does not list models for us, and may have any
                raise

    def settings(self) -> dict[str, Any]:
        """Return the model's name and its server, whose port may change if it is on this machine."""
        url = self._address.shown
        server = "this machine" if self._address.is_local else url
        return {"judge": self._source, "server": server, **of_server(url), **start()}

    def start(self) -> None:
        """As `check`."""
        self.check()

    def judge(self, system: str, prompt: str, number: int) -> str:  # noqa: ARG002
        """Return a judgment, its reasoning between tags.

        Raises `JudgeError`, but `RemoteError` if no other request can succeed either.
        """
        try:
            with own_flags():
                return self._text(self._ask(system, prompt))
        except RemoteError as error:
            if error.status in FATAL or isinstance(error, UnreachableError):
                raise
            kind = PromptTooLongError if _is_overflow(error) else JudgeError
            raise kind(str(error)) from error

    def _ask(self, system: str, prompt: str) -> dict[str, Any]:
        """Send a request, again without what the server refuses."""
        limited = True
        while True:
            refused = set(self._refused)
            fields: dict[str, Any] = {"messages": _messages(system, prompt)}
            if SYSTEM in refused:
                fields["messages"] = _messages("", _folded(system, prompt))
            if TEMPERATURE_FIELD not in refused:
                fields[TEMPERATURE_FIELD] = 0
            limit = next((name for name in LIMITS if name not in refused), None)
            if limited and limit is not None:
                fields[limit] = MAX_NEW_TOKENS
            try:
                return self._client.chat(fields)
            except RemoteError as error:
                if error.status not in REFUSALS:
                    raise
                if _is_overflow(error):  # without a limit a judgment may fill the window
                    if not limited or limit is None:
                        raise
                    limited = False
                elif not self._refuse(_refused_fields(error, fields, system)):
                    raise

    def _refuse(self, names: set[str]) -> bool:
        """Leave out fields from now on. Return whether there are any; say it if that changes the judgments."""
        with self._lock:
            if TEMPERATURE_FIELD in names - self._refused:
                print(f"{self.name} does not take temperature 0: it judges at its own", file=sys.stderr, flush=True)
            self._refused |= names
        return bool(names)

    def _text(self, answer: Mapping[str, Any]) -> str:
        """The text of an answer. Raises `JudgeError` if it has none."""
        match answer.get("choices"):
            case [{"message": dict(message)}, *_]:
                thought = _first_text(message, REASONING)
                text = _first_text(message, ("content", "refusal"))
                if text or thought:
                    return f"{OPEN}{thought}{CLOSE}{text}" if thought else text
        raise JudgeError(f"{self._client.url} answered without a text: {quote(answer)}")


@contextlib.contextmanager
def own_flags() -> Iterator[None]:
    """Name the judge's own flag in a server's refusal of the key."""
    try:
        yield
    except RemoteError as error:
        if error.status != 401:
            raise
        text = str(error).replace(KEY_HINT, KEY_HINT.replace("--api-key-file", "--judge-api-key-file"))
        raise RemoteError(text, 401, error.details) from None


def _messages(system: str, prompt: str) -> list[dict[str, str]]:
    user = {"role": "user", "content": prompt}
    return [{"role": "system", "content": system}, user] if system else [user]


def _folded(system: str, prompt: str) -> str:
    """The prompt after the system prompt, for models without a system role."""
    return f"{system}\n\n{prompt}" if system else prompt


def _first_text(message: Mapping[str, Any], names: tuple[str, ...]) -> str:
    return next((text for name in names if isinstance(text := message.get(name), str) and text), "")


def _is_overflow(error: RemoteError) -> bool:
    """Whether a server refuses a prompt because it does not fit into the window, in any server's words."""
    code, text = str(error.details.get("code")), str(error)
    return error.status in REFUSALS and (
        code == "context_length_exceeded" or re.search(r"context (length|size|window)|max_new_tokens", text) is not None
    )


def _refused_fields(error: RemoteError, fields: Mapping[str, Any], system: str) -> set[str]:
    """The fields that a server's refusal names; SYSTEM if it is the role."""
    text = f"{error} {error.details.get('param')}"
    refused = {name for name in (*LIMITS, TEMPERATURE_FIELD) if name in fields and name in text}
    sends_system = bool(system) and len(fields["messages"]) > 1
    return refused | ({SYSTEM} if sends_system and "role" in text.lower() else set())
