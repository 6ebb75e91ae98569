"""The order of one epoch: examples packed end to end into steps of a bounded number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from engine.finetune.data.example import Example

LOOK_AHEAD = 64  # examples among which one is sought that still fits into a step


def batches(examples: Sequence[Example], batch_tokens: int, seed: int, epoch: int) -> list[list[int]]:
    """The indices of the examples in each forward pass of an epoch, at most `batch_tokens` tokens together.

    Every example is in one pass; an example that is longer has a pass of its own. The order depends only on the
    arguments: it is drawn from `seed` and `epoch`. A pass begins with the next example of that order, so that none
    waits longer than for the passes before it, and is filled with the next ones that fit.
    """
    order = list(range(len(examples)))
    Random(f"batches {seed} {epoch}").shuffle(order)
    lengths = [len(example.ids) for example in examples]
    waiting, position = order[:LOOK_AHEAD], LOOK_AHEAD
    result = []
    while waiting:
        batch: list[int] = []
        room = batch_tokens
        place = 0
        while place < len(waiting):
            index = waiting[place]
            if batch and lengths[index] > room:
                place += 1
                continue
            batch.append(index)
            room -= lengths[index]
            del waiting[place]
            waiting += order[position : position + 1]
            position += 1
        result.append(batch)
    return result
