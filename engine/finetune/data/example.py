"""What training takes: token ids, of which some are learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """One sequence of tokens. `learned[i]`: whether the prediction of token i counts; never of the first.

    Those of a `Dataset` are arrays of C integers and bytes, which take 5 bytes a token; lists take 16.
    """

    ids: Sequence[int]
    learned: Sequence[int]


@dataclass(frozen=True)
class Dataset:
    """Examples to train on and held-out ones, from different rows. `notes`: a line each for what a user should know."""

    train: list[Example]
    held_out: list[Example]
    notes: list[str]
