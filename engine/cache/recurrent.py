"""What recurrent models remember: for each row a few tensors whose size does not depend on its length.

A forward makes new tensors and leaves the old ones alone. So a checkpoint is a reference, and so is a fork; and a
forward that is abandoned has changed nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.cache.state import State, Step

CHECKPOINTS = 12  # of a row, the newest; older ones are forgotten

Memory = list[dict[str, Tensor]]  # by layer: name -> [R, …]


@dataclass(frozen=True)
class Place:
    """What one row remembered after `length` tokens: row `index` of some memory."""

    memory: Memory
    index: int
    length: int


@dataclass
class Row:
    """One row: where it is, where it was before the last step, and its checkpoints, the oldest first."""

    now: Place
    before: Place
    checkpoints: list[Place] = field(default_factory=list)


class RecurrentState(State):
    """Tensors of these shapes for each layer, for any number of rows; all begin with the values in `start`."""

    rewinds_anywhere = False

    def __init__(self, layers: int, start: Mapping[str, Tensor]) -> None:
        first = next(iter(start.values()))
        self.device = first.device
        self._empty: Memory = [{name: tensor[None] for name, tensor in start.items()}] * layers
        self._rows: dict[int, Row] = {}
        self._next = 0

    def acquire(self) -> int:
        row, self._next = self._next, self._next + 1
        beginning = Place(self._empty, 0, 0)
        self._rows[row] = Row(beginning, beginning)
        return row

    def release(self, row: int) -> None:
        del self._rows[row]

    def length(self, row: int) -> int:
        return self._rows[row].now.length

    @property
    def nbytes(self) -> int:
        places = (place for row in self._rows.values() for place in (row.now, row.before, *row.checkpoints))
        memories = {id(place.memory): place.memory for place in places if place.length}
        return sum(tensor.nbytes for memory in memories.values() for layer in memory for tensor in layer.values())

    def row_bytes(self, tokens: int) -> int:  # noqa: ARG002
        """Of a row and its checkpoints, however many tokens it has read."""
        one = sum(tensor.nbytes for layer in self._empty for tensor in layer.values())
        return one * (CHECKPOINTS + 2)

    def checkpoint(self, row: int) -> None:
        here = self._rows[row]
        if here.now.length and here.now.length not in [place.length for place in here.checkpoints]:
            here.checkpoints = [*here.checkpoints, here.now][-CHECKPOINTS:]

    def rewind(self, row: int, position: int) -> int:
        here = self._rows[row]
        beginning = Place(self._empty, 0, 0)
        here.checkpoints = [place for place in here.checkpoints if place.length <= position]
        places = [beginning, *here.checkpoints, here.before, here.now]
        here.now = max((place for place in places if place.length <= position), key=lambda place: place.length)
        here.before = here.now
        return here.now.length

    def fork(self, source: int, rows: Sequence[int]) -> None:
        origin = self._rows[source]
        for row in rows:
            if row != source:
                self._rows[row] = Row(origin.now, origin.before, list(origin.checkpoints))

    def view(self, step: Step) -> RecurrentView:
        """The step's rows side by side. Rows are distinct, and each brings at least one token."""
        step.check()
        owners, lengths = step.rows.tolist(), step.lengths.tolist()
        places = [self._rows[row].now for row in owners]
        return RecurrentView(self, owners, lengths, _gathered(places))

    def advance(self, owners: Sequence[int], lengths: Sequence[int], memory: Memory) -> None:
        """The forward is through: its rows now remember this."""
        for index, (owner, length) in enumerate(zip(owners, lengths, strict=True)):
            row = self._rows[owner]
            row.now, row.before = Place(memory, index, row.now.length + length), row.now


class RecurrentView:
    """What one forward sees of a state, and what it leaves behind, which counts from `commit` on."""

    def __init__(self, state: RecurrentState, owners: list[int], lengths: list[int], memory: Memory) -> None:
        self.state = state
        self.owners, self.lengths = owners, lengths
        self.memory = memory
        self.new: Memory = []

    def leave(self, tensors: Mapping[str, Tensor]) -> None:
        """What the next layer remembers: copies, so that nothing larger is kept, and usable outside inference mode."""
        with torch.inference_mode(False):
            self.new.append({name: tensor.detach().clone() for name, tensor in tensors.items()})

    def commit(self) -> None:
        """All layers have left what they remember."""
        assert len(self.new) == len(self.memory)
        self.state.advance(self.owners, self.lengths, self.new)


def _gathered(places: Sequence[Place]) -> Memory:
    """The memories of some rows as one; rows that went together the last time need no copy."""
    first = places[0].memory
    together = all(place.memory is first and place.index == index for index, place in enumerate(places))
    if together and len(places) == len(next(iter(first[0].values()))):
        return first
    return [
        {name: torch.stack([place.memory[layer][name][place.index] for place in places]) for name in names}
        for layer, names in enumerate(first)
    ]


class Padded:
    """The rows of a step side by side, [N, …] <-> [R, T, …], the shorter ones filled up at their ends."""

    def __init__(self, step: Step) -> None:
        self.lengths = step.lengths
        self.rows, self.longest = len(step.lengths), int(step.lengths.max())
        self.even = bool((step.lengths == self.longest).all())
        device = step.tokens.device
        if not self.even:
            seen = torch.arange(self.longest)[None] < step.lengths[:, None]  # [R, T]
            self.seen = seen.to(device)
            self.places = seen.flatten().nonzero()[:, 0].to(device)  # [N]
        self.ends = (step.lengths - 1).to(device)  # [R], of each row

    def pad(self, x: Tensor, fill: float = 0.0) -> Tensor:
        """[N, …] -> [R, T, …]."""
        if self.even:
            return x.view(self.rows, self.longest, *x.shape[1:])
        full = x.new_full((self.rows * self.longest, *x.shape[1:]), fill)
        return full.index_put((self.places,), x).view(self.rows, self.longest, *x.shape[1:])

    def unpad(self, x: Tensor) -> Tensor:
        """[R, T, …] -> [N, …]."""
        flat = x.flatten(0, 1)
        return flat if self.even else flat[self.places]

    def last(self, x: Tensor) -> Tensor:
        """[R, T, …] -> [R, …]: at each row's last token."""
        return x[:, -1] if self.even else x[torch.arange(self.rows, device=x.device), self.ends]


def read_places(step: Step, last: Sequence[int] | None) -> Tensor | None:
    """Where the `last` tokens of each row stand in the step; None: all of them."""
    if last is None:
        return None
    counted = zip(step.slices(), last, strict=True)
    places = [place for tokens, count in counted for place in range(tokens.stop - count, tokens.stop)]
    return torch.tensor(places, device=step.tokens.device, dtype=torch.long)
