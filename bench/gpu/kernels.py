"""The parts of `bench.gpu_check` that measure kernels alone: products of a few rows, and attention over blocks.

Calls are in CUDA graphs, so the time to launch them does not count. Several copies of a matrix, or layers of keys and
values, are read in turn, so that they come from memory as in a model, and not from the cache of the previous call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.gpu.random_models import SEED, STD, dtype_on, random_weight, undrawn_model
from bench.gpu.timing import SkippedError, seconds_of_each
from engine.cache.blocks import Budget, blocks_of
from engine.cache.paged import PagedState
from engine.cache.paged_view import BLOCK
from engine.cache.state import Step
from engine.kernels import gpu
from engine.layers.attention import Attention
from engine.layers.attention_config import AttentionConfig
from engine.layers.linear import Linear
from engine.layers.paged_attention import attend
from engine.runtime.clocks import read_bandwidth
from engine.runtime.device import choose_device

Figures = Iterator[dict[str, Any]]

DENSE_ROWS, QUANTIZED_ROWS = (1, 2, 4, 8, 16, 32), (1, 8, 16, 32)  # of x
CACHES = 6  # times the L2 cache: bytes of all copies together
MAX_LAYERS = 256
DECODED_ROWS, CONTEXTS = (1, 16, 32), (128, 2048, 16_384)
PROMPTS = (512, 4096)
FORKS, FORK_TOKENS, PREFIX = 256, 60, 700
TRIAL = {"rows": (1, 2), "contexts": (20, 40), "prompts": (24,), "forks": (3, 5, 20)}  # on a CPU


def cache_bytes(device: torch.device) -> int:
    """Size of the L2 cache of a GPU; for a trial on a CPU as good as none."""
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 1


def measure(
    name: str, calls: Sequence[Callable[[], Any]], device: torch.device, nbytes: int, bandwidth: float
) -> dict[str, float]:
    """The time of one call, and the percentage of the bandwidth at which it reads its bytes."""
    seconds = seconds_of_each(calls, device)
    return {f"{name}, µs": 1e6 * seconds, f"{name}, %": 100 * nbytes / seconds / bandwidth}


def products(device: str, shape: str) -> Figures:
    """Products of a few rows with each matrix of a layer and the head: ours, and PyTorch's with the dense ones."""
    target = choose_device(device)
    bandwidth = read_bandwidth(target)
    yield {"read bandwidth, GB/s": bandwidth / 1e9}
    for quant in ("none", "int8", "int4"):
        model, _, _ = undrawn_model(shape, target, quant)
        for name, matrix in matrices(model).items():
            if quant == "none":
                figures = dense_products(matrix, target, bandwidth)
            elif matrix.format is not None:
                figures = quantized_products(matrix, target, bandwidth)
            else:
                continue
            label = f"{name} {matrix.rows}x{matrix.columns}{f', {quant}' * (quant != 'none')}"
            for rows, times in figures:
                yield {f"{label}, rows: {rows}": times}


def matrices(model: torch.nn.Module) -> dict[str, Linear]:
    """The first matrix of each name."""
    found: dict[str, Linear] = {}
    for path, module in model.named_modules():
        if isinstance(module, Linear):
            found.setdefault(path.rpartition(".")[2], module)
    return found


def dense_products(matrix: Linear, device: torch.device, bandwidth: float) -> Iterator[tuple[int, dict[str, float]]]:
    """Rows of x, and the time of each way to compute their product."""
    dtype, size = dtype_on(device), (matrix.rows, matrix.columns)
    nbytes = matrix.rows * matrix.columns * dtype.itemsize
    copies = max(1, ceil(CACHES * cache_bytes(device) / nbytes))
    weights = [torch.empty(size, dtype=dtype, device=device).normal_(0, STD) for _ in range(copies)]
    ops = gpu.for_device(device)
    for rows in DENSE_ROWS:
        x = torch.randn(rows, matrix.columns, dtype=dtype, device=device)
        ways: dict[str, list[Callable[[], Any]]] = {"PyTorch": [partial(F.linear, x, weight) for weight in weights]}
        if ops is not None and rows <= gpu.MAX_DENSE_ROWS:
            ways["ours"] = [partial(ops.dense_linear, x, weight) for weight in weights]
            if len(matrix.splits) == 2:  # gates and ups
                ways["ours, gated"] = [partial(ops.dense_gated, x, weight, None, "silu") for weight in weights]
        times = [measure(name, calls, device, nbytes, bandwidth) for name, calls in ways.items()]
        yield rows, {name: value for each in times for name, value in each.items()}


def quantized_products(
    matrix: Linear, device: torch.device, bandwidth: float
) -> Iterator[tuple[int, dict[str, float]]]:
    """Rows of x, and the time of their product."""
    weight_format = matrix.format
    assert weight_format is not None
    tensors = random_weight(weight_format, device, torch.Generator(device).manual_seed(SEED))
    copies = max(1, ceil(CACHES * cache_bytes(device) / matrix.nbytes))
    weights = [{**{name: tensor.clone() for name, tensor in tensors.items()}, "bias": None} for _ in range(copies)]
    for rows in QUANTIZED_ROWS:
        x = torch.randn(rows, matrix.columns, dtype=weight_format.dtype, device=device)
        calls = [partial(weight_format.product, weight, x) for weight in weights]
        yield rows, measure("ours", calls, device, matrix.nbytes, bandwidth)


def attention(device: str, shape: str) -> Figures:
    """Attention of one layer, ours and PyTorch's: decoding, whole prompts, and questions after a shared prefix."""
    target = choose_device(device)
    model, _, model_config = undrawn_model(shape, target)
    config = next((module.config for module in model.modules() if isinstance(module, Attention)), None)
    if config is None:
        raise SkippedError("this shape has no attention")
    torch.backends.cuda.enable_cudnn_sdp(True)  # torch's default, which `choose_device` changes
    is_trial = target.type != "cuda"
    yield {"read bandwidth, GB/s": read_bandwidth(target) / 1e9}
    bench = AttentionBench(target, config, model_config.max_position_embeddings)
    for rows in TRIAL["rows"] if is_trial else DECODED_ROWS:
        for tokens in TRIAL["contexts"] if is_trial else CONTEXTS:
            yield {f"decode, rows: {rows}, tokens: {tokens}": bench.decode(rows, tokens)}
    for tokens in TRIAL["prompts"] if is_trial else PROMPTS:
        yield {f"prompt, tokens: {tokens}": bench.chunk(1, tokens, 0)}
    forks, own, prefix = TRIAL["forks"] if is_trial else (FORKS, FORK_TOKENS, PREFIX)
    figures = bench.chunk(forks, own, prefix)
    yield {f"questions: {forks}, tokens: {own}, after a prefix of {prefix}": figures}


@dataclass(frozen=True)
class AttentionBench:
    """Attention of one layer of a model, and PyTorch's attention over contiguous keys and values of the same shape."""

    device: torch.device
    config: AttentionConfig
    max_length: int  # of the window: tokens for which block tables have room, on which the engine's grids depend

    def decode(self, rows: int, tokens: int) -> dict[str, float]:
        """One query in each row of so many tokens."""
        config, dtype = self.config, dtype_on(self.device)
        nbytes = 2 * rows * tokens * config.num_kv_heads * config.head_dim * dtype.itemsize
        layers = min(MAX_LAYERS, ceil(CACHES * cache_bytes(self.device) / nbytes))
        state = self.random_state(layers, rows * blocks_of(tokens))
        numbers = [state.acquire() for _ in range(rows)]
        state.prepare(numbers, [tokens - 1] * rows)
        state.advance(numbers, [tokens - 1] * rows)
        q = torch.randn(rows, config.num_heads, config.head_dim, dtype=dtype, device=self.device)
        own = self.calls(state, Step.pack([[0]] * rows, numbers, [tokens - 1] * rows, self.device), q)
        seconds = {"ours": seconds_of_each(own, self.device)}
        del state, own
        shape = layers, 2, rows, config.num_kv_heads, tokens, config.head_dim
        cache = torch.randn(shape, dtype=dtype, device=self.device)
        calls = [partial(self.sdpa, q[:, :, None], keys, values) for keys, values in cache]
        seconds["SDPA"] = seconds_of_each(calls, self.device)
        figures: dict[str, float] = {}
        for name, each in seconds.items():
            figures |= {f"{name}, µs": 1e6 * each, f"{name}, GB/s": nbytes / each / 1e9}
        return figures

    def chunk(self, rows: int, tokens: int, prefix: int) -> dict[str, Any]:
        """So many new tokens in each row, after a prefix that all rows share."""
        config, dtype = self.config, dtype_on(self.device)
        pairs = rows * (tokens * prefix + tokens * (tokens + 1) // 2)  # of a query and a key that it sees
        state = self.random_state(1, blocks_of(prefix) + rows * (blocks_of(tokens) + 1))
        source = state.acquire()
        state.prepare([source], [prefix])
        state.advance([source], [prefix])
        numbers = [state.acquire() for _ in range(rows)]
        state.fork(source, numbers)
        q = torch.randn(rows * tokens, config.num_heads, config.head_dim, dtype=dtype, device=self.device)
        ways = {"ours": self.calls(state, Step.pack([[0] * tokens] * rows, numbers, [prefix] * rows, self.device), q)}
        shape = 2, rows, config.num_kv_heads, prefix + tokens, config.head_dim
        keys, values = torch.randn(shape, dtype=dtype, device=self.device)
        queries = torch.unflatten(q, 0, (rows, tokens)).transpose(1, 2).contiguous()
        from torch.nn.attention.bias import causal_lower_right  # takes two seconds

        mask = causal_lower_right(tokens, prefix + tokens) if prefix else None
        ways["SDPA"] = [partial(self.sdpa, queries, keys, values, mask, prefix == 0)]
        figures: dict[str, Any] = {}
        for name, calls in ways.items():
            try:
                seconds = seconds_of_each(calls, self.device)
            except RuntimeError as error:
                if name == "ours":
                    raise
                figures[name] = str(error).partition("\n")[0][:80]  # not every kernel takes the mask
            else:
                flops = 4 * config.num_heads * config.head_dim * pairs
                figures |= {f"{name}, µs": 1e6 * seconds, f"{name}, TFLOP/s": flops / seconds / 1e12}
        return figures

    def random_state(self, layers: int, blocks: int) -> PagedState:
        """A state with so many blocks of random keys and values, as a scheduler allocates it."""
        shape = layers, self.config.num_kv_heads, self.config.head_dim, dtype_on(self.device), self.device
        nbytes = blocks * PagedState(*shape).row_bytes(BLOCK)
        state = PagedState(*shape, budget=Budget(nbytes, FORKS + 1, self.max_length))
        for group in state.groups:
            group.kv.normal_()
        return state

    @torch.inference_mode()
    def calls(self, state: PagedState, step: Step, q: Tensor) -> list[Callable[[], Any]]:
        """The engine's attention of this step, in each layer of the state."""
        view = state.view(step)
        return [partial(attend, q, *view.of(layer), self.config) for layer in range(len(state.locations))]

    def sdpa(self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """PyTorch's attention."""
        is_grouped, scale = self.config.num_heads > self.config.num_kv_heads, self.config.scale
        return F.scaled_dot_product_attention(
            q, keys, values, mask, is_causal=causal, scale=scale, enable_gqa=is_grouped
        )
