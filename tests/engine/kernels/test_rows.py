"""Operators between the products of a step, for any number of rows, compared with the modules in float64."""

from __future__ import annotations

import pytest
import torch

from engine.layers.mlp import FUNCTIONS
from engine.layers.norms import NORMS
from engine.layers.rope import rotate

DTYPES = [torch.float32, torch.bfloat16]
ROUNDING = {torch.float32: 2**-22, torch.bfloat16: 2**-8}  # float32: of a few operations


def random_tensor(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", FUNCTIONS)
def test_gated_activation_is_rounded_once(ops, dtype, activation):
    for rows, size in ((1, 1), (3, 33), (200, 1000), (2, 0)):
        x = random_tensor(rows, 2 * size, dtype=dtype)
        y = ops.gated_activation(x, activation)
        gate, up = x.double().chunk(2, dim=-1)
        exact = FUNCTIONS[activation](gate) * up
        assert y.shape == (rows, size) and y.dtype == dtype
        assert torch.allclose(y.double(), exact, rtol=ROUNDING[dtype], atol=2e-6)
    with pytest.raises(RuntimeError, match="unknown activation"):
        ops.gated_activation(random_tensor(1, 2, dtype=dtype), "tanh")


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_rows_have_the_bits_of_single_ones(ops, dtype):
    x, weight = random_tensor(300, 80, dtype=dtype), random_tensor(80, dtype=dtype, seed=1)
    for kind in ("RMS", "RMS, float32", "RMS, 1 + w"):
        y = ops.rms_norm(x, weight, 1e-5, kind)
        assert torch.equal(y, torch.cat([ops.rms_norm(row[None], weight, 1e-5, kind) for row in x]))
        module = NORMS[kind](80, 1e-5).double()
        with torch.no_grad():
            module.weight.copy_(weight)
            exact = module(x.double())
        assert torch.allclose(y.double(), exact, rtol=2.1 * ROUNDING[dtype], atol=1e-12)
    assert torch.equal(ops.gated_activation(x, "silu")[299:], ops.gated_activation(x[299:], "silu"))


# New tokens of three rows, and their pieces; each row ends in a segment of its own.
ROWS, PIECES = [9, 2, 200, 1, 1, 2], [0, 20, 1, 12, 2, 200, 0, 20, 3, 1]
CAPACITIES = [24, 12, 200, 4]
PLACES = [(1, 3, 12), (2, 0, 200), (3, 0, 1)]  # segment, and where the new tokens begin and end


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("half", [0, 1, 7, 40])
def test_rotated_queries_are_returned_and_keys_and_values_written(ops, dtype, half):
    tokens, heads, groups, size = 210, 6, 2, 80
    qkv = random_tensor(tokens, (heads + 2 * groups) * size, dtype=dtype)
    q, k, v = (x.unflatten(-1, (-1, size)) for x in qkv.split([heads * size, groups * size, groups * size], dim=-1))
    angles = random_tensor(tokens, 1, half, dtype=torch.float32, seed=1)
    rotary = (angles.cos(), angles.sin()) if half else (None, None)
    segments = [torch.zeros(2, 2, groups, capacity, size, dtype=dtype) for capacity in CAPACITIES]
    rotated = ops.rotate_and_write(q, k, v, *rotary, segments, ROWS, PIECES, 1)

    def exact(x: torch.Tensor) -> torch.Tensor:
        return rotate(x.double(), angles.cos().double(), angles.sin().double())

    def close(x: torch.Tensor, expected: torch.Tensor) -> bool:
        return torch.allclose(x.double(), expected, rtol=ROUNDING[dtype], atol=2e-6)

    assert rotated.is_contiguous() and close(rotated, exact(q))
    written = [segments[i][1, :, :, begin:end].transpose(1, 2) for i, begin, end in PLACES]
    assert close(torch.cat([kv[0] for kv in written]), exact(k))
    assert torch.equal(torch.cat([kv[1] for kv in written]), v)
    for i, begin, end in PLACES:
        segments[i][1, :, :, begin:end] = 0
    assert not any(segment.any() for segment in segments)  # nothing else was written
    with pytest.raises(RuntimeError, match="keys: "):
        ops.rotate_and_write(q[1:], k[1:], v[1:], None, None, segments, ROWS, PIECES, 1)
