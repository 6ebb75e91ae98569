"""The states of schedulers. On a GPU memory is allocated once, and kept with its CUDA graphs for the next scheduler."""

from __future__ import annotations

import threading

from engine.cache.blocks import LARGEST_STEP, Budget
from engine.cache.paged import PagedState
from engine.cache.state import State
from engine.decoding.capture import CapturedSteps
from engine.decoding.scheduling.prefix_cache import MAX_KEPT
from engine.models.family import Model
from engine.runtime.errors import UsageError
from engine.runtime.memory import free_memory

GPU_MEMORY = 0.9  # default share of the free memory of a GPU for keys and values


def check_share(gpu_memory: float) -> None:
    """Raise `UsageError` unless it is a share."""
    if not 0 < gpu_memory <= 1:
        raise UsageError(f"gpu_memory = {gpu_memory:g}: use a share of the free memory, more than 0 and up to 1")


class SchedulerStates:
    """Gives schedulers of one model their states, and takes them back."""

    def __init__(self, model: Model, gpu_memory: float = GPU_MEMORY, cuda_graphs: bool = True) -> None:
        self.model = model
        self.gpu_memory = gpu_memory
        self.cuda_graphs = cuda_graphs
        self._idle: list[tuple[PagedState, CapturedSteps | None]] = []
        self._lock = threading.Lock()

    def available_bytes(self) -> int | None:
        """Bytes for keys and values that a state would get now; None if unknown."""
        state = self.model.new_state()
        free = free_memory(state.device)
        if free is None or not isinstance(state, PagedState):
            return free
        return int(self.gpu_memory * (free + sum(idle.allocated_bytes for idle, _ in self._idle)))

    def take(
        self, rows: int, max_bytes: int | None = None, step: int = LARGEST_STEP
    ) -> tuple[State, CapturedSteps | None]:
        """A state for so many rows, and its decoding steps as CUDA graphs, where that is possible.

        On a GPU its blocks are allocated at once: `gpu_memory` of the free memory, but not more than `max_bytes` (a
        quarter more if a state is used again), or than the rows, and those that a scheduler keeps for later, can have.
        `step`: tokens that a row gets at once.
        """
        state = self.model.new_state()
        if not isinstance(state, PagedState):
            return state, None
        with self._lock:
            longest, available = self.model.config.max_position_embeddings, self.available_bytes()
            limits = (available, max_bytes, (rows + MAX_KEPT) * state.row_bytes(longest))
            nbytes = min(limit for limit in limits if limit is not None)
            budget = Budget(nbytes, rows, longest, MAX_KEPT, step)
            for pair in self._idle:
                if pair[0].can_serve(budget):
                    self._idle.remove(pair)
                    return pair
            self._idle.clear()  # whose memory is needed
            state = self.model.new_state(budget)
        return state, CapturedSteps.of(self.model, state) if self.cuda_graphs else None

    def keep(self, state: State, captured: CapturedSteps | None) -> None:
        """Take back the state of a closed scheduler, if it has no rows left."""
        if isinstance(state, PagedState) and state.nbytes == 0:
            with self._lock:
                self._idle.append((state, captured))

    def clear(self) -> None:
        """Free the memory of the states that no scheduler uses."""
        with self._lock:
            self._idle.clear()
