"""All models of a server by name: loaded when they are first used, unloaded when the memory is needed for another."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from engine.checkpoints.embedded import ABOUT
from engine.checkpoints.gguf.source import OLLAMA
from engine.cli.parser import label, short_name
from engine.cli.progress import duration
from engine.runtime.device import choose_device
from engine.runtime.errors import BareloopError, UsageError, is_out_of_memory, quote
from engine.runtime.files import local_path
from engine.runtime.memory import free_memory, release_freed_memory
from engine.serve.engine import Engine, EngineOptions, StepObserver
from engine.serve.protocol.errors import ApiError, unavailable
from engine.serve.threads import at_work, in_thread


class NoRoomError(BareloopError):
    """A model does not fit into the memory, even alone."""


def public_names(models: Sequence[str], aliases: Sequence[str] = (), adapter: str | None = None) -> dict[str, str]:
    """Models by public name: their aliases, in the same order, else what they are called; of a path the last part.

    With an adapter its name follows: gpt2+gpt2-squad.

    Raises `UsageError` for two of one name, an empty name, or more aliases than models.
    """
    if len(aliases) > len(models):
        raise UsageError(f"--alias has {len(aliases)} names for {len(models)} of --model; one name each")
    result: dict[str, str] = {}
    for number, model in enumerate(models):
        name = aliases[number] if number < len(aliases) else label(_name_of(model), adapter, "+")
        if not name.strip() or not name.isprintable():
            raise UsageError(f"--alias {quote(name)}: a name needs at least one character, and only printable ones")
        if name in result:
            raise UsageError(f"two models are called {quote(name)}; give them different names with --alias")
        result[name] = model
    return result


def _name_of(model: str) -> str:
    if model in ABOUT or model.startswith(OLLAMA):
        return model
    path = local_path(model)
    return short_name(path) if path.is_dir() else path.stem if path.is_file() else model


class Engines:
    """The models of one server. All methods but `problem` are called in the thread of its event loop."""

    def __init__(
        self,
        models: dict[str, str],
        options: EngineOptions,
        observe: StepObserver = lambda *_: None,
        note: Callable[[str], None] = lambda _: None,
        free: Callable[[Any], int | None] = free_memory,
        variants: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """`models`: by their public names. `note`: told of what is loaded and unloaded. `free`: bytes that are free on
        a device. `observe`: called after each step. `variants`: changes of `options.load` for some of the names.
        """
        self.models, self.options, self.names = models, options, list(models)
        self.variants = variants or {}
        self.created = int(time.time())
        self._observe, self._note, self._free = observe, note, free
        self.on_death: Callable[[Engine], None] = lambda _: None  # called in the thread of a model that has failed
        self.on_unload: Callable[[Engine], None] = lambda _: None  # called before a model is unloaded
        self._loaded: dict[str, Engine] = {}  # the least recently used first
        self._users: Counter[str] = Counter()  # requests that use a model or wait for it
        self._loads: dict[str, asyncio.Task[None]] = {}
        self._windows: dict[str, int] = {}  # of models that have been loaded once
        self._loading = asyncio.Lock()  # one model at a time
        self._turn = asyncio.Lock()  # held by a load that waits for memory: nobody else begins to use a model then
        self._idle = asyncio.Event()  # a model may have lost its last user
        self._has_failed = False

    @property
    def loaded(self) -> list[Engine]:
        """The models in memory, the least recently used first."""
        return list(self._loaded.values())

    def is_wanted(self, name: str) -> bool:
        """Whether a model is loaded or being loaded."""
        return name in self._loaded or name in self._loads

    def options_of(self, name: str) -> EngineOptions:
        """How a model is loaded."""
        return replace(self.options, load={**self.options.load, **self.variants.get(name, {})})

    def resolve(self, name: str | None) -> str:
        """The public name of a model: the first one's if none is named. Raises `ApiError` 404 for an unknown one."""
        if not name:
            return self.names[0]
        if name in self.models:
            return name
        names = ", ".join(self.names)
        message = f"the model {quote(name)} does not exist; this server has: {names}"
        raise ApiError(404, message, param="model", code="model_not_found")

    def describe(self, name: str) -> dict[str, Any]:
        """A model as an object of the API; with its window, once it is known."""
        window = {"max_model_len": self._windows[name]} if name in self._windows else {}
        return {"id": name, "object": "model", "created": self.created, "owned_by": "bareloop", **window}

    def problem(self) -> str | None:
        """Why requests cannot be answered now; None if they can."""
        for engine in self.loaded:
            if not engine.is_alive:
                return f"the engine of {engine.name} has ended"
        if not self._windows:
            return f"{self.names[0]} cannot be loaded" if self._has_failed else f"{self.names[0]} is being loaded"
        return None

    async def preload(self) -> Engine:
        """Load the first model. Raises its `BareloopError`."""
        name = self.names[0]
        try:
            async with self._turn:
                self._users[name] += 1
                task = self._load_task(name)
            await task
            return self._loaded[name]
        except BaseException:
            self._has_failed = True
            raise
        finally:
            self._leave(name)

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[Engine]:
        """Use a model, which is loaded first if need be, and not unloaded meanwhile.

        Raises `ApiError` if it cannot be loaded; the next request tries again.
        """
        async with self._turn:
            self._users[name] += 1
            task = None if name in self._loaded else self._load_task(name)
        try:
            if task is not None:
                try:
                    await asyncio.shield(task)  # which others wait for, too
                except Exception as error:
                    raise _refusal(name, error) from error
            self._touch(name)
            yield self._loaded[name]
        finally:
            self._leave(name)

    def close(self) -> bool:
        """End all requests and unload all models. -> False if a thread is still at work"""
        ended = [engine.close() for engine in self.loaded]  # all of them
        self._loaded.clear()
        return all(ended) and not at_work()

    def _leave(self, name: str) -> None:
        self._users[name] -= 1
        self._touch(name)
        self._idle.set()

    def _touch(self, name: str) -> None:
        """Make a model the most recently used one."""
        if name in self._loaded:
            self._loaded[name] = self._loaded.pop(name)

    def _load_task(self, name: str) -> asyncio.Task[None]:
        if name not in self._loads:
            self._loads[name] = asyncio.create_task(self._load(name))
            self._loads[name].add_done_callback(lambda task: task.cancelled() or task.exception())  # may have no reader
        return self._loads[name]

    async def _load(self, name: str) -> None:
        try:
            async with self._loading:
                began = time.perf_counter()
                source, options = self.models[name], self.options_of(name)
                needed = await in_thread(lambda: options.needed_bytes(source))
                await self._make_room(name, needed)
                engine = await in_thread(lambda: Engine.load(name, source, options, self._observe, self.on_death))
                self._loaded[name] = engine
                self._windows[name] = engine.max_length
                self._note(
                    f"{name}: loaded in {duration(time.perf_counter() - began)}, window {engine.max_length:,} tokens, "
                    f"{kernels_of(engine)}"
                )
        finally:
            del self._loads[name]

    async def _make_room(self, name: str, needed: int) -> None:
        """Unload models that nobody uses until so many bytes are free, and wait for the others if need be.

        Raises `NoRoomError` if that would not be enough.
        """
        device = choose_device(self.options.load.get("device", "auto"))
        async with self._turn:
            while True:
                free = self._available(device)
                if free is not None and free < needed:  # but what was freed before may not have been returned
                    await in_thread(release_freed_memory)
                    free = self._available(device)
                if free is None or free >= needed:
                    return
                if free + sum(engine.nbytes for engine in self.loaded) < needed:
                    raise NoRoomError(
                        f"{name} needs {needed / 1e9:.1f} GB with its cache, more than is free on {device} without "
                        f"other models; serve a smaller model, or add --quant int8, int4 or a smaller --cache-gb"
                    )
                idle = next((loaded for loaded in self._loaded if not self._users[loaded]), None)
                if idle is not None:
                    await self._unload(idle, name)
                    continue
                if not self._users[name]:
                    raise BareloopError(f"{name} is not loaded, as nobody waits for it any more")
                self._idle.clear()
                await self._idle.wait()

    def _available(self, device: Any) -> int | None:
        """Bytes that are free, without those that the caches of the loaded models may still grow to."""
        free = self._free(device)
        return None if free is None else free - sum(engine.unallocated_bytes for engine in self.loaded)

    async def _unload(self, name: str, reason: str) -> None:
        engine = self._loaded.pop(name)
        self.on_unload(engine)
        await in_thread(engine.close)
        del engine
        await in_thread(release_freed_memory)
        self._note(f"{name}: unloaded, as {reason} needs its memory")


def kernels_of(engine: Engine) -> str:
    """What computes a model, for a line of the log."""
    from engine import kernels

    llm = engine.llm
    return kernels.describe(llm.dtype) if llm.device.type == "cpu" else str(llm.device)


def _refusal(name: str, error: Exception) -> ApiError:
    """The answer to a request whose model could not be loaded."""
    if isinstance(error, NoRoomError):
        return unavailable(str(error))
    if isinstance(error, BareloopError):
        return ApiError(500, f"the model {name} cannot be loaded: {error}")
    if is_out_of_memory(error):
        return unavailable(f"out of memory while {name} was loaded; use a smaller model or --dtype bfloat16")
    logging.getLogger("bareloop").error("loading %s failed", name, exc_info=error)
    return ApiError(500, f"the model {name} cannot be loaded: {type(error).__name__}: {error}")
