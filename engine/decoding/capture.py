"""Decoding steps as CUDA graphs: the some 200 kernels of a token are launched at once, by one call.

A graph repeats the same kernels on the same addresses. So tokens, positions and the rows' lines in the block tables are
written into a buffer before each replay, and the lengths of rows are data, not shapes: one graph serves all lengths.
Numbers of rows are rounded up; the rows beyond the real ones write into a spare block.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import cast

import torch
from torch import Tensor

from engine.cache.paged import PagedState
from engine.cache.paged_view import BLOCK, PagedView, StepRows
from engine.cache.state import State, Step
from engine.kernels import gpu
from engine.layers.linear import Linear
from engine.layers.packed_adapter import AdaptersOf, JoinedAdapters
from engine.models.family import Model
from engine.runtime.device import upload

ROWS = (1, 2, 4, 8, 16, 32)  # of the graphs
WARM_UPS = 2  # runs before a capture: Triton compiles its kernels, cuBLAS allocates its workspace


@dataclass(frozen=True)
class _FixedState:
    """In place of a state: its view is always the same one, and nothing is added to rows."""

    fixed: PagedView

    def view(self, step: Step) -> PagedView:  # noqa: ARG002
        return self.fixed


@dataclass(frozen=True)
class _Graph:
    """A captured step: what it reads, what it computes, and how to run it."""

    inputs: Tensor  # [3, R], int64: tokens, positions, lines
    logits: Tensor  # [R, V]
    replay: Callable[[], None]


class CapturedSteps:
    """Steps of one new token per row, for one model and state. Each number of rows is captured when it first occurs."""

    def __init__(self, model: Model, state: PagedState) -> None:
        self.model = model
        self.state = state
        self._graphs: dict[int, _Graph] = {}
        self._version = state.version
        self._adapters = AdaptersOf((0, module) for module in model.modules() if isinstance(module, Linear))
        self._joined: JoinedAdapters | None = None  # which the graphs read
        self._is_broken = False

    @staticmethod
    def of(model: Model, state: State) -> CapturedSteps | None:
        """For a model and a state on a GPU; None where the kernels of a step depend on lengths."""
        return CapturedSteps(model, state) if isinstance(state, PagedState) and is_supported(model, state) else None

    def run(self, rows: Sequence[int], tokens: Sequence[int] | Tensor) -> Tensor | None:
        """Feed a token to each of up to 32 rows -> logits [R, V], which the next call overwrites. None: it cannot.

        `tokens`: ids on the host, or [R] on the device, for which nothing waits.
        """
        adapters = self._adapters.joined(self.model.dtype)
        if self._is_broken or len(rows) > ROWS[-1] or not adapters.is_current:  # adapters that train change each time
            return None
        if adapters is not self._joined:  # some were attached, changed or removed
            self._graphs.clear()
            self._joined = adapters
        lines, positions = self.state.prepare(rows, [1] * len(rows))
        if self._version != self.state.version:  # blocks or tables have grown, and have other addresses
            self._graphs.clear()
            self._version = self.state.version
        graph = self._graph(next(size for size in ROWS if size >= len(rows)))
        if graph is None:
            return None
        padding = [0] * (graph.inputs.shape[1] - len(rows))
        ids = [0] * len(rows) if isinstance(tokens, Tensor) else tokens
        numbers = [[*ids, *padding], [*positions, *padding], [*lines, *padding]]
        with torch.inference_mode():
            graph.inputs.copy_(upload(numbers, torch.long, graph.inputs.device))
            if isinstance(tokens, Tensor):
                graph.inputs[0, : len(rows)].copy_(tokens)
        graph.replay()
        self.state.advance(rows, [1] * len(rows))
        return graph.logits[: len(rows)]

    def _graph(self, rows: int) -> _Graph | None:
        if rows not in self._graphs:
            try:
                self._graphs[rows] = self._capture(rows)
            except Exception as error:  # memory, an operator that a graph does not allow, an error of Triton's compiler
                reason = str(error).strip().partition("\n")[0]
                logging.getLogger("bareloop").warning("decoding without CUDA graphs, which is slower (%s)", reason)
                self._is_broken = True
                return None
        return self._graphs[rows]

    def _capture(self, rows: int) -> _Graph:
        device = self.state.device
        with torch.inference_mode():
            inputs = torch.zeros(3, rows, dtype=torch.long, device=device)
            tokens, positions, lines = inputs
            ones = [1] * rows
            offsets = torch.arange(rows + 1, dtype=torch.int32, device=device)
            step = Step(tokens, positions, torch.arange(rows), torch.tensor(ones))

            def work() -> Tensor:
                line = lines.int()
                longest = BLOCK * self.state.groups[0].table.shape[1]
                step_rows = StepRows(ones, longest, line, positions.int(), offsets, line, positions)
                state = _FixedState(self.state.view_of(step_rows, lambda: None))
                return self.model.logits(self.model.forward(step, cast("State", state)))

            replay, logits = record(work, device)
        return _Graph(inputs, logits, replay)


def is_supported(model: Model, state: State) -> bool:
    """Whether the kernels of a step are always the same: with Triton, and without bitsandbytes."""
    return model.dtype in gpu.DTYPES and gpu.for_device(state.device) is not None and model.capturable


def record(work: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], None], Tensor]:
    """Capture what `work` launches -> a function that launches it again, and the result, which that overwrites."""
    with _recording, torch.cuda.device(device):
        side = _side_stream(device)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                work()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):  # others may use the GPU
            result = work()
    return graph.replay, result


_recording = threading.Lock()  # a capture begins with waiting for the device, which another's forbids


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
