"""Attention over a paged cache, compared with a loop in float64."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
from engine.kernels.gpu import attention, operators, tiling

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in divide")  # in rows that are not stored

BLOCK = 16
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-2}


class Paged:
    """A cache of rows with these starts and numbers of new tokens; the queries of the new tokens, end to end.

    The first `shared` blocks of all rows are the same, blocks are in random order, and everything that no query may
    see is NaN; table entries before the window and after the end are of blocks of NaN.
    """

    def __init__(self, starts, counts, kv_heads, group, head_dim, *, shared=0, window=0, dtype=torch.float32):
        self.starts, self.counts, self.window, self.scale = starts, counts, window, 1.5 * head_dim**-0.5
        generator = torch.Generator().manual_seed(1)
        ends = [start + count for start, count in zip(starts, counts, strict=True)]
        used = [-(-end // BLOCK) for end in ends]
        width = max(used) + 2
        order = iter((torch.randperm(len(starts) * width + 2, generator=generator) + 1).tolist())
        stale, prefix = next(order), [next(order) for _ in range(shared)]
        self.q = torch.randn(sum(counts), kv_heads * group, head_dim, generator=generator).to(dtype)
        shape = (len(starts) * width + 3, kv_heads, BLOCK, head_dim)
        self.keys, self.values = torch.full(shape, torch.nan, dtype=dtype), torch.full(shape, torch.nan, dtype=dtype)
        self.tables = torch.full((len(starts) + 3, width), stale, dtype=torch.int32)
        self.lines = torch.randperm(len(starts) + 3, generator=generator)[: len(starts)].int()
        for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
            oldest = max(0, start - window + 1) if window else 0
            blocks = [prefix[i] if i < shared else next(order) for i in range(used[row])]
            for i in range(oldest // BLOCK, used[row]):
                self.tables[self.lines[row], i] = blocks[i]
            for position in range(oldest, end):
                for cache in (self.keys, self.values):
                    if bool(cache[blocks[position // BLOCK], 0, position % BLOCK].isnan().any()):
                        token = torch.randn(kv_heads, head_dim, generator=generator).to(dtype)
                        cache[blocks[position // BLOCK], :, position % BLOCK] = token

    def expected(self, softcap=0.0):
        """A loop over queries, in float64: [N, H, D]."""
        outputs, group = [], self.q.shape[1] // self.keys.shape[1]
        query = iter(self.q.double())
        for row, (start, count) in enumerate(zip(self.starts, self.counts, strict=True)):
            for position in range(start, start + count):
                first = max(0, position - self.window + 1) if self.window else 0
                places = torch.arange(first, position + 1)
                blocks = self.tables[self.lines[row], places // BLOCK]
                keys, values = (
                    cache[blocks, :, places % BLOCK].double().repeat_interleave(group, 1)
                    for cache in (self.keys, self.values)
                )
                scores = torch.einsum("hd,thd->ht", next(query), keys) * self.scale
                if softcap:
                    scores = softcap * torch.tanh(scores / softcap)
                outputs.append(torch.einsum("ht,thd->hd", scores.softmax(-1), values))
        return torch.stack(outputs)

    def chunk(self, device, softcap=0.0):
        group = self.q.shape[1] // self.keys.shape[1]
        offsets = torch.tensor([0, *self.counts]).cumsum(0).int()
        tiles = tiling.tiles(self.counts, group, self.q.shape[2])
        tiles = torch.tensor([*tiles, (0, self.counts[0])], dtype=torch.int32)  # the last one has no queries
        tensors = (self.q, self.keys, self.values, self.tables, self.lines)
        steps = (torch.tensor(self.starts, dtype=torch.int32), offsets, tiles)
        arguments = [tensor.to(device) for tensor in (*tensors, *steps)]
        return operators.chunk_attention(*arguments, self.window, self.scale, softcap).cpu()

    def decode(self, device, softcap=0.0):
        assert set(self.counts) == {1}
        tensors = (self.q, self.keys, self.values, self.tables, self.lines, torch.tensor(self.starts))
        arguments = [tensor.to(device) for tensor in tensors]
        return operators.decode_attention(*arguments, self.window, self.scale, softcap).cpu()


def calls() -> None:
    """Launches for test_compiling.py."""
    for heads, kv_heads, head_dim, dtype, window, softcap, queries in (
        (32, 8, 64, torch.bfloat16, 0, 0.0, 2000),
        (28, 4, 128, torch.bfloat16, 0, 0.0, 5),
        (32, 32, 80, torch.float16, 0, 0.0, 2000),
        (8, 4, 256, torch.bfloat16, 4096, 50.0, 5),
        (28, 4, 128, torch.float32, 0, 0.0, 5),
    ):
        keys, tables = torch.empty(64, kv_heads, BLOCK, head_dim, dtype=dtype), torch.zeros(8, 256, dtype=torch.int32)
        line, rest = torch.zeros(8, dtype=torch.int32), (window, head_dim**-0.5, softcap)
        q = torch.empty(queries, heads, head_dim, dtype=dtype)
        operators.decode_attention(q[:8], keys, keys, tables, line.long(), line.long(), *rest)
        tiles = torch.tensor(tiling.tiles([queries], heads // kv_heads, head_dim), dtype=torch.int32)
        operators.chunk_attention(q, keys, keys, tables, line[:1], line[:1], line[:2], tiles, *rest)


PARAMETERS = ("group", "head_dim", "dtype", "window", "softcap")


@pytest.mark.parametrize(
    PARAMETERS,
    [
        (1, 64, torch.float32, 0, 0.0),
        (3, 12, torch.float32, 20, 0.0),
        (7, 80, torch.float32, 0, 5.0),
        (3, 64, torch.bfloat16, 20, 5.0),
        (7, 12, torch.float16, 0, 0.0),
    ],
)
class TestOverAPagedCache:
    def test_decoding_equals_a_loop(self, gpu_device, group, head_dim, dtype, window, softcap):
        paged = Paged([0, 75], [1, 1], 2, group, head_dim, shared=0 if window else 1, window=window, dtype=dtype)
        out = paged.decode(gpu_device, softcap)
        assert out.dtype == dtype
        assert (out - paged.expected(softcap)).abs().max() < TOLERANCE[dtype]

    def test_chunks_equal_a_loop(self, gpu_device, group, head_dim, dtype, window, softcap):
        paged = Paged([0, 33, 70, 63], [50, 1, 9, 0], 2, group, head_dim, window=window, dtype=dtype)
        out = paged.chunk(gpu_device, softcap)
        assert out.dtype == dtype
        assert (out - paged.expected(softcap)).abs().max() < TOLERANCE[dtype]


@pytest.mark.parametrize(PARAMETERS, [(3, 64, torch.float16, 0, 0.0), (1, 12, torch.bfloat16, 20, 5.0)])
def test_undivided_rows_and_tiles(gpu_device, monkeypatch, group, head_dim, dtype, window, softcap):
    """As where there is enough work for all multiprocessors."""
    monkeypatch.setattr(attention, "MULTIPROCESSORS", 0)
    paged = Paged([0, 90], [1, 1], 2, group, head_dim, window=window, dtype=dtype)
    assert (paged.decode(gpu_device, softcap) - paged.expected(softcap)).abs().max() < TOLERANCE[dtype]
    paged = Paged([30, 3], [50, 1], 2, group, head_dim, window=window, dtype=dtype)
    assert (paged.chunk(gpu_device, softcap) - paged.expected(softcap)).abs().max() < TOLERANCE[dtype]


def test_decoding_equals_chunks_of_one_query(gpu_device):
    paged = Paged([0, 70, 9], [1] * 3, 1, 3, 12, window=40)
    assert (paged.decode(gpu_device) - paged.chunk(gpu_device)).abs().max() < 1e-5


def test_a_row_has_the_same_bits_alone(gpu_device):
    paged = Paged([40, 70, 9], [1] * 3, 1, 2, 12)
    together = paged.decode(gpu_device)
    paged.q, paged.lines, paged.starts, paged.counts = paged.q[1:2], paged.lines[1:2], [70], [1]
    assert torch.equal(paged.decode(gpu_device), together[1:2])


def test_a_row_in_two_chunks_has_the_same_bits(gpu_device):
    paged = Paged([5], [70], 1, 2, 12, window=30)
    whole, q = paged.chunk(gpu_device), paged.q
    for start, end in ((0, 33), (33, 70)):
        paged.q, paged.starts, paged.counts = q[start:end], [5 + start], [end - start]
        assert torch.equal(paged.chunk(gpu_device), whole[start:end])
