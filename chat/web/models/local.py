"""The models that this program loads: each as it is, and in further weight formats."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import TYPE_CHECKING

from chat.models.interface import ChatModel
from chat.web.models.interface import Machine, MakeModel, Progress
from engine.quant import AUTO, BUILTIN, GGUF
from engine.runtime.errors import BareloopError
from engine.serve.threads import in_thread

if TYPE_CHECKING:
    from engine.serve.engine import Engine
    from engine.serve.engines import Engines

TICK = 0.5  # seconds between two reports while a model is loaded


BFLOAT16 = "bfloat16"


def variants(models: Mapping[str, str], quant: str) -> dict[str, tuple[str, dict[str, str]]]:
    """Further names: of each model that is not quantized its int8 and int4 forms, of a GGUF file also that in bfloat16.

    -> their models, and with which options these are loaded. `quant`: the format of all; if the user has chosen one,
    there are no others. Raises `BareloopError` for a name that can be no model's.
    """
    from engine.checkpoints.opening import stored_format

    stored = {name: stored_format(source) for name, source in models.items()}
    found: dict[str, tuple[str, dict[str, str]]] = {}
    for name, source in models.items():
        options = {format_name: {"quant": format_name} for format_name in BUILTIN}
        if stored[name] == GGUF and quant == AUTO:
            options = {BFLOAT16: {"quant": "none", "dtype": BFLOAT16}, **options}
        if stored[name] in ("none", GGUF) and quant in (AUTO, "none"):
            found |= {f"{name}, {format_name}": (source, changes) for format_name, changes in options.items()}
    return {name: variant for name, variant in found.items() if name not in models}


class LocalModels:
    """Models of this process. A conversation gets one with the scheduler that all conversations share."""

    def __init__(self, engines: Engines, sources: Mapping[str, str]) -> None:
        """`sources`: by the names in `engines`, what they are called on the command line."""
        self.engines, self.sources = engines, sources
        self._bytes: dict[str, int] = {}  # of the weights, of models that have been opened

    @property
    def names(self) -> list[str]:
        return self.engines.names

    def about(self, name: str) -> str:
        loaded = next((engine for engine in self.engines.loaded if engine.name == name), None)
        if loaded is not None:
            machine = _machine(loaded)
            return f"{machine.dtype}, {machine.weights_bytes / 1e9:.2f} GB, on {machine.device}"
        changes = self.engines.variants.get(name, {})
        return f"{self.sources[name]} in {changes.get('dtype', changes['quant'])}" if changes else ""

    def resolve(self, name: str) -> str | None:
        if name in self.sources:
            return name
        plain = [known for known, source in self.sources.items() if source == name]
        return plain[0] if plain else None

    def is_wanted(self, name: str) -> bool:
        return self.engines.is_wanted(name)

    @asynccontextmanager
    async def use(self, name: str, progress: Progress) -> AsyncIterator[MakeModel]:
        is_loaded = any(engine.name == name for engine in self.engines.loaded)
        ticker = None if is_loaded else asyncio.create_task(self._tick(name, progress))
        try:
            async with self.engines.use(name) as engine:
                await _end(ticker)
                yield lambda now: self._make(engine, now)
        finally:
            await _end(ticker)

    def machine(self, model: ChatModel) -> Machine:
        from chat.models.local import LocalModel

        engines = self.engines.loaded if isinstance(model, LocalModel) else []
        return next((_machine(engine) for engine in engines if engine.llm is getattr(model, "llm", None)), Machine())

    def _make(self, engine: Engine, now: datetime) -> ChatModel:
        from chat.models.local import ALTERNATIVES, LocalModel

        model = LocalModel(engine.llm, engine.scheduler, now, record=ALTERNATIVES)
        model.limit = min(model.limit, engine.max_length)
        model.others = f"one of: {', '.join(self.names)}"
        return model

    async def _tick(self, name: str, progress: Progress) -> None:
        """Report that a model is being loaded, until cancelled."""
        began, options, source = time.monotonic(), self.engines.options_of(name), self.sources[name]
        try:
            progress(0.0, self._bytes.get(name, 0), False)
            with suppress(BareloopError):  # which loading reports
                self._bytes[name] = await in_thread(lambda: options.weight_bytes(source))
            while True:
                progress(time.monotonic() - began, self._bytes.get(name, 0), False)
                await asyncio.sleep(TICK)
        finally:
            progress(time.monotonic() - began, self._bytes.get(name, 0), True)


async def _end(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _machine(engine: Engine) -> Machine:
    llm = engine.llm
    dtype = str(llm.dtype).removeprefix("torch.")
    weights = sum(parameter.nbytes for parameter in llm.model.parameters())
    return Machine(llm.device.type, dtype if llm.quant == "none" else llm.quant, weights)
