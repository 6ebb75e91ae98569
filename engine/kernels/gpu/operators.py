"""All operators for a GPU, as `gpu.for_rows` returns them."""

from __future__ import annotations

import torch

from engine.kernels.gpu.activations import gated_activation
from engine.kernels.gpu.attention import chunk_attention, decode_attention
from engine.kernels.gpu.cutoffs import MAX_VOCAB
from engine.kernels.gpu.dense import dense_gated, dense_linear
from engine.kernels.gpu.norms import add_norm, head_norm
from engine.kernels.gpu.panels import dequantize, linear
from engine.kernels.gpu.rotation import rotate_and_write
from engine.kernels.gpu.sampling import sample

__all__ = [
    "MAX_VOCAB",
    "add_norm",
    "chunk_attention",
    "decode_attention",
    "dense_gated",
    "dense_linear",
    "dequantize",
    "gated_activation",
    "head_norm",
    "linear",
    "rotate_and_write",
    "sample",
    "try_out",
]


def try_out(device: torch.device) -> None:
    """Compile and run a small kernel. Raises one of many exceptions if Triton does not work on this device."""
    gated_activation(torch.ones(1, 32, device=device), "silu")
