"""One forward's work, and the contract of what a model remembers between two of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Step:
    """One forward's worth of work: the new tokens of all rows, end to end, with no padding.

    `tokens` [N] and `positions` [N] live on the model's device; `rows` [R] (of the state) and `lengths` [R]
    (of each row's share, sum N) stay on the CPU, because they decide shapes.
    """

    tokens: Tensor
    positions: Tensor
    rows: Tensor
    lengths: Tensor

    @staticmethod
    def pack(
        chunks: Sequence[Sequence[int]],
        rows: Sequence[int] | None = None,
        starts: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
    ) -> Step:
        """Token lists, one a row, each beginning at its position in `starts` (0 where none are given)."""
        lengths = [len(chunk) for chunk in chunks]
        starts = starts if starts is not None else [0] * len(chunks)
        positions = [start + i for start, length in zip(starts, lengths, strict=True) for i in range(length)]
        return Step(
            tokens=torch.tensor([token for chunk in chunks for token in chunk], device=device),
            positions=torch.tensor(positions, device=device),
            rows=torch.tensor(rows if rows is not None else range(len(chunks))),
            lengths=torch.tensor(lengths),
        )

    def check(self) -> None:
        """Rows are distinct, and each brings at least one token."""
        rows, lengths = self.rows.tolist(), self.lengths.tolist()
        if len(set(rows)) != len(rows) or min(lengths, default=0) < 1:
            raise ValueError(f"a step has distinct rows with a token or more each, not rows {rows}, lengths {lengths}")

    def slices(self) -> Iterator[slice]:
        """Each row's tokens within the step."""
        start = 0
        for length in self.lengths.tolist():
            yield slice(start, start + length)
            start += length


class State(ABC):
    """What a model remembers of any number of rows.

    Attention keeps keys and values (`kv.KVState`), which can go back to any token; recurrent models keep what they
    have made of the tokens (`recurrent.RecurrentState`), and go back to where a checkpoint was made.
    """

    device: torch.device
    rewinds_anywhere: bool  # or only to checkpoints

    @abstractmethod
    def acquire(self) -> int:
        """A new empty row."""

    @abstractmethod
    def release(self, row: int) -> None:
        """Forget a row; storage that no other row shares is freed."""

    @abstractmethod
    def length(self, row: int) -> int:
        """Tokens that the row remembers, which is also the position of its next one."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes held, counting shared storage once."""

    @abstractmethod
    def row_bytes(self, tokens: int) -> int:
        """Bytes that a row of so many tokens takes."""

    @abstractmethod
    def checkpoint(self, row: int) -> None:
        """Make the row's present length a place that `rewind` can return to."""

    @abstractmethod
    def rewind(self, row: int, position: int) -> int:
        """Go back to the deepest restorable length <= position, and return it."""

    @abstractmethod
    def fork(self, source: int, rows: Sequence[int]) -> None:
        """Make each of `rows` remember what `source` does, in the same storage; what they held is forgotten."""

    def reserve(self, row: int, tokens: int) -> None:  # noqa: B027
        """Make room for `tokens` more, so that feeding them in several steps moves nothing."""
