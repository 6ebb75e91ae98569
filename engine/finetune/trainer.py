"""The steps of a run: which examples, which learning rate, how many. No files and no screens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count

import torch

from engine.finetune.checkpoint import trained
from engine.finetune.data import Example, batches
from engine.finetune.loss import add_gradients, count_learned, mean_loss
from engine.finetune.optimizer import StepLoss, StepResult, rate_share, train_steps
from engine.finetune.settings import Settings
from engine.models.family import Model

DROPOUT_STREAM = 1_000_003  # seeds of dropout: this times the seed of the run, plus the step


@dataclass(frozen=True)
class Plan:
    """The order of the examples: it depends only on the examples and the settings.

    An epoch ends with a step of its own, even if that has fewer forward passes than the others.
    """

    examples: Sequence[Example]
    settings: Settings

    def epoch(self, number: int) -> list[list[list[int]]]:
        """The steps of an epoch: of each its forward passes, of each its examples' numbers."""
        settings = self.settings
        passes = batches(self.examples, settings.batch_tokens, settings.seed, number)
        return [passes[first : first + settings.accumulate] for first in range(0, len(passes), settings.accumulate)]

    @cached_property
    def steps(self) -> int:
        """Number of steps of the run."""
        if self.settings.steps is not None:
            return self.settings.steps
        return sum(len(self.epoch(number)) for number in range(self.settings.epochs))

    def passes(self, first: int) -> Iterator[list[list[Example]]]:
        """The forward passes of each step from `first` (from 0) on."""
        done = 0
        for number in count():
            epoch = self.epoch(number)
            for passes in epoch[max(0, first - done) :]:
                yield [[self.examples[index] for index in chosen] for chosen in passes]
            done += len(epoch)

    @cached_property
    def first_pass(self) -> list[Example]:
        """The examples of the first forward pass."""
        return next(self.passes(0))[0]

    @cached_property
    def largest_pass(self) -> int:
        """Tokens of the largest forward pass in the first epoch."""
        passes = (chosen for step in self.epoch(0) for chosen in step)
        return max(sum(len(self.examples[index].ids) for index in chosen) for chosen in passes)


def train(
    model: Model, optimizer: torch.optim.Optimizer, plan: Plan, first: int, autocast: torch.dtype | None = None
) -> Iterator[StepResult]:
    """Train the steps of a plan from `first` (from 0) on, one at each `next`; the bits are those of a run from 0."""
    settings, steps = plan.settings, plan.passes(first)

    def gradient(step: int) -> StepLoss:
        passes = next(steps)
        learned = sum(count_learned(examples) for examples in passes)
        torch.manual_seed((DROPOUT_STREAM * settings.seed + step) % 2**63)  # dropout is the only draw
        loss = sum(add_gradients(model, examples, max(learned, 1), autocast) for examples in passes)
        return StepLoss(loss, sum(len(example.ids) for examples in passes for example in examples), learned)

    def learning_rate(step: int) -> float:
        return settings.learning_rate * rate_share(step, plan.steps, settings.schedule, settings.warmup)

    parameters = list(trained(model).values())
    return train_steps(optimizer, parameters, range(first, plan.steps), gradient, learning_rate, settings.clip)


def held_out_loss(
    model: Model, examples: Sequence[Example], batch_tokens: int, autocast: torch.dtype | None = None
) -> float | None:
    """The mean cross-entropy of the learned tokens of these examples; None if there are none."""
    if not examples:
        return None
    passes = batches(examples, batch_tokens, 0, 0)
    return mean_loss(model, [[examples[index] for index in chosen] for chosen in passes], autocast)
