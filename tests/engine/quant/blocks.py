"""Random blocks of GGUF's types."""

from __future__ import annotations

import gguf
import numpy
import torch

# Places of the float16 numbers in a block, and their sizes, with which weights are mostly below 0.2.
HALVES = {
    "Q4_0": {0: 0.02},
    "Q4_1": {0: 0.02, 2: 0.15},
    "Q5_0": {0: 0.01},
    "Q8_0": {0: 0.001},
    "Q4_K": {0: 2e-4, 2: 1.5e-3},
    "Q5_K": {0: 1e-4, 2: 1.5e-3},
    "Q6_K": {208: 1e-4},
}


def random_blocks(kind: gguf.GGMLQuantizationType, rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """A matrix of seeded random blocks: [rows, bytes], with float16 numbers of either sign and random other bytes."""
    values, size = gguf.GGML_QUANT_SIZES[kind]
    random = numpy.random.default_rng(seed)
    blocks = random.integers(0, 256, (rows, columns // values, size), dtype=numpy.uint8)
    for place, scale in HALVES[kind.name].items():
        numbers = (random.uniform(0.5, 1, blocks.shape[:2]) * scale).astype("<f2")
        signs = numbers * random.choice([-1, 1], (rows, 1)).astype("<f2")  # one for a row, as minima are subtracted
        blocks[..., place : place + 2] = signs[..., None].view(numpy.uint8)
    return torch.from_numpy(blocks.reshape(rows, -1))


def exact_values(kind: gguf.GGMLQuantizationType, blocks: torch.Tensor) -> torch.Tensor:
    """The values of blocks by the package `gguf` (float32)."""
    return torch.from_numpy(gguf.quants.dequantize(blocks.numpy(), kind))
