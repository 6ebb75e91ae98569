"""Load the data of a run: rows, of which some are held out, as examples for one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from engine.finetune.data.encoding import Encoder
from engine.finetune.data.example import Dataset
from engine.finetune.data.rows import Row, parse_row
from engine.finetune.data.sources import Source, read_data
from engine.runtime.errors import BareloopError, UsageError

if TYPE_CHECKING:
    from engine.llm import LLM

MAX_LENGTH = 2_048  # tokens of an example, unless given
HELD_OUT_SHARE, MOST_HELD_OUT = 20, 200  # by default one row in so many, at most so many


@dataclass(frozen=True)
class Selection:
    """Some rows of a source, parsed, by their places in it."""

    source: Source
    indices: Sequence[int]

    def rows(self) -> list[Row]:
        """The rows. Raises `BareloopError` with the place of a bad one."""
        return [parse_row(self.source.rows[index], self.source.place(index)) for index in self.indices]

    def place(self, index: int) -> str:
        """Where the selection's row `index` comes from."""
        return self.source.place(self.indices[index])


def load_data(
    data: str,
    llm: LLM,
    *,
    max_length: int | None,
    limit: int | None,
    held_out: int | None,
    mask_prompt: bool = True,
    seed: int = 0,
) -> Dataset:
    """Read and encode training data for a model.

    `data`: see `sources.read_data`; rows: see `rows.parse_row`. `max_length`: tokens of an example; by default 2,048 or
    the model's window. `limit`: rows, drawn by the seed; by default all. `held_out`: rows that are not trained on: of
    `valid`, if the folder has it, or else drawn from the others by the seed; by default one in 20, at most 200.
    `mask_prompt`: only replies and completions are learned.
    Raises `BareloopError` with one line, for a bad row with its file and line.
    """
    longest = length_limit(max_length, llm.max_length)
    for name, value, least in (("limit", limit, 1), ("held-out", held_out, 0)):
        if value is not None and value < least:
            raise UsageError(f"--{name} {value}: use {least} or more")
    train_source, valid_source = read_data(data)
    if not train_source.rows:
        raise BareloopError(f"--data {data} has no rows")
    train, held = select(train_source, valid_source, limit, held_out, seed)
    encoder = Encoder(llm, longest, mask_prompt)
    parts = [(part.rows(), part.place) for part in (train, held)]
    train_examples, held_examples = (encoder.encode(rows, place) for rows, place in parts)
    notes = encoder.notes()
    if held.source is valid_source and len(held.indices) < len(valid_source.rows):
        notes.append(f"{len(held.indices):,} of the {len(valid_source.rows):,} rows of valid are held out")
    if not train_examples:
        reasons = f" ({'; '.join(notes)})" if notes else ""
        raise BareloopError(f"--data {data}: no example is left to train on{reasons}; raise --max-length, or add rows")
    return Dataset(train_examples, held_examples, notes)


def length_limit(max_length: int | None, window: int) -> int:
    """Tokens of the longest example. Raises `UsageError` for a value that the model's window does not have."""
    if max_length is None:
        return min(MAX_LENGTH, window)
    if not 2 <= max_length <= window:
        raise UsageError(f"--max-length {max_length}: use 2 to {window:,}, the model's window")
    return max_length


def select(
    train: Source, valid: Source | None, limit: int | None, held_out: int | None, seed: int
) -> tuple[Selection, Selection]:
    """The rows to train on and those that are held out, each in their order, drawn by the seed."""
    indices = draw(range(len(train.rows)), limit, f"limit {seed}")
    if valid is not None:
        most = MOST_HELD_OUT if held_out is None else held_out
        return Selection(train, indices), Selection(valid, draw(range(len(valid.rows)), most, f"held-out {seed}"))
    count = min(MOST_HELD_OUT, len(indices) // HELD_OUT_SHARE) if held_out is None else held_out
    if count >= len(indices):
        raise UsageError(f"--held-out {count}: there are {len(indices):,} rows; leave at least one to train on")
    held = draw(indices, count, f"held-out {seed}")
    chosen = set(held)
    return Selection(train, [index for index in indices if index not in chosen]), Selection(train, held)


def draw(indices: Sequence[int], count: int | None, seed: str) -> Sequence[int]:
    """`count` of the indices, in their order; all, if there are no more."""
    if count is None or count >= len(indices):
        return indices
    return sorted(Random(seed).sample(indices, count))
