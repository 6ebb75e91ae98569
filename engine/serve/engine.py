"""Engine: one loaded model, and the thread that computes its replies; an encoder's has none, as it only embeds."""

from __future__ import annotations

import hashlib
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field
from datetime import date, datetime
from datetime import time as time_of_day
from functools import cached_property
from importlib import metadata
from typing import Any
from weakref import WeakKeyDictionary

from engine import kernels
from engine.checkpoints.adapters.files import adapter_fingerprint
from engine.checkpoints.opening import Opened, open_model
from engine.decoding.embedding import Embedder
from engine.decoding.images import MAX_BYTES as IMAGE_BYTES
from engine.decoding.params import SamplingParams
from engine.decoding.scheduling.request import Request
from engine.decoding.scheduling.running import Work
from engine.decoding.scheduling.scheduler import MEMORY_SHARE, Scheduler
from engine.llm import LLM, PROMPT
from engine.runtime.device import choose_device
from engine.runtime.errors import BareloopError, TemplateError
from engine.runtime.memory import free_memory
from engine.serve.embedding import EmbeddingQueue, Turn
from engine.text.chat_template import ChatTemplate

USABLE_TOKENS = 4096  # a model is loaded where there is room for a row of so many
END_SECONDS = 10.0  # that a step may take when a model is unloaded or the server ends

StepObserver = Callable[[str, int, Sequence[float]], None]  # name, computed tokens, seconds since each reply's last


@dataclass(frozen=True)
class EngineOptions:
    """How the server's models are loaded and scheduled.

    `load`: keyword arguments of `LLM.load`. `template`: source of a chat template in place of the models' own.
    `context`: largest window. `cache_bytes`: for keys and values of one model. `exact`,
    `prefill_chunk`: as in `Scheduler`. `models`: number of models that share the memory.
    """

    load: Mapping[str, Any] = field(default_factory=dict)
    template: str | None = None
    context: int | None = None
    max_rows: int | None = None
    max_queue: int = 128
    cache_bytes: int | None = None
    exact: bool | None = None
    prefill_chunk: int | None = None
    models: int = 1

    def needed_bytes(self, source: str) -> int:
        """Memory that a model needs at least: weights, its draft model's, images, and a row of `USABLE_TOKENS`.

        Raises `BareloopError` if it is not a model, or its files are broken.
        """
        opened = self._open(source, "adapter")
        draft = self.load.get("draft")
        if opened.model.is_encoder:
            return opened.nbytes
        weights = opened.nbytes + (0 if draft in (None, PROMPT) else self.weight_bytes(str(draft)))
        weights += 0 if opened.config.image_token_id is None else IMAGE_BYTES
        if self.cache_bytes is not None:
            return weights + self.cache_bytes
        longest = min(opened.config.max_position_embeddings, self.context or USABLE_TOKENS, USABLE_TOKENS)
        return weights + int(opened.model.new_state().row_bytes(longest) / MEMORY_SHARE)

    def is_encoder(self, source: str) -> bool:
        """Whether a model only embeds texts. Raises `BareloopError` as `needed_bytes`."""
        return self._open(source, "adapter").model.is_encoder

    def weight_bytes(self, source: str) -> int:
        """Bytes of a model's weights once they are loaded. Raises `BareloopError` as `needed_bytes`."""
        return self._open(source).nbytes

    def _open(self, source: str, *further: str) -> Opened:
        names = ("dtype", "allow_pickle", "quant", *further)
        flags = {name: self.load[name] for name in names if name in self.load}
        return open_model(source, device=choose_device(self.load.get("device", "auto")), **flags)


class _ObservedScheduler(Scheduler):
    """Reports its steps, and computes them in turn with others."""

    def __init__(self, *args: Any, observe: Callable[[int, Sequence[float]], None], turn: Turn, **options: Any) -> None:
        super().__init__(*args, **options)
        self._observe, self._turn = observe, turn
        self._last: WeakKeyDictionary[Request, float] = WeakKeyDictionary()  # when its last token came

    def step(self) -> Work | None:
        with self._turn:
            work = super().step()
        if work is not None:
            now = time.perf_counter()
            gaps = []
            for request in work.requests if work.kind == "decode" else ():
                gaps.append(now - self._last.get(request, request.first_token))
                self._last[request] = now
            self._observe(work.tokens, gaps)
        return work


class Engine:
    """One loaded model. Only the thread of its `scheduler` computes with it; tokenizer and template work anywhere."""

    def __init__(
        self,
        name: str,
        llm: LLM,
        options: EngineOptions,
        observe: StepObserver = lambda *_: None,
        on_death: Callable[[Engine], None] = lambda _: None,
    ) -> None:
        """`name`: its public one. `observe`: called after each step. `on_death`: called in the thread if it fails."""
        self.name, self.llm, self.options = name, llm, options
        self.error: BaseException | None = None  # that has ended the thread
        self._on_death = on_death
        self._is_closed = False
        self._usage = 0.0
        self._template: tuple[date, ChatTemplate] | None = None
        self._adapter = None if llm.adapter is None else adapter_fingerprint(llm.adapter)
        turn = Turn()
        rows = {} if options.max_rows is None else {"max_rows": options.max_rows}
        self.scheduler: Scheduler = _ObservedScheduler(
            llm,
            **rows,
            max_queue=options.max_queue,
            cache_bytes=self._cache_bytes(),
            exact=options.exact,
            prefill_chunk=options.prefill_chunk,
            turn=turn,
            observe=lambda tokens, gaps: observe(name, tokens, gaps) if self._thread.is_alive() else None,  # warm
        )
        self.max_length = self._longest()
        self.embeddings = EmbeddingQueue(
            llm, turn, self.scheduler.prefill_chunk, options.max_queue, lambda tokens: observe(name, tokens, ())
        )
        self._thread = threading.Thread(target=self._run, name=f"engine {name}", daemon=True)

    @staticmethod
    def load(
        name: str, source: str, options: EngineOptions, observe: StepObserver, on_death: Callable[[Engine], None]
    ) -> Engine:
        """Load a model, make it ready for requests, and start its thread.

        Raises `BareloopError` if it cannot be loaded, or cannot compute a token.
        """
        load = dict(options.load)
        if load.get("draft") is not None and options.is_encoder(source):
            del load["draft"]  # it is for the other models
        llm = LLM.load(source, **load)
        if options.models == 1:
            llm.pack()  # a second copy of weights, which is too much where models take turns
        elif llm.device.type == "cpu":
            kernels.wait()  # later they could only be adopted while nothing runs
        if llm.is_encoder:
            return EncoderEngine(name, llm, options, observe)
        engine = Engine(name, llm, options, observe, on_death)
        engine.warm_up()
        engine._thread.start()
        return engine

    @cached_property
    def embedder(self) -> Embedder:
        """The model's, which cuts texts to the engine's window. Raises `BareloopError` as `LLM.embedder`."""
        embedder = copy(self.llm.embedder)
        embedder.max_length = min(embedder.max_length, self.max_length)
        return embedder

    @property
    def is_alive(self) -> bool:
        """Whether requests are computed."""
        return self._thread.is_alive() and self.error is None and not self._is_closed

    @property
    def running(self) -> int:
        """Requests that have a row."""
        return len(self.scheduler.running)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self.scheduler.queue)

    def cache_usage(self) -> float:
        """The share of the cache that running requests and kept prompts use."""
        with suppress(RuntimeError, KeyError):  # the thread changes what is counted here
            self._usage = min(1.0, self.scheduler.state.nbytes / self.scheduler.cache_bytes)
        return self._usage

    @property
    def nbytes(self) -> int:
        """Memory that unloading the model frees: its weights, and its cache and its images', used or not."""
        llms = [self.llm, *([self.llm.draft] if isinstance(self.llm.draft, LLM) else ())]
        weights = sum(parameter.nbytes for llm in llms for parameter in llm.model.parameters())
        return weights + self.scheduler.cache_bytes + (0 if self.llm.images is None else self.llm.images.max_bytes)

    @property
    def unallocated_bytes(self) -> int:
        """Of cache and images: what the system counts as free. On a GPU all of the cache is allocated at once."""
        library = self.llm.images
        of_images = 0 if library is None else max(0, library.max_bytes - library.nbytes)
        if self.scheduler.state.capacity_bytes is not None:
            return of_images
        return int((1 - self.cache_usage()) * self.scheduler.cache_bytes) + of_images

    @property
    def fingerprint(self) -> str:
        """What may change a reply beside the request: the version, the model's shape, adapter and weight format."""
        llm = self.llm
        parts: tuple[Any, ...] = (metadata.version("bareloop"), llm.config, llm.quant, llm.dtype, llm.device.type)
        parts += () if self._adapter is None else (self._adapter,)
        return f"bareloop-{hashlib.sha256(repr(parts).encode()).hexdigest()[:12]}"

    def chat_template(self, day: date) -> ChatTemplate:
        """The model's template, or that of the options. On one day it prints one date, so that prompts begin alike.

        Raises `BareloopError` if there is none.
        """
        if self._template is None or self._template[0] != day:
            source = self.options.template
            llm = self.llm
            template = llm.chat_template if source is None else ChatTemplate(source, llm.tokenizer, images=llm.images)
            self._template = day, template.at(datetime.combine(day, time_of_day()))
        return self._template[1]

    def public_ids(self, ids: list[int]) -> list[int]:
        """Token ids for a client: the model's image token in place of the ids of images' vectors."""
        return ids if self.llm.images is None else self.llm.images.placeholders(ids)

    @property
    def template_source(self) -> str | None:
        """The text of the chat template; None if there is none."""
        try:
            return self.chat_template(date.today()).source
        except BareloopError:
            return None

    def warm_up(self) -> None:
        """Compute what takes longer the first time: a prompt and a token, a conversation in the chat template.

        Before the thread is started. Raises `BareloopError` if the model cannot do it, or a given template is broken.
        """
        config = self.llm.config
        first = next((token for token in (config.bos_token_id, *config.eos_token_ids) if token is not None), 0)
        list(self.scheduler.submit([first], SamplingParams(max_new_tokens=2, ignore_eos=True)))
        self.scheduler.cache.clear()
        try:
            self.chat_template(date.today()).encode([{"role": "user", "content": "Hi"}])
        except TemplateError:  # it wants other messages
            return
        except BareloopError:
            if self.options.template is not None:
                raise

    def close(self) -> bool:
        """End all requests and the thread. -> whether it has ended; it is at work if a step takes very long"""
        self._is_closed = True
        self.scheduler.close()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(END_SECONDS)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self.scheduler.run()
        except BaseException as error:  # every failure of a request is its own; this is the loop's
            self.error = error
        if not self._is_closed:
            self.error = self.error or BareloopError("its scheduler was closed")
            self._on_death(self)

    def _cache_bytes(self) -> int | None:
        """A share of the free memory if several models share it; else the scheduler's own default."""
        free = free_memory(self.llm.device)
        if self.options.cache_bytes is not None or self.options.models == 1 or free is None:
            return self.options.cache_bytes
        share = self.llm.states.gpu_memory if self.llm.device.type == "cuda" else MEMORY_SHARE
        return max(1, int(share * free / self.options.models))

    def _longest(self) -> int:
        """The window: the model's, or what the options and the cache allow."""
        window = min(self.llm.max_length, self.options.context or self.llm.max_length)
        scheduler = self.scheduler
        longest = bisect_right(range(1, window + 1), scheduler.cache_bytes, key=scheduler.state.row_bytes)
        if longest < 1:
            raise BareloopError(
                f"{self.name}: the cache has {scheduler.cache_bytes / 1e9:.3f} GB, less than one row takes; "
                "use a larger --cache-gb, or a smaller model"
            )
        return longest


class EncoderEngine(Engine):
    """An encoder: it has no scheduler, no cache and no thread of its own."""

    def __init__(self, name: str, llm: LLM, options: EngineOptions, observe: StepObserver = lambda *_: None) -> None:
        """Compute a text, as a test. Raises `BareloopError` if the model cannot do it."""
        self.name, self.llm, self.options = name, llm, options
        self.error, self._template, self._is_closed = None, None, False
        self._adapter = None if llm.adapter is None else adapter_fingerprint(llm.adapter)
        self.embeddings = EmbeddingQueue(llm, Turn(), None, options.max_queue, lambda tokens: observe(name, tokens, ()))
        self.max_length = llm.embedder.max_length
        llm.embedder.vectors([[0]])

    @property
    def scheduler(self) -> Scheduler:  # type: ignore[override]
        """Raises `BareloopError`: there is none."""
        raise BareloopError(f"{self.name} is an encoder, which embeds texts and generates none; use another model")

    @property
    def is_alive(self) -> bool:
        return not self._is_closed

    @property
    def running(self) -> int:
        return min(1, self.embeddings.requests)

    @property
    def waiting(self) -> int:
        return max(0, self.embeddings.requests - 1)

    def cache_usage(self) -> float:
        return 0.0

    @property
    def nbytes(self) -> int:
        return sum(parameter.nbytes for parameter in self.llm.model.parameters())

    @property
    def unallocated_bytes(self) -> int:
        return 0

    def close(self) -> bool:
        self._is_closed = True
        return True
