"""Mamba's scan and its gradients, compared with autograd through the plain recurrence, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.models import selective_scan as module
from engine.models.selective_scan import selective_scan


def plain(a: Tensor, dt: Tensor, b: Tensor, c: Tensor, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence as the paper has it."""
    y = []
    for t in range(dt.shape[1]):
        h = (dt[:, t, :, None] * a).exp() * h + (dt[:, t] * x[:, t])[..., None] * b[:, t, None]
        y.append((h * c[:, t, None]).sum(-1))
    return torch.stack(y, 1), h


def inputs(rows: int, tokens: int, channels: int = 3, size: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 * rows + tokens)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    dt = torch.nn.functional.softplus(draw(rows, tokens, channels))
    b, c, x = draw(rows, tokens, size), draw(rows, tokens, size), draw(rows, tokens, channels)
    return [-draw(channels, size).exp(), dt, b, c, x, draw(rows, channels, size)]


def on_a_gpu(decay: Tensor, added: Tensor, h: Tensor, reverse: bool = False) -> Tensor:
    """The scan by blocks."""
    if reverse:
        following = torch.cat((decay[:, 1:], torch.ones_like(decay[:, :1])), dim=1)
        return module._scan_blocks(following.flip(1), added.flip(1), h).flip(1)
    return module._scan_blocks(decay, added, h)


@pytest.mark.parametrize("device", ["cpu", "gpu"])
@pytest.mark.parametrize(("rows", "tokens"), [(1, 1), (2, 70), (5, 33), (3, 8)])
@pytest.mark.parametrize("chunk", [1, 96 * 80, 2**20], ids=["small chunks", "several rows", "one chunk"])
def test_gradients_equal_autograd_through_the_plain_recurrence(monkeypatch, rows, tokens, chunk, device):
    monkeypatch.setattr(module, "CPU_CHUNK", chunk)
    if device == "gpu":
        monkeypatch.setattr(module, "scan", on_a_gpu)
    tensors = [tensor.requires_grad_() for tensor in inputs(rows, tokens)]
    ours, expected = selective_scan(*tensors), plain(*tensors)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(part.shape, dtype=part.dtype, generator=generator) for part in expected]
    for outputs in (ours, expected):
        torch.testing.assert_close(outputs, expected, rtol=1e-10, atol=1e-10)
    found, right = (
        torch.autograd.grad(sum((p * w).sum() for p, w in zip(outputs, weights, strict=True)), tensors)
        for outputs in (ours, expected)
    )
    torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(selective_scan(*tensors), expected, rtol=1e-10, atol=1e-10)


def test_gradients_equal_finite_differences(monkeypatch):
    monkeypatch.setattr(module, "CPU_CHUNK", 1)
    monkeypatch.setattr(module, "LEAST_TOKENS", 3)
    assert torch.autograd.gradcheck(selective_scan, [tensor.requires_grad_() for tensor in inputs(2, 7, 2, 3)])


def test_only_the_inputs_and_one_state_of_a_chunk_are_kept():
    tensors = [tensor.requires_grad_() for tensor in inputs(4, 2 * module.LEAST_TOKENS, 16, 16)]
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        selective_scan(*tensors)
    a, dt, b, c, x, h = (tensor.nbytes for tensor in tensors)
    assert sum(kept.values()) <= a + dt + b + c + x + 2 * h


@pytest.mark.parametrize("trained", [False, True])
def test_autocast_does_not_round_the_products_of_a_scan(trained):
    tensors = [tensor.float().requires_grad_(trained) for tensor in inputs(2, 40)]
    expected = selective_scan(*tensors)
    with torch.autocast("cpu", torch.bfloat16):
        found = selective_scan(*tensors)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
