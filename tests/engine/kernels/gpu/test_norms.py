"""Norms in Triton agree with the modules of engine.layers.norms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from engine.layers.norms import NORMS

pytest.importorskip("triton")
from engine.kernels.gpu import operators
from tests.engine.kernels.gpu.agreement import check

EPS = 1e-5
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def norm(kind: str, size: int, dtype: torch.dtype) -> nn.Module:
    module = NORMS[kind](size, EPS)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module.to(dtype)


def weights(module: nn.Module, device: str) -> tuple[Tensor | None, Tensor | None]:
    found = dict(module.named_parameters())
    weight, bias = (None if name not in found else found[name].detach().to(device) for name in ("weight", "bias"))
    return weight, bias


def calls() -> None:
    """Launches for test_compiling.py."""
    for kind in NORMS:
        x = torch.randn(3, 896, dtype=torch.bfloat16)
        operators.add_norm(x, x, *weights(norm(kind, 896, x.dtype), "cpu"), EPS, kind)
    wide = torch.randn(1, 16384)
    operators.add_norm(wide, wide, *weights(norm("layer", 16384, wide.dtype), "cpu"), EPS, "layer")
    heads = torch.randn(2, 48, 128, dtype=torch.float16)[:, :32]
    operators.add_norm(heads.flatten(1), None, *weights(norm("RMS", 4096, heads.dtype), "cpu"), EPS, "RMS")
    operators.head_norm(heads, torch.ones(128, dtype=torch.float16), EPS, "RMS")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", NORMS)
def test_add_norm_agrees_with_the_modules(gpu_device, kind, dtype):
    for count, size in ((1, 12), (3, 200), (2, 1030)):
        module = norm(kind, size, dtype)
        x, delta = torch.randn(count, size).to(dtype), torch.randn(count, 2 * size).to(dtype)[:, size:]
        on_device = x.to(gpu_device)
        with torch.enable_grad():  # the modules' C++ kernels are not used then
            expected = module(x).detach()
            expected_sum = module(x + delta).detach()
        total, normed = operators.add_norm(on_device, None, *weights(module, gpu_device), EPS, kind)
        assert total is on_device
        check(normed, expected)
        placed = delta.to(gpu_device)
        total, normed = operators.add_norm(on_device, placed, *weights(module, gpu_device), EPS, kind)
        assert torch.equal(on_device.cpu(), x)
        check(total, x + delta, 0)
        if dtype != torch.bfloat16:  # of a sum that the interpreter has not rounded
            check(normed, expected_sum)


@pytest.mark.parametrize("kind", ["RMS", "layer"])
def test_a_residual_stream_may_be_wider_than_the_weights(gpu_device, kind):
    module, x = norm(kind, 40, torch.float16), torch.randn(3, 40)
    with torch.enable_grad():
        expected = module(x).detach()
    _, normed = operators.add_norm(x.to(gpu_device), None, *weights(module, gpu_device), EPS, kind)
    check(normed, expected)


def test_large_numbers_do_not_lose_the_variance(gpu_device):
    module, x = norm("layer", 64, torch.float32), torch.randn(2, 64) + 1000
    with torch.enable_grad():
        expected = module.double()(x.double()).detach().float()
    _, normed = operators.add_norm(x.to(gpu_device), None, *weights(module.float(), gpu_device), EPS, "layer")
    check(normed, expected, 2e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", NORMS)
def test_head_norm_agrees_with_the_modules(gpu_device, kind, dtype):
    for size, heads, kv_heads in ((12, 3, 1), (64, 8, 2)):
        qkv = torch.randn(5, (heads + 2 * kv_heads) * size).to(dtype)
        q, k, _ = qkv.split([heads * size, kv_heads * size, kv_heads * size], dim=-1)
        for x, count in ((q, heads), (k, kv_heads)):
            view, module = x.unflatten(-1, (count, size)), norm(kind, size, dtype)
            weight, bias = weights(module, gpu_device)
            with torch.enable_grad():
                expected = module(view).detach()
            normed = operators.head_norm(view.to(gpu_device), weight, EPS, kind, bias)
            assert normed.is_contiguous()
            check(normed, expected)
    by_head = torch.randn(6, 4, 64).to(dtype)  # a view whose heads are further apart than its tokens
    with torch.enable_grad():
        expected = module(by_head.transpose(0, 1)).detach()
    normed = operators.head_norm(by_head.to(gpu_device).transpose(0, 1), weight, EPS, kind, bias)
    check(normed, expected.contiguous())


def test_nothing_to_norm(gpu_device):
    empty = torch.empty(0, 3, 8, device=gpu_device)
    weight = torch.ones(8, device=gpu_device)
    assert operators.head_norm(empty, weight, EPS, "RMS").shape == (0, 3, 8)
    assert operators.add_norm(empty[:, 0], None, weight, None, EPS, "RMS")[1].shape == (0, 8)
