"""What training takes: token ids, of which some are learned."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """One sequence of tokens. `learned[i]`: whether the prediction of token i counts; never of the first."""

    ids: list[int]
    learned: list[bool]


@dataclass(frozen=True)
class Dataset:
    """Examples to train on and held-out ones, from different rows. `notes`: a line each for what a user should know."""

    train: list[Example]
    held_out: list[Example]
    notes: list[str]
