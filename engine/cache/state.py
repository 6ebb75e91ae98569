"""Step: the tokens of one forward pass. State: the interface of what a model keeps between two of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.runtime.device import upload

MIN_SLACK = 64  # tokens that are kept beyond a window, so that a row can be rewound


def rewind_slack(window: int) -> int:
    """Tokens beyond a window that are kept at least."""
    return max(MIN_SLACK, window // 2)


def layers_by_window(windows: Sequence[int | None]) -> tuple[list[int | None], list[tuple[int, int]]]:
    """The different windows, and of each layer the index of its window, and its own among the layers with the same."""
    sizes = list(dict.fromkeys(windows))
    return sizes, [(sizes.index(window), windows[:layer].count(window)) for layer, window in enumerate(windows)]


@dataclass(frozen=True)
class StepImages:
    """The vectors of images in a step, which take the places of embeddings.

    `places` [M]: indices in the step's tokens, which have the model's `image_token_id` there. `vectors` [M, hidden].
    Both are on the model's device.
    """

    places: Tensor
    vectors: Tensor

    def merge(self, x: Tensor) -> Tensor:
        """x [N, hidden], the embeddings of the step's tokens -> the same with the images' vectors, in x's dtype."""
        return x.index_copy(0, self.places, self.vectors.to(x.dtype))


@dataclass(frozen=True)
class Step:
    """The work of one forward pass: the new tokens of all rows, end to end, without padding.

    `tokens` [N] and `positions` [N] are on the model's device. `rows` [R] (of the state) and `lengths` [R] (tokens per
    row, sum N) stay on the CPU, because they determine shapes. `images`: vectors in place of some embeddings.
    """

    tokens: Tensor
    positions: Tensor
    rows: Tensor
    lengths: Tensor
    images: StepImages | None = None

    @staticmethod
    def pack(
        chunks: Sequence[Sequence[int]],
        rows: Sequence[int] | None = None,
        starts: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
        images: StepImages | None = None,
    ) -> Step:
        """Pack one token list per row. `starts`: position of each row's first token (default 0)."""
        lengths = [len(chunk) for chunk in chunks]
        starts = starts if starts is not None else [0] * len(chunks)
        positions = [start + i for start, length in zip(starts, lengths, strict=True) for i in range(length)]
        return Step(
            tokens=upload([token for chunk in chunks for token in chunk], torch.long, device),
            positions=upload(positions, torch.long, device),
            rows=torch.tensor(rows if rows is not None else range(len(chunks))),
            lengths=torch.tensor(lengths),
            images=images,
        )

    def check(self) -> None:
        """Raise `ValueError` unless rows are distinct and have at least one token each."""
        rows, lengths = self.rows.tolist(), self.lengths.tolist()
        if len(set(rows)) != len(rows) or min(lengths, default=0) < 1:
            raise ValueError(f"a step has distinct rows with a token or more each, not rows {rows}, lengths {lengths}")

    def slices(self) -> Iterator[slice]:
        """The slice of each row's tokens."""
        start = 0
        for length in self.lengths.tolist():
            yield slice(start, start + length)
            start += length


class State(ABC):
    """What a model keeps of any number of rows (sequences) between steps.

    Attention keeps keys and values (`KVState`, on a GPU `PagedState`), which can be rewound to any token. Recurrent
    models keep a few tensors (`RecurrentState`), and can be rewound only to checkpoints.
    """

    device: torch.device
    rewinds_anywhere: bool  # False: only to checkpoints

    @abstractmethod
    def acquire(self) -> int:
        """Add an empty row, and return its number."""

    @abstractmethod
    def release(self, row: int) -> None:
        """Remove a row. Storage that no other row shares is freed."""

    @abstractmethod
    def length(self, row: int) -> int:
        """Number of tokens in the row, which is also the position of the next one."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes in use, counting shared storage once."""

    @property
    def capacity_bytes(self) -> int | None:
        """Bytes that were allocated at once for all rows; None if memory is allocated when it is needed."""
        return None

    @abstractmethod
    def row_bytes(self, tokens: int, shared: int = 0) -> int:
        """Bytes of a row that grows to this many tokens, the first `shared` of which are in another row's storage."""

    def growth_bytes(self, row: int, tokens: int) -> int:
        """Bytes that a row needs beyond those that it has, to grow to this many tokens."""
        return self.row_bytes(tokens, self.length(row))

    def held_bytes(self, row: int) -> int:  # noqa: ARG002
        """Bytes that a row has, where `growth_bytes` does not count them; otherwise 0."""
        return 0

    def on_shortage(self, evict: Callable[[], bool] | None) -> None:  # noqa: B027
        """Set what is called while memory that was allocated at once is short: it releases a row, or returns False."""

    @abstractmethod
    def checkpoint(self, row: int) -> None:
        """Allow `rewind` to return to the row's current length."""

    @abstractmethod
    def restorable(self, row: int, position: int) -> int:
        """The largest length <= position to which the row can be shortened."""

    @abstractmethod
    def rewind(self, row: int, position: int) -> int:
        """Shorten the row to the largest restorable length <= position, and return that length."""

    @abstractmethod
    def fork(self, source: int, rows: Sequence[int]) -> None:
        """Replace the content of `rows` by that of `source`, sharing its storage."""

    def reserve(self, row: int, tokens: int) -> None:  # noqa: B027
        """Allocate room for `tokens` more, so that appending them in several steps does not copy."""

    @abstractmethod
    def compact(self, row: int) -> None:
        """Free what the row keeps beyond its content: reserved room, or memory of other rows that it keeps alive."""
