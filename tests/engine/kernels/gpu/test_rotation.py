"""Rotation and the writing of keys and values in Triton agree with engine.layers.rope.rotate."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.layers.rope import rotate

pytest.importorskip("triton")
from engine.kernels.gpu import operators
from tests.engine.kernels.gpu.agreement import check

BLOCK_TOKENS = 16


def heads_of(qkv: Tensor, heads: int, kv_heads: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views of the columns of q, k and v."""
    q, k, v = qkv.split([heads * size, kv_heads * size, kv_heads * size], dim=-1)
    return q.unflatten(-1, (heads, size)), k.unflatten(-1, (kv_heads, size)), v.unflatten(-1, (kv_heads, size))


def calls() -> None:
    """Launches for test_compiling.py."""
    slots, dtype = torch.arange(3), torch.bfloat16
    for heads, kv_heads, size, angles, precise in (
        (32, 8, 64, 32, False), (32, 8, 128, 64, True), (28, 4, 128, 64, False), (32, 32, 80, 16, False),
        (3, 1, 12, 6, False), (8, 4, 256, 128, False), (12, 12, 64, 0, False),
    ):  # fmt: skip
        q, k, v = heads_of(torch.randn(3, (heads + 2 * kv_heads) * size, dtype=dtype), heads, kv_heads, size)
        table = torch.randn(3, 1, angles, dtype=torch.float32 if precise else dtype) if angles else None
        cache = torch.zeros(2, kv_heads, BLOCK_TOKENS, size, dtype=dtype)
        operators.rotate_and_write(q, k, v, table, table, cache, cache.clone(), slots)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "angles"),
    [(3, 1, 12, 6), (8, 2, 64, 32), (7, 1, 96, 16), (20, 20, 80, 40), (4, 2, 8, 0)],
)
def test_rotate_and_write_agrees_with_rotate(gpu_device, heads, kv_heads, size, angles, dtype):
    count, blocks = 5, 4
    q, k, v = heads_of(torch.randn(count, (heads + 2 * kv_heads) * size).to(dtype), heads, kv_heads, size)
    slots = torch.randperm(blocks * BLOCK_TOKENS)[:count]
    for table_dtype in {dtype, torch.float32}:
        cos, sin = None, None
        if angles:
            turns = torch.rand(count, 1, angles) * 6
            cos, sin = turns.cos().to(table_dtype), turns.sin().to(table_dtype)
        cache = torch.randn(2, blocks, kv_heads, BLOCK_TOKENS, size).to(dtype)
        keys, values = cache.to(gpu_device).clone()
        on_device = heads_of(torch.cat([x.flatten(1) for x in (q, k, v)], dim=-1).to(gpu_device), heads, kv_heads, size)
        tables = [table if table is None else table.to(gpu_device) for table in (cos, sin)]
        rotated = operators.rotate_and_write(*on_device, *tables, keys, values, slots.to(gpu_device))
        expected_q, expected_k = (x if cos is None or sin is None else rotate(x, cos, sin) for x in (q, k))
        assert rotated.is_contiguous()
        check(rotated, expected_q.contiguous())
        places = slots // BLOCK_TOKENS, slice(None), slots % BLOCK_TOKENS
        check(keys.cpu()[places], expected_k)
        assert torch.equal(values.cpu()[places], v)
        others = torch.ones(blocks, BLOCK_TOKENS, dtype=torch.bool)
        others[places[0], places[2]] = False
        for written, before in zip((keys, values), cache, strict=True):
            assert torch.equal(written.cpu().transpose(1, 2)[others], before.transpose(1, 2)[others])


def test_contiguous_heads_as_a_norm_of_heads_leaves_them(gpu_device):
    q, k, v = torch.randn(2, 3, 8), torch.randn(2, 1, 8), torch.randn(2, 1, 8)
    cos, sin = torch.randn(2, 1, 4), torch.randn(2, 1, 4)
    keys, values = torch.zeros(2, 2, 1, BLOCK_TOKENS, 8, device=gpu_device)
    slots = torch.tensor([17, 3])
    moved = [x.to(gpu_device) for x in (q, k, v, cos, sin)]
    check(operators.rotate_and_write(*moved, keys, values, slots.to(gpu_device)), rotate(q, cos, sin))
    check(keys.cpu()[[1, 0], :, [1, 3]], rotate(k, cos, sin))
    assert operators.rotate_and_write(*(x[:0] for x in moved), keys, values, slots[:0].to(gpu_device)).shape == (
        0,
        3,
        8,
    )
