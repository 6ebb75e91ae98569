"""The sum of the cross-entropy, and its gradient, compared with PyTorch's."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from engine.finetune.cross_entropy import cross_entropy


@pytest.mark.parametrize("spread", [0.1, 5.0, 300.0])  # with the last one most probabilities round to zero
def test_value_and_gradient_equal_pytorchs(spread):
    generator = torch.Generator().manual_seed(0)
    logits = (spread * torch.randn(7, 100, generator=generator)).requires_grad_()
    targets = torch.randint(0, 100, (7,), generator=generator)
    wide = logits.detach().double().requires_grad_()
    expected = F.cross_entropy(wide, targets, reduction="sum")
    found = cross_entropy(logits, targets)
    assert abs(found.item() - expected.item()) <= 1e-6 * abs(expected.item()) + 1e-6
    (0.3 * expected).backward()
    (0.3 * found).backward()
    torch.testing.assert_close(logits.grad, wide.grad.float(), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        assert cross_entropy(logits, targets) == found


def test_not_a_number_stays_one():
    logits = torch.zeros(2, 4)
    logits[1, 2] = torch.nan
    assert cross_entropy(logits, torch.tensor([0, 1])).isnan()
