"""AdamW, learning rates and one update. Used by all training programs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from engine.runtime.errors import BareloopError


class NonFiniteError(BareloopError):
    """A loss or the gradient of a step is infinite or not a number. What has been saved is older than that."""

    def __init__(self, step: int, what: str, value: float) -> None:
        super().__init__(f"step {step}: the {what} is {value}")
        self.step = step


def check_finite(step: int, what: str, value: float) -> None:
    """Raise `NonFiniteError` for a loss that is infinite or not a number."""
    if not math.isfinite(value):
        raise NonFiniteError(step, what, value)


def adamw(
    parameters: Iterable[Tensor], weight_decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.999)
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) with weight decay for matrices only. `train_steps` sets the learning rate."""
    trained = list(parameters)
    groups = [
        {"params": [parameter for parameter in trained if parameter.dim() > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], betas=betas, fused=True)


def rate_share(step: int, steps: int, schedule: str, warmup: float) -> float:
    """The learning rate of a step (from 0) as a share of its peak.

    It rises in equal parts during the warm-up (`warmup` below 1: a share of the steps, but never all of them), then
    falls to 0 after the last step, as half a cosine or a line, or stays.
    """
    rise = int(warmup)
    if warmup < 1:  # of a decimal number: in binary ones 0.07 of 100 is above 7
        rise = min(math.ceil(Fraction(repr(warmup)) * steps), steps - 1)
    if step < rise:
        return (step + 1) / (rise + 1)
    if schedule == "constant":
        return 1.0
    progress = (step - rise) / max(1, steps - rise)
    return (1 + math.cos(math.pi * progress)) / 2 if schedule == "cosine" else 1 - progress


@dataclass(frozen=True)
class StepLoss:
    """The loss of a step, whose gradients are in the parameters; its tokens, and how many of them are learned."""

    loss: float
    tokens: int = 0
    learned_tokens: int = 0


@dataclass(frozen=True)
class StepResult:
    """What a step did. `step` counts from 1; `gradient_norm` is that before clipping."""

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    learned_tokens: int
    seconds: float


def train_steps(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    steps: range,
    gradient: Callable[[int], StepLoss],
    learning_rate: Callable[[int], float],
    clip: float,
) -> Iterator[StepResult]:
    """Train `parameters`, which are the optimizer's, for these steps (from 0), one at each `next`.

    `gradient` computes a step's loss, and adds its gradients. The norm of a gradient depends on the parameters' order.

    Raises `NonFiniteError` before the weights are changed.
    """
    for step in steps:
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        found = gradient(step)
        check_finite(step + 1, "loss", found.loss)
        rate = learning_rate(step)
        norm = update(optimizer, parameters, rate, clip)
        check_finite(step + 1, "norm of the gradient", norm)
        seconds = time.perf_counter() - start
        yield StepResult(step + 1, found.loss, rate, norm, found.tokens, found.learned_tokens, seconds)


def update(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], learning_rate: float, clip: float) -> float:
    """Clip the gradients to the norm `clip` (0: not at all), and update the weights -> the norm before.

    If that is not finite, nothing is updated.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, clip or math.inf))
    if math.isfinite(norm):
        optimizer.step()
    return norm
