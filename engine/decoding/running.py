"""The requests that have a row: their prompts are computed piece by piece, then they decode together."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from engine import kernels
from engine.cache.state import State
from engine.decoding.loop import Choice, Reply, choose_tokens, feed_tokens
from engine.decoding.prefix_cache import PrefixCache, Row
from engine.decoding.request import CANCELLED, Request
from engine.decoding.sampling import SamplingParams
from engine.decoding.sequence import Sequence, prefill
from engine.decoding.speculation import Speculator
from engine.models.family import Model
from engine.runtime.errors import BareloopError
from engine.text.tokenizer import Tokenizer


class Loaded(Protocol):
    """What is needed of an `LLM`."""

    model: Model
    quant: str

    @property
    def max_length(self) -> int: ...
    def speculator(self) -> Speculator | None: ...
    @property
    def has_tokenizer(self) -> bool: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def eos_token_ids(self) -> tuple[int, ...]: ...
    def sequence(self, state: State | None = None) -> Sequence: ...


class Work(NamedTuple):
    """What a step did, and for whom. `tokens`: computed ones."""

    kind: Literal["prefill", "decode"]
    requests: list[Request]
    tokens: int


class RunningRequests:
    """Requests with rows in one state. A request whose computation fails ends with its error; the others go on."""

    def __init__(self, llm: Loaded, cache: PrefixCache) -> None:
        self.llm = llm
        self.cache = cache
        self.speculator = llm.speculator()
        self.state = cache.state
        self.prefilling: deque[Request] = deque()  # the next in turn first
        self.decoding: deque[Request] = deque()

    def __iter__(self) -> Iterator[Request]:
        yield from (*self.prefilling, *self.decoding)

    def __len__(self) -> int:
        return len(self.prefilling) + len(self.decoding)

    def longest(self, prompt_tokens: int, params: SamplingParams) -> int:
        """Tokens of a prompt with its longest reply."""
        return min(prompt_tokens + params.max_new_tokens, self.llm.max_length)

    def admit(self, request: Request) -> bool:
        """Give a row to a request if there is memory for all of its prompt and reply."""
        if request.row is not None:  # its prompt is computed already
            self._start_fed(request)
            return True
        source, shared = self.cache.find(request.prompt, self._rows())
        needed = self.state.row_bytes(self.longest(len(request.prompt.ids), request.params) - shared)
        if not self.cache.has_room(needed, len(self), source):
            if len(self):
                return False
            self.cache.clear()  # alone every request fits, as was checked when it was submitted
            source, shared = None, 0
        request.row = Row(self.llm.sequence(self.state), request.prompt)
        self._share(request, source, shared)
        request.admitted = time.perf_counter()
        self.prefilling.append(request)
        return True

    def _start_fed(self, request: Request) -> None:
        """Choose the first token of a request whose prompt is computed."""
        request.admitted = time.perf_counter()
        sequence = request.running_row.sequence
        self.state.reserve(sequence.row, self.longest(len(sequence.ids), request.params) - len(sequence.ids))
        assert sequence.logits is not None
        try:
            self._start(request, sequence.logits[None])
        except BaseException as error:
            self._fail([request], error)

    def _rows(self) -> list[Row]:
        """The rows of running requests."""
        return [request.row for request in self if request.row is not None]

    def _share(self, request: Request, source: Row | None, shared: int) -> None:
        """Begin a request's row with `shared` tokens of the source, and reserve room for the rest."""
        row = request.running_row
        if source is not None:
            request.cached_tokens += shared - len(row.sequence.ids)
            self.cache.give(source, row, shared)
        rest = self.longest(len(request.prompt.ids), request.params) - len(row.sequence.ids)
        self.state.reserve(row.sequence.row, rest)

    def ready(self) -> list[Request]:
        """The requests that can decode: all but those whose reader is behind."""
        return [request for request in self.decoding if not request.is_paused]

    def next_prompt(self) -> Request:
        """The next prompt in turn, but for those whose beginning is just being computed for an earlier request."""
        for request in self.prefilling:
            row = request.running_row
            earlier = [other.running_row for other in self.prefilling if other.number < request.number]
            if not any(self.cache.is_worth_waiting(row, other) for other in earlier):
                return request
        raise AssertionError("the earliest prompt never waits")

    def prefill(self, request: Request) -> Work:
        """Compute the next piece of a prompt; after the last one, choose the first token of the reply."""
        self.prefilling.remove(request)
        row, ids = request.running_row, request.prompt.ids
        try:
            source, shared = self.cache.find(row.prompt, [other for other in self._rows() if other is not row], row)
            if source is not None:
                self._share(request, source, shared)
            start = len(row.sequence.ids)
            end = next(end for end in row.prompt.ends if end > start)
            _, (hidden,) = prefill([row.sequence], [ids[:end]], [1], chunk=end - start)
            self.state.checkpoint(row.sequence.row)
            if end < len(ids):
                self.prefilling.append(request)
                return Work("prefill", [request], end - start)
            with torch.inference_mode():
                logits = self.llm.model.logits(hidden)
            self._start(request, logits)
            return Work("prefill", [request], end - start)
        except BaseException as error:
            self._fail([request], error)
            return Work("prefill", [request], 0)

    def _start(self, request: Request, logits: Tensor) -> None:
        """Choose the first token of a reply, from the logits [1, V] after its prompt."""
        sequence = request.running_row.sequence
        reply = request.reply = Reply(sequence, request.params, request.continues, request.matcher)
        self.decoding.append(request)
        self._accept(request, choose_tokens([reply], logits)[0], ())

    def decode(self) -> Work:
        """Compute a token for as many replies as the kernels take at once; then the others are next."""
        requests = self.ready()[: kernels.MAX_ROWS]
        for request in requests:
            self.decoding.remove(request)
        self.decoding += requests
        replies = [request.reply for request in requests if request.reply is not None]
        start = time.perf_counter()
        try:
            drafts = self.speculator.draft(replies) if self.speculator is not None else [[] for _ in replies]
            logits = feed_tokens(replies, drafts)
            choices = choose_tokens(replies, logits, drafts)
            before = [len(reply.token_ids) for reply in replies]
            for request, chosen, draft in zip(requests, choices, drafts, strict=True):
                self._accept(request, chosen, draft)
            if self.speculator is not None:
                gained = [len(reply.token_ids) - count for reply, count in zip(replies, before, strict=True)]
                self.speculator.observe(drafts, gained, time.perf_counter() - start)
            return Work("decode", requests, len(logits))
        except BaseException as error:
            self._fail([request for request in requests if not request.is_finished], error)
            return Work("decode", requests, 0)

    def _accept(self, request: Request, choices: Seq[Choice], draft: Seq[int]) -> None:
        """Hand the new events of a reply over, and retire a request that has ended."""
        assert request.reply is not None
        try:
            events = request.reply.accept(choices, draft)
        except BareloopError as error:  # logits that are not finite: nothing of the row can be used
            self._fail([request], error)
            return
        request.push(events)
        if (reason := events[-1].finish_reason) is not None:
            self.retire(request, reason)

    def retire(self, request: Request, reason: str) -> None:
        """End a request. Its row is kept for prompts that begin alike."""
        row = self._withdraw(request)
        if row is not None:
            row.sequence.synchronize()
            self.cache.add(row)
        request.finish(reason)

    def _fail(self, requests: list[Request], error: BaseException) -> None:
        """End requests whose step raised an error, which an interrupt (Ctrl-C) also does to the caller."""
        if not isinstance(error, Exception):
            for request in requests:
                self.retire(request, CANCELLED)
            raise error
        for request in requests:
            row = self._withdraw(request)
            if row is not None:
                row.sequence.close()
            request.finish(None, error)

    def _withdraw(self, request: Request) -> Row | None:
        """Remove a request from the running ones. -> its row, if it had one"""
        for requests in (self.prefilling, self.decoding):
            if request in requests:
                requests.remove(request)
        if self.speculator is not None and request.reply is not None:
            self.speculator.drafter.forget(request.reply)
        row, request.row = request.row, None
        return row
