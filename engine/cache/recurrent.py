"""RecurrentState: the state of recurrent models, a few tensors per row whose size does not depend on its length.

A forward pass creates new tensors and does not modify the old ones. So a checkpoint is a reference, and so is a fork;
and an abandoned forward changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.cache.state import State, Step
from engine.runtime.device import upload

MAX_CHECKPOINTS = 12  # per row; of more, the one that leaves the smallest gap is dropped

Memory = list[dict[str, Tensor]]  # by layer: name -> [R, …]


@dataclass(frozen=True)
class Snapshot:
    """The memory of one row after `length` tokens: row `index` of a batched memory."""

    memory: Memory
    index: int
    length: int


@dataclass
class Row:
    """One row: its current memory, the one before the last step, and its checkpoints, the oldest first."""

    current: Snapshot
    previous: Snapshot
    checkpoints: list[Snapshot] = field(default_factory=list)


class RecurrentState(State):
    """The memory of every layer, for any number of rows. `start`: one layer's initial memory of a row."""

    rewinds_anywhere = False

    def __init__(self, layers: int, start: Mapping[str, Tensor]) -> None:
        first = next(iter(start.values()))
        self.device = first.device
        self._empty: Memory = [{name: tensor[None] for name, tensor in start.items()}] * layers
        self._rows: dict[int, Row] = {}
        self._next = 0

    def acquire(self) -> int:
        row, self._next = self._next, self._next + 1
        start = Snapshot(self._empty, 0, 0)
        self._rows[row] = Row(start, start)
        return row

    def release(self, row: int) -> None:
        del self._rows[row]

    def length(self, row: int) -> int:
        return self._rows[row].current.length

    @property
    def nbytes(self) -> int:
        snapshots = (item for row in self._rows.values() for item in (row.current, row.previous, *row.checkpoints))
        memories = {id(item.memory): item.memory for item in snapshots if item.length}
        return sum(tensor.nbytes for memory in memories.values() for layer in memory for tensor in layer.values())

    def row_bytes(self, tokens: int, shared: int = 0) -> int:  # noqa: ARG002
        """Bytes of a row with its checkpoints, independent of its length."""
        nbytes = sum(tensor.nbytes for layer in self._empty for tensor in layer.values())
        return nbytes * (MAX_CHECKPOINTS + 2)

    def checkpoint(self, row: int) -> None:
        entry = self._rows[row]
        kept = entry.checkpoints
        if entry.current.length and entry.current.length not in [item.length for item in kept]:
            kept.append(entry.current)
        if len(kept) > MAX_CHECKPOINTS:  # the first and the last stay: the common beginning of texts, and this text
            inner = range(1, len(kept) - 1)
            del kept[min(inner, key=lambda i: kept[i + 1].length - kept[i - 1].length)]

    def restorable(self, row: int, position: int) -> int:
        return self._snapshot(row, position).length

    def rewind(self, row: int, position: int) -> int:
        entry = self._rows[row]
        entry.current = entry.previous = self._snapshot(row, position)
        entry.checkpoints = [item for item in entry.checkpoints if item.length <= position]
        return entry.current.length

    def _snapshot(self, row: int, position: int) -> Snapshot:
        """The longest snapshot of the row with up to `position` tokens."""
        entry = self._rows[row]
        snapshots = (Snapshot(self._empty, 0, 0), *entry.checkpoints, entry.previous, entry.current)
        return max((item for item in snapshots if item.length <= position), key=lambda item: item.length)

    def compact(self, row: int) -> None:
        entry = self._rows[row]
        entry.current = entry.previous = _alone(entry.current)
        entry.checkpoints = [_alone(item) for item in entry.checkpoints]

    def fork(self, source: int, rows: Sequence[int]) -> None:
        origin = self._rows[source]
        for row in rows:
            if row != source:
                self._rows[row] = Row(origin.current, origin.previous, list(origin.checkpoints))

    def view(self, step: Step) -> RecurrentView:
        """The step's rows as a batch. Rows must be distinct, with at least one token each."""
        step.check()
        owners, lengths = step.rows.tolist(), step.lengths.tolist()
        snapshots = [self._rows[row].current for row in owners]
        return RecurrentView(self, owners, lengths, _batched(snapshots))

    def advance(self, owners: Sequence[int], lengths: Sequence[int], memory: Memory) -> None:
        """Set the new memory of these rows, after the forward pass."""
        for index, (owner, length) in enumerate(zip(owners, lengths, strict=True)):
            row = self._rows[owner]
            row.current, row.previous = Snapshot(memory, index, row.current.length + length), row.current


class RecurrentView:
    """The memory that one forward pass reads, and the new memory, which takes effect with `commit`."""

    def __init__(self, state: RecurrentState, owners: list[int], lengths: list[int], memory: Memory) -> None:
        self.state = state
        self.owners, self.lengths = owners, lengths
        self.memory = memory
        self.new: Memory = []

    def append(self, tensors: Mapping[str, Tensor]) -> None:
        """Add the next layer's new memory. It is copied, so that no larger tensor is kept alive by a view of it."""
        with torch.inference_mode(False):
            self.new.append({name: tensor.detach().clone() for name, tensor in tensors.items()})

    def commit(self) -> None:
        """Make the new memory of all layers that of the rows."""
        assert len(self.new) == len(self.memory)
        self.state.advance(self.owners, self.lengths, self.new)


def _alone(snapshot: Snapshot) -> Snapshot:
    """A snapshot whose memory has no other rows."""
    if snapshot.length == 0 or len(next(iter(snapshot.memory[0].values()))) == 1:
        return snapshot
    index = slice(snapshot.index, snapshot.index + 1)
    memory = [{name: tensor[index].clone() for name, tensor in layer.items()} for layer in snapshot.memory]
    return Snapshot(memory, 0, snapshot.length)


def _batched(snapshots: Sequence[Snapshot]) -> Memory:
    """The memories of several rows as one batch. Rows that were one batch in the last step need no copy."""
    first = snapshots[0].memory
    unchanged = all(item.memory is first and item.index == index for index, item in enumerate(snapshots))
    if unchanged and len(snapshots) == len(next(iter(first[0].values()))):
        return first
    return [
        {name: torch.stack([item.memory[layer][name][item.index] for item in snapshots]) for name in names}
        for layer, names in enumerate(first)
    ]


class PaddedRows:
    """Converts between packed tokens [N, …] and padded rows [R, T, …]. Padding is at the end."""

    def __init__(self, step: Step) -> None:
        self.lengths = step.lengths
        self.count, self.longest = len(step.lengths), int(step.lengths.max())
        self.even = bool((step.lengths == self.longest).all())
        device = step.tokens.device
        if not self.even:
            mask = torch.arange(self.longest)[None] < step.lengths[:, None]  # [R, T]
            self.indices = upload(mask.flatten().nonzero()[:, 0], torch.long, device)  # [N]
        self.ends = upload(step.lengths - 1, torch.long, device)  # [R], index of each row's last token

    def pad(self, x: Tensor, fill: float = 0.0) -> Tensor:
        """[N, …] -> [R, T, …]."""
        if self.even:
            return x.view(self.count, self.longest, *x.shape[1:])
        full = x.new_full((self.count * self.longest, *x.shape[1:]), fill)
        return full.index_put((self.indices,), x).view(self.count, self.longest, *x.shape[1:])

    def unpad(self, x: Tensor) -> Tensor:
        """[R, T, …] -> [N, …]."""
        flat = x.flatten(0, 1)
        return flat if self.even else flat[self.indices]

    def last(self, x: Tensor) -> Tensor:
        """[R, T, …] -> [R, …]: the last token of each row."""
        return x[:, -1] if self.even else x[torch.arange(self.count, device=x.device), self.ends]


def last_indices(step: Step, last: Sequence[int] | None) -> Tensor | None:
    """Indices in the step of the `last` tokens of each row; None if `last` is None, for all tokens."""
    if last is None:
        return None
    rows = zip(step.slices(), last, strict=True)
    indices = [index for tokens, count in rows for index in range(tokens.stop - count, tokens.stop)]
    return upload(indices, torch.long, step.tokens.device)
