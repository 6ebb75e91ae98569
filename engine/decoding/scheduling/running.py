"""The requests that have a row: their prompts are computed piece by piece, then they decode together."""

from __future__ import annotations

import time
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from engine import kernels
from engine.cache.state import State
from engine.decoding.capture import CapturedSteps
from engine.decoding.images import ImageLibrary
from engine.decoding.loop import Choice, Reply, choose_tokens, feed_tokens
from engine.decoding.params import SamplingParams
from engine.decoding.scheduling.pipeline import Pipeline
from engine.decoding.scheduling.prefix_cache import PrefixCache, Slot
from engine.decoding.scheduling.request import CANCELLED, Request
from engine.decoding.scheduling.states import SchedulerStates
from engine.decoding.sequence import Sequence, prefill
from engine.decoding.speculation import Speculator
from engine.models.family import Model
from engine.text.tokenizer import Tokenizer


class LoadedModel(Protocol):
    """What is needed of an `LLM`."""

    model: Model
    quant: str
    states: SchedulerStates

    @property
    def max_length(self) -> int: ...
    def speculator(self) -> Speculator | None: ...
    @property
    def has_tokenizer(self) -> bool: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def eos_token_ids(self) -> tuple[int, ...]: ...
    @property
    def images(self) -> ImageLibrary | None: ...
    def sequence(self, state: State | None = None) -> Sequence: ...


class Work(NamedTuple):
    """What a step did, and for whom. `tokens`: computed ones."""

    kind: Literal["prefill", "decode"]
    requests: list[Request]
    tokens: int


class RunningRequests:
    """Requests with rows in one state. A request whose computation fails ends with its error; the others go on."""

    def __init__(self, llm: LoadedModel, cache: PrefixCache, captured: CapturedSteps | None = None) -> None:
        """`captured`: decoding steps of the cache's state as CUDA graphs."""
        self.llm = llm
        self.captured = captured
        self.pipeline = Pipeline(captured)
        self.cache = cache
        self.speculator = llm.speculator()
        self.state = cache.state
        self.prefilling: list[Request] = []  # the next in turn first
        self.decoding: list[Request] = []

    def __iter__(self) -> Iterator[Request]:
        yield from (*self.prefilling, *self.decoding)

    def __len__(self) -> int:
        return len(self.prefilling) + len(self.decoding)

    def longest(self, prompt_tokens: int, params: SamplingParams) -> int:
        """Tokens of a prompt with its longest reply."""
        return min(prompt_tokens + params.max_new_tokens, self.llm.max_length)

    def admit(self, request: Request) -> bool:
        """Give a slot to a request if there is memory for all of its prompt and reply."""
        request.admitted = time.perf_counter()
        is_fed = request.slot is not None  # its prompt is computed already
        try:
            source, shared = None, len(request.prompt.ids)
            if not is_fed:
                source, shared = self.cache.find(request.prompt, self._slots())
            longest = self.longest(len(request.prompt.ids), request.params)
            needed, held = self.state.row_bytes(longest, shared), 0
            if is_fed or (source is not None and self.cache.gives_whole(source, shared)):  # the row itself goes on
                row = (source or request.running_slot).sequence.row
                needed, held = self.state.growth_bytes(row, longest), self.state.held_bytes(row)
            reserved = sum(other.reserved_bytes for other in self)
            if not self.cache.make_room(needed, len(self), reserved + held, source):
                if len(self):
                    request.admitted = 0.0
                    return False
                if not is_fed:  # alone every request fits, as was checked when it was submitted
                    self.cache.clear()
                    source, shared, needed, held = None, 0, self.state.row_bytes(longest), 0
            request.reserved_bytes = needed + held
            self.prefilling.append(request)
            request.slot = request.slot or Slot(self.llm.sequence(self.state), request.prompt)
            self._share(request, source, shared)
            if is_fed:
                self._start(request, request.slot.sequence.last_logits()[None])
        except BaseException as error:
            self.fail([request], error)
        return True

    def _slots(self) -> list[Slot]:
        """The slots of running requests."""
        return [request.slot for request in self if request.slot is not None]

    def _share(self, request: Request, source: Slot | None, shared: int) -> None:
        """Begin a request's row with `shared` tokens of the source, and reserve room for the rest."""
        slot = request.running_slot
        if source is not None:
            request.cached_tokens += shared - len(slot.sequence.ids)
            self.cache.give(source, slot, shared)
        rest = self.longest(len(request.prompt.ids), request.params) - len(slot.sequence.ids)
        self.state.reserve(slot.sequence.row, rest)

    def ready(self) -> list[Request]:
        """The requests that can decode: all but those whose reader is behind."""
        return [request for request in self.decoding if not request.is_paused]

    def next_prompt(self) -> Request:
        """The next prompt in turn, but for those whose beginning is just being computed for an earlier request."""
        for request in self.prefilling:
            slot = request.running_slot
            earlier = [other.running_slot for other in self.prefilling if other.number < request.number]
            if not any(self.cache.is_worth_waiting(slot, other) for other in earlier):
                return request
        raise AssertionError("the earliest prompt never waits")

    def prefill(self, request: Request) -> Work:
        """Compute the next piece of a prompt; after the last one, choose the first token of the reply."""
        slot, ids = request.running_slot, request.prompt.ids
        try:
            others = [other for other in self._slots() if other is not slot]
            source, shared = self.cache.find(slot.prompt, others, len(slot.sequence.ids))
            if source is not None:
                self._share(request, source, shared)
            start = len(slot.sequence.ids)
            end = next(end for end in slot.prompt.ends if end > start)
            outputs = 1 if slot.logprobs is None else end - start
            _, (hidden,) = prefill([slot.sequence], [ids[:end]], [outputs], chunk=end - start)
            self.state.checkpoint(slot.sequence.row)
            if slot.logprobs is not None:
                slot.logprobs.extend(self.llm.model, ids[:end], start, hidden)
            if end == len(ids):
                with torch.inference_mode():
                    logits = self.llm.model.logits(hidden[-1:])
                self._start(request, logits)
            else:
                self.prefilling = [*(other for other in self.prefilling if other is not request), request]
            return Work("prefill", [request], end - start)
        except BaseException as error:
            self.fail([request], error)
            return Work("prefill", [request], 0)

    def _start(self, request: Request, logits: Tensor) -> None:
        """Choose the first token of a reply, from the logits [1, V] after its prompt."""
        sequence, request.scores = request.running_slot.sequence, request.running_slot.logprobs
        reply = request.reply = Reply(sequence, request.params, request.continues, request.matcher)
        self.prefilling.remove(request)
        self.decoding.append(request)
        self._accept(request, choose_tokens([reply], logits)[0], ())

    def decode(self) -> Work:
        """Compute a token for as many replies as the kernels take at once; then the others are next."""
        requests = self.ready()[: kernels.MAX_ROWS]
        self.decoding = [*(other for other in self.decoding if other not in requests), *requests]
        replies = [request.reply for request in requests if request.reply is not None]
        start = time.perf_counter()
        try:
            drafts = self.speculator.draft(replies) if self.speculator is not None else [[] for _ in replies]
            if any(drafts):
                logits = feed_tokens(replies, drafts)
                choices = choose_tokens(replies, logits, drafts)
            else:
                logits = self.pipeline.logits(replies)
                is_next = self.speculator is None and len(self.ready()) == len(requests)  # the same replies again
                choices = choose_tokens(replies, logits, begin_next=self.pipeline.begin if is_next else None)
            gained = [self._accept(*each) for each in zip(requests, choices, drafts, strict=True)]
            if self.speculator is not None:
                self.speculator.observe(drafts, gained, time.perf_counter() - start)
            return Work("decode", requests, len(logits))
        except BaseException as error:
            self.fail(requests, error)
            return Work("decode", requests, 0)

    def _accept(self, request: Request, choices: Seq[Choice], draft: Seq[int]) -> int:
        """Hand the new events of a reply over, and retire a request that has ended. -> the number of events"""
        assert request.reply is not None
        try:
            events = request.reply.accept(choices, draft)
        except Exception as error:  # logits that are not finite, a grammar that leads no further
            self.fail([request], error)
            return 0
        request.push(events)
        if (reason := events[-1].finish_reason) is not None:
            self.retire(request, reason)
        return len(events)

    def retire(self, request: Request, reason: str) -> None:
        """End a request, unless it has ended. Its row is kept for prompts that begin alike."""
        if request.is_finished:
            return
        slot = self._withdraw(request)
        if slot is not None:
            slot.sequence.synchronize()
            self.cache.add(slot)
        request.finish(reason)

    def fail(self, requests: list[Request], error: BaseException) -> None:
        """End requests with the error of their step. An interrupt (Ctrl-C) cancels them, and is raised again."""
        for request in requests:
            if not isinstance(error, Exception):
                self.retire(request, CANCELLED)
            elif not request.is_finished:
                slot = self._withdraw(request)
                if slot is not None:
                    slot.sequence.close()
                request.finish(None, error)
        if not isinstance(error, Exception):
            raise error

    def _withdraw(self, request: Request) -> Slot | None:
        """Remove a request from the running ones. -> its slot, if it had one"""
        for requests in (self.prefilling, self.decoding):
            if request in requests:
                requests.remove(request)
        if request.reply is not None:
            self.pipeline.forget(request.reply)
            if self.speculator is not None:
                self.speculator.drafter.forget(request.reply)
        slot, request.slot = request.slot, None
        return slot
