"""Rotary position embedding (Su et al. 2021, RoFormer), with the frequency scalings that checkpoints use.

A head of size D is D/2 planes; plane i of a token at position p is rotated by the angle p * inv_freq[i].
The two coordinates of a plane are D/2 apart (two halves, not interleaved pairs).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.runtime.errors import BareloopError, quote


class Rotary:
    """cos and sin tables for the tokens of a step, shared by all layers. Angles are float32 in every dtype."""

    def __init__(self, config: RopeConfig, head_dim: int) -> None:
        if config.type not in FREQUENCIES:
            known = ", ".join(FREQUENCIES)
            raise BareloopError(f"config.json: rope_type {quote(config.type)} is not implemented; known: {known}")
        self.config = config
        self.head_dim = head_dim
        self.frequencies, self.amplitude = FREQUENCIES[config.type](config, head_dim)

    def __call__(self, positions: Tensor, lengths: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """positions [N] of rows with `lengths` [R] tokens -> cos, sin [N, 1, D/2]."""
        extent = positions
        if self.config.type == "dynamic" and len(lengths) == len(positions):
            extent = positions + 1
        elif self.config.type == "dynamic":  # the frequencies depend on the row's length so far
            ends = lengths.cumsum(0) - 1
            last = positions[ends.to(positions.device)]
            extent = last.repeat_interleave(lengths.to(positions.device)) + 1
        angles = positions[:, None].float() * self.frequencies(extent)
        cos, sin = angles.cos() * self.amplitude, angles.sin() * self.amplitude
        return cos.to(dtype)[:, None], sin.to(dtype)[:, None]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate every head of x [N, H, D] by its token's angles; the result has x's dtype.

    With fewer than D/2 angles only the first planes are rotated.
    """
    half = cos.shape[-1]
    first, second, rest = torch.split(x.to(cos.dtype), [half, half, x.shape[-1] - 2 * half], dim=-1)
    rotated = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat((*rotated, rest) if rest.shape[-1] else rotated, dim=-1).to(x.dtype)


# A scaling gives the frequencies as a function of each token's row length [N] -> [N or 1, D/2], and the factor
# on cos and sin. Formulas as in transformers' modeling_rope_utils, with the float32 operations in the same order.
Frequencies = Callable[[Tensor], Tensor]


def _exponents(head_dim: int) -> Tensor:
    return torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim


def _fixed(inv_freq: Tensor) -> Frequencies:
    """Frequencies that do not depend on the extent; they are copied to each device once."""
    copies = {inv_freq.device: inv_freq[None]}

    def frequencies(extent: Tensor) -> Tensor:
        if extent.device not in copies:
            copies[extent.device] = inv_freq[None].to(extent.device)
        return copies[extent.device]

    return frequencies


def _factor(config: RopeConfig) -> float:
    if config.factor is None:
        raise BareloopError(f"config.json: rope_type {quote(config.type)} needs a factor in rope_parameters")
    return config.factor


def _default(config: RopeConfig, head_dim: int) -> tuple[Frequencies, float]:
    return _fixed(1.0 / config.theta ** _exponents(head_dim)), 1.0


def _linear(config: RopeConfig, head_dim: int) -> tuple[Frequencies, float]:
    """Position interpolation (Chen et al. 2023): every position is divided by the factor."""
    return _fixed(1.0 / config.theta ** _exponents(head_dim) / _factor(config)), 1.0


def _dynamic(config: RopeConfig, head_dim: int) -> tuple[Frequencies, float]:
    """Dynamic NTK: beyond the trained length the base grows with the row.

    Cached keys keep their older rotation, as in transformers. The loop stays within the trained window, where nothing
    changes.
    """
    if head_dim <= 2:
        raise BareloopError(f"config.json: rope_type 'dynamic' needs a head_dim above 2, not {head_dim}")
    factor, trained = _factor(config), config.max_position_embeddings
    exponents = _fixed(_exponents(head_dim))

    def frequencies(extent: Tensor) -> Tensor:
        stretch = factor * extent.clamp(min=trained).float() / trained - (factor - 1)
        base = config.theta * stretch ** (head_dim / (head_dim - 2))
        return 1.0 / base[:, None] ** exponents(extent)

    return frequencies, 1.0


def _llama3(config: RopeConfig, head_dim: int) -> tuple[Frequencies, float]:
    """Llama 3.1: long wavelengths are stretched by the factor, short ones kept, those between interpolated."""
    factor, original = _factor(config), config.original_max_position_embeddings
    inv_freq = 1.0 / config.theta ** _exponents(head_dim)
    wavelength = 2 * math.pi / inv_freq
    smooth = (original / wavelength - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)
    between = (1 - smooth) * inv_freq / factor + smooth * inv_freq
    scaled = torch.where(wavelength > original / config.low_freq_factor, inv_freq / factor, between)
    return _fixed(torch.where(wavelength < original / config.high_freq_factor, inv_freq, scaled)), 1.0


def _yarn(config: RopeConfig, head_dim: int) -> tuple[Frequencies, float]:
    """YaRN (Peng et al. 2023): a ramp over the planes from extrapolation to interpolation."""
    original = config.original_max_position_embeddings
    factor = config.factor or config.max_position_embeddings / original

    def plane(rotations: float) -> float:  # the plane that rotates this often within the trained length
        return head_dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(config.theta))

    low, high = plane(config.beta_fast), plane(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = (torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low or 0.001)
    kept = 1 - ramp.clamp(0, 1)
    powers = config.theta ** _exponents(head_dim)
    inv_freq = 1.0 / (factor * powers) * (1 - kept) + 1.0 / powers * kept

    def attention(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    amplitude = config.attention_factor or attention(1.0)
    if config.attention_factor is None and config.mscale and config.mscale_all_dim:
        amplitude = attention(config.mscale) / attention(config.mscale_all_dim)
    return _fixed(inv_freq), amplitude


FREQUENCIES: dict[str, Callable[[RopeConfig, int], tuple[Frequencies, float]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
}


def frequency_divisors(config: RopeConfig, head_dim: int) -> Tensor:
    """By what a scaling divides the unscaled frequencies: [D/2]. llama.cpp stores these as rope_freqs.weight."""
    unscaled = 1.0 / config.theta ** _exponents(head_dim)
    return unscaled / Rotary(config, head_dim).frequencies(torch.zeros(1))[0]


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding: the base, and how the frequencies are scaled for longer windows."""

    theta: float = 10_000.0
    type: str = "default"
    max_position_embeddings: int = 2048
    original_max_position_embeddings: int = 2048
    factor: float | None = None
    attention_factor: float | None = None
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
