"""Many requests on one model, which join and leave between steps (continuous batching, Yu et al. 2022).

    submit -> queue -> prefill, a piece of one prompt at a time, in turn -> decode, all rows together -> prefix cache

A step is one forward pass: a piece of a prompt, or a token for every row that decodes. They alternate, so that a long
prompt delays the others by one piece at most. A request is admitted when its whole prompt and reply fit into memory;
nothing is preempted.

With the C++ kernels the tokens of a request depend only on the request, and on the size of the pieces: prompts are
computed alone, in pieces that end at fixed positions, and each of up to 32 rows as if it were alone. PyTorch's
operators, on other devices and in float16, round a row differently among others.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager

import torch

from engine import kernels
from engine.decoding.loop import check_params, new_matcher
from engine.decoding.params import SamplingParams
from engine.decoding.scheduling.prefix_cache import PrefixCache, Prompt, Slot
from engine.decoding.scheduling.prompt_logprobs import check_alternatives
from engine.decoding.scheduling.request import CANCELLED, ClosedError, QueueFullError, Request
from engine.decoding.scheduling.running import LoadedModel, RunningRequests, Work
from engine.decoding.sequence import Sequence, check_prompt
from engine.decoding.speculation import DraftStatistics
from engine.runtime.errors import BareloopError
from engine.runtime.memory import free_memory

# Tokens of a piece. On two cores it delays the replies of others by half a second at 0.5 billion parameters; on a GPU
# launching its kernels takes as long as computing a thousand tokens.
PIECE, GPU_PIECE = 128, 2048
MEMORY_SHARE = 0.5  # of the free memory, for all rows


class Scheduler:
    """Owns a state of the model, and computes requests in one thread: that of `run`, or the caller's."""

    def __init__(
        self,
        llm: LoadedModel,
        max_rows: int = kernels.MAX_ROWS,
        prefill_chunk: int | None = None,
        cache_bytes: int | None = None,
        max_queue: int | None = None,
        exact: bool | None = None,
    ) -> None:
        """`max_rows`: requests that are computed at the same time. `prefill_chunk`: tokens of a piece of a prompt,
        by default 128, on a GPU 2,048.

        `cache_bytes`: for all rows, also those of finished requests, but not those of a draft model; by default half of
        the free memory, on a GPU the model's `gpu_memory`. `max_queue`: requests that may wait for a row. `exact`:
        share a cached prefix only where no bit of the result depends on it; without, a prompt shares all that it has in
        common with another text, replies too, as conversations need. By default only unquantized float32 is not exact:
        there logits differ by some 1e-5. Raises `BareloopError` for a number below 1.
        """
        numbers = (max_rows, prefill_chunk, cache_bytes, max_queue)
        for name, value in zip(("max_rows", "prefill_chunk", "cache_bytes", "max_queue"), numbers, strict=True):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise BareloopError(f"{name} is {value}; use a whole number, 1 or more")
        self.llm = llm
        step = prefill_chunk or GPU_PIECE
        self.state, captured = llm.states.take(max_rows, cache_bytes, step)
        free = free_memory(self.state.device)
        self.max_rows = max_rows
        self.prefill_chunk = prefill_chunk or (GPU_PIECE if self.state.device.type == "cuda" else PIECE)
        default = 2**63 if free is None else int(MEMORY_SHARE * free)
        self.cache_bytes = self.state.capacity_bytes or cache_bytes or default
        self.max_queue = max_queue
        self.exact = (llm.model.dtype, llm.quant) != (torch.float32, "none") if exact is None else exact
        self.queue: deque[Request] = deque()
        self.cache = PrefixCache(self.state, self.cache_bytes, self.exact)
        self.running = RunningRequests(llm, self.cache, captured)
        self._decode_is_next = False
        self._submitted = 0
        self._submitting, self._stepping = threading.RLock(), threading.Lock()
        self._wake = threading.Event()
        self._thread: int | None = None  # of `run`
        self._step_thread: int | None = None  # during a step
        self._is_closed = self._has_ended = False

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(
        self,
        ids: Seq[int],
        params: SamplingParams | None = None,
        continues: bool = True,
        cuts: Seq[int] = (),
        scope: Hashable = None,
        notify: Callable[[], None] | None = None,
        max_unread: int | None = None,
        prompt_logprobs: int | None = None,
    ) -> Request:
        """Add a request for the reply to a prompt, from any thread.

        `continues`: the text continues the prompt's. `cuts`: lengths at which a piece ends, because other prompts begin
        with the same tokens (ends of messages, of examples). `scope`: only prompts of the same scope share what is
        cached. `notify`: see `Request`. `max_unread`: unread events at which the reply pauses.
        `prompt_logprobs`: report the log-probability of each token of the prompt, and the 0 to 20 likeliest ones there.
        Raises `BareloopError` for a prompt or parameters that cannot be computed, `QueueFullError` for a full queue.
        """
        llm, params = self.llm, params or SamplingParams()
        tokenizer, vocab_size = llm.tokenizer if llm.has_tokenizer else None, llm.model.config.vocab_size
        check_prompt(ids, llm.max_length, vocab_size, images=llm.images)
        check_params(params, vocab_size, tokenizer)
        needed = self.state.row_bytes(self.running.longest(len(ids), params))
        if needed > self.cache_bytes:
            longest = bisect_right(range(1, llm.max_length), self.cache_bytes, key=self.state.row_bytes)
            raise BareloopError(
                f"{len(ids):,} + {params.max_new_tokens:,} tokens need {needed / 1e9:.1f} GB of cache, and there are "
                f"{self.cache_bytes / 1e9:.1f} GB for all requests, enough for {longest:,} tokens; use a shorter "
                "prompt or fewer new tokens"
            )
        hash(scope)  # which must be possible
        if llm.images is not None and self.prefill_chunk <= PIECE:
            cuts = [*cuts, *llm.images.group_starts(ids)]  # its tiles take as long as some hundred tokens
        scored, alternatives = prompt_logprobs is not None, check_alternatives(prompt_logprobs)
        prompt = Prompt.plan(ids, self.prefill_chunk, cuts, scope, scored)
        request = Request(prompt, params, continues, self._wait, self._wake.set, notify, max_unread, alternatives)
        request.images = [] if llm.images is None else llm.images.pin(ids)
        request.matcher = new_matcher(params, tokenizer, vocab_size, llm.eos_token_ids, continues)
        self._enqueue(request)
        return request

    def submit_sequence(self, sequence: Sequence, params: SamplingParams, continues: bool = True) -> Request:
        """Add a request whose prompt has been fed already, to a sequence of this state; it is closed in the end.

        For prompts that are computed together by `prefill_batch`. Only in the thread that steps.
        """
        prompt = Prompt(list(sequence.ids), [])
        request = Request(prompt, params, continues, self._wait, self._wake.set)
        request.slot, request.cached_tokens = Slot(sequence, prompt), len(prompt.ids)
        self._enqueue(request)
        return request

    @property
    def drafts(self) -> DraftStatistics | None:
        """How often drafted tokens were right, and what they gained; None without a draft."""
        speculator = self.running.speculator
        return None if speculator is None else speculator.statistics

    def _enqueue(self, request: Request) -> None:
        with self._submitting:
            if self._is_closed:
                raise ClosedError("the scheduler is closed")
            if self.max_queue is not None and len(self.queue) >= self.max_queue:
                raise QueueFullError(f"{len(self.queue)} requests are waiting, as many as the queue holds; try later")
            self._submitted += 1
            request.number = self._submitted
            self.queue.append(request)
        self._wake.set()

    def step(self) -> Work | None:
        """One forward pass: a piece of a prompt, or a token for each of up to 32 replies. None: there is nothing to do.

        A request whose computation fails ends with its error; the others go on.
        """
        if self._thread not in (None, threading.get_ident()):
            raise BareloopError("the scheduler runs in another thread, and only that one may step")
        if self._step_thread == threading.get_ident():
            raise BareloopError("a notification cannot wait for a step, as it is part of one")
        with self._at_work():
            try:
                return self._step()
            finally:
                if self._is_closed:
                    self._end_all()

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Only one thread at a time is here, and `close` knows which."""
        with self._stepping:
            self._step_thread = threading.get_ident()
            try:
                yield
            finally:
                self._step_thread = None

    def _step(self) -> Work | None:
        self._cancel([request for request in self._unfinished() if request.is_cancelled])
        self._admit()
        decodes = self.running.ready() and (self._decode_is_next or not self.running.prefilling)
        self._decode_is_next = not decodes
        if decodes:
            return self.running.decode()
        return self.running.prefill(self.running.next_prompt()) if self.running.prefilling else None

    def run(self) -> None:
        """Step until `close`, and wait while there is nothing to do. For a thread of its own, which owns the model."""
        with self._submitting:
            if self._thread is not None:
                raise BareloopError("the scheduler runs already")
            self._thread = threading.get_ident()
        error: BaseException | None = None
        try:
            while not self._is_closed:
                self._wake.clear()
                if self.step() is None:
                    self._wake.wait()
        except BaseException as reason:
            error = reason
            raise
        finally:
            self._end(error)
            self._thread = None

    def close(self) -> None:
        """Cancel all requests and release all rows: now, or by the thread that is at work, after its step."""
        self._is_closed = True
        self._wake.set()
        if self._thread in (None, threading.get_ident()) and self._step_thread != threading.get_ident():
            self._end()

    def _wait(self, request: Request) -> None:
        """Wait until a request has news: step here, unless `run` does so elsewhere."""
        if self._thread not in (None, threading.get_ident()):
            with request.changed:
                request.changed.wait_for(lambda: request.has_news)
        elif self.step() is None and not request.has_news:
            raise BareloopError("this request waits for others, whose events are not read")

    def _admit(self) -> None:
        """Give rows to the first requests of the queue, as far as rows and memory go."""
        if not self.running and kernels.adopt():  # not during a reply, all of which is computed in one way
            self.cache.clear()
        while self.queue and len(self.running) < self.max_rows:
            request = self.queue[0]
            if not request.is_finished and not self.running.admit(request):
                return
            self.queue.popleft()

    def _unfinished(self) -> list[Request]:
        with self._submitting:
            return [*self.queue, *self.running]

    def _cancel(self, requests: Iterable[Request]) -> None:
        """End requests that are waiting or running."""
        for request in requests:
            with self._submitting:
                if request in self.queue:
                    self.queue.remove(request)
            self.running.retire(request, CANCELLED)

    def _end(self, error: BaseException | None = None) -> None:
        self._is_closed = True
        with self._at_work():
            self._end_all(error)

    def _end_all(self, error: BaseException | None = None) -> None:
        """End all requests, cancelled or with the error that ended the scheduler, and release all rows."""
        requests = self._unfinished()
        if isinstance(error, Exception):
            self.queue.clear()
            self.running.fail(requests, error)
        self._cancel(requests)
        self.cache.clear()
        if not self._has_ended:
            self._has_ended = True
            self.state.on_shortage(None)
            self.llm.states.keep(self.state, self.running.captured)
