"""Cross-entropy of the learned tokens, and its gradients, without the logits of a whole step in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.cache.state import Step
from engine.finetune.cross_entropy import cross_entropy
from engine.models.family import Model
from engine.runtime.device import upload

if TYPE_CHECKING:
    from engine.finetune.data import Example

LOGITS_BYTES = 64 * 2**20  # of float32 logits at once; their gradient and the softmax take as much again, each


def count_learned(examples: Sequence[Example]) -> int:
    """Number of tokens that count for the loss."""
    return sum(sum(example.learned) for example in examples)


def add_gradients(
    model: Model,
    examples: Sequence[Example],
    learned_tokens: int,
    autocast: torch.dtype | None = None,
    logits_bytes: int = LOGITS_BYTES,
) -> float:
    """Add the gradients of one packed step's loss to those of the parameters -> the loss.

    The loss is the sum of the learned tokens' cross-entropy divided by `learned_tokens`: their number in all steps that
    are accumulated, so that every token has the same weight however the tokens are divided into steps. `autocast`: the
    dtype of products, if it is not that of the weights.
    """
    with _autocast(model, autocast):
        hidden, targets = _learned_positions(model, examples)
    if not len(targets):
        return 0.0
    gradient = torch.empty_like(hidden)
    total = torch.zeros((), dtype=torch.float64)
    for rows in _chunks(model, len(targets), logits_bytes):
        part = hidden.detach()[rows].requires_grad_()
        with _autocast(model, autocast):
            loss = _cross_entropy(model, part, targets[rows]) / learned_tokens
        loss.backward()  # type: ignore[no-untyped-call]
        assert part.grad is not None
        gradient[rows] = part.grad
        total += loss.detach().double().cpu()
    if hidden.requires_grad:  # not so if only the head is trained
        hidden.backward(gradient)  # type: ignore[no-untyped-call]
    return float(total)


@torch.no_grad()
def mean_loss(
    model: Model,
    steps: Sequence[Sequence[Example]],
    autocast: torch.dtype | None = None,
    logits_bytes: int = LOGITS_BYTES,
) -> float:
    """The mean cross-entropy of the learned tokens of all these packed steps, without gradients."""
    total, count = 0.0, 0
    with _autocast(model, autocast):
        for examples in steps:
            hidden, targets = _learned_positions(model, examples)
            count += len(targets)
            for rows in _chunks(model, len(targets), logits_bytes):
                total += float(_cross_entropy(model, hidden[rows], targets[rows]))
    return total / max(count, 1)


def _learned_positions(model: Model, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """The hidden states [M, hidden] from which the learned tokens are predicted, and these tokens [M]."""
    device = model.embed.weight.device
    step = Step.pack([example.ids for example in examples], device=device)
    learned = [flag for example in examples for flag in example.learned]
    positions = [index - 1 for index, flag in enumerate(learned) if flag]
    targets = [token for example in examples for token, flag in zip(example.ids, example.learned, strict=True) if flag]
    rows = upload(positions, torch.long, device)
    return model(step).index_select(0, rows), upload(targets, torch.long, device)


def _cross_entropy(model: Model, hidden: Tensor, targets: Tensor) -> Tensor:
    """The sum of the cross-entropy of targets [M] after hidden states [M, hidden], in float32 or better."""
    logits = model.logits(hidden)
    return cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets)


def _autocast(model: Model, dtype: torch.dtype | None) -> torch.autocast:
    device = model.embed.weight.device.type
    return torch.autocast(device, dtype or torch.bfloat16, enabled=dtype is not None)


def _chunks(model: Model, count: int, logits_bytes: int) -> list[slice]:
    """Slices of `count` positions whose logits take at most `logits_bytes`, of equal sizes."""
    most = max(1, logits_bytes // (4 * model.head.rows))
    number = -(-count // most)
    return [slice(count * index // number, count * (index + 1) // number) for index in range(number)]
