"""Choosing tokens on a GPU: parameters as tensors, and launches whose number does not depend on the number of rows.

Nothing here waits for the device. With Triton its kernels sample (engine/kernels/gpu/sampling.py), otherwise PyTorch's
operators; both give the token that engine/decoding/sampling.py chooses on a CPU, unless a draw is within a rounding
error of the boundary between two tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.decoding.draws import draw, most_likely
from engine.kernels import gpu
from engine.runtime.device import upload


@dataclass(frozen=True)
class DeviceParams:
    """Sampling parameters of R rows on the device. They stay the same while the rows do; positions advance."""

    reals: Tensor  # [R, 3], float64 (Apple's GPUs: float32): temperature, 0 if greedy; top_p; -log(min_p)
    integers: Tensor  # [R, 2], int64: top_k, seed
    is_greedy: bool  # all rows
    has_filters: bool  # any row has top-k or top-p

    @staticmethod
    def upload(
        reals: Sequence[tuple[float, float, float]], integers: Sequence[tuple[int, int]], device: torch.device
    ) -> DeviceParams:
        """`reals`: temperature, top_p and min_p of each row; `integers`: top_k and seed."""
        rows = [
            (max(temperature, 1e-30) if temperature > 0 else 0.0, top_p, -math.log(min_p) if min_p > 0 else math.inf)
            for temperature, top_p, min_p in reals
        ]
        is_filtered = [
            temperature > 0 and (top_k > 0 or top_p < 1)
            for (temperature, top_p, _), (top_k, _) in zip(rows, integers, strict=True)
        ]
        return DeviceParams(
            upload(rows, _wide(device), device),
            upload([(min(top_k, 2**31), _signed(seed)) for top_k, seed in integers], torch.int64, device),
            not any(temperature for temperature, _, _ in rows),
            any(is_filtered),
        )


def sample_on_device(logits: Tensor, params: DeviceParams, positions: Tensor) -> Tensor:
    """logits [R, V] -> the next token of every row [R], or `INVALID`. Only launches: it can be part of a CUDA graph.

    positions [R], int64: the number of tokens before each of those chosen.
    """
    if params.is_greedy:
        return most_likely(logits)
    ops = gpu.for_rows(logits)
    if ops is not None and logits.shape[1] <= ops.MAX_VOCAB:
        return ops.sample(logits, params.reals, params.integers, positions, params.has_filters)
    temperature, _, min_p = params.reals[:, :, None].unbind(1)
    is_sampled = temperature > 0
    scaled = logits.float()
    scaled = (scaled - scaled.amax(-1, keepdim=True)) / torch.where(is_sampled, temperature, 1).float()
    lowest = cutoffs(scaled, params) if params.has_filters else -min_p.float()
    scaled.masked_fill_(scaled < lowest, -math.inf)
    tokens = draw(scaled, uniform_on_device(params.integers[:, 1], positions))
    return torch.where(is_sampled[:, 0], tokens, most_likely(logits))


def cutoffs(logits: Tensor, params: DeviceParams) -> Tensor:
    """The lowest logit of each row that is kept [R, 1]; `logits` are those after temperature, the largest is 0."""
    vocab_size = logits.shape[1]
    _, top_p, min_p = params.reals[:, :, None].unbind(1)
    ranks = params.integers[:, :1]
    ranks = torch.where((ranks > 0) & (ranks < vocab_size), ranks, vocab_size)
    values = logits.sort(descending=True).values
    lowest = values.gather(1, ranks - 1)
    mass = values.exp().masked_fill_(values < lowest, 0).cumsum(-1, dtype=top_p.dtype)
    reached = (mass < top_p * mass[:, -1:]).sum(-1, keepdim=True)
    nucleus = values.gather(1, reached.clamp_(max=vocab_size - 1))
    return torch.where(top_p < 1, nucleus, lowest).maximum(-min_p.float())


def uniform_on_device(seeds: Tensor, positions: Tensor) -> Tensor:
    """The numbers of `uniform` [R], for int64 tensors."""
    bits = _shifted(_mix(_mix(seeds) + positions), 11)
    return bits.to(_wide(bits.device)) / 2**53


def _mix(value: Tensor) -> Tensor:
    """One output of SplitMix64, in signed integers: products wrap, and what a shift brings in at the top is removed."""
    value = (value + 1) * _signed(0x9E3779B97F4A7C15)
    value = (value ^ _shifted(value, 30)) * _signed(0xBF58476D1CE4E5B9)
    value = (value ^ _shifted(value, 27)) * _signed(0x94D049BB133111EB)
    return value ^ _shifted(value, 31)


def _shifted(value: Tensor, count: int) -> Tensor:
    return (value >> count) & (2 ** (64 - count) - 1)


def _signed(value: int) -> int:
    """The int64 with the last 64 bits of an integer."""
    return (value + 2**63) % 2**64 - 2**63


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def change_logits(logits: Tensor, changes: Sequence[tuple[int, float, float, float]]) -> None:
    """Apply penalties and bias to single logits of [R, V], float32, contiguous, in place.

    `changes`: index in the flattened logits, each once; repetition penalty (1: none); what is subtracted; bias.
    """
    places, *values = zip(*changes, strict=True)
    index = upload(places, torch.int64, logits.device)
    repetition, penalty, bias = upload(values, torch.float32, logits.device)
    flat = logits.view(-1)
    old = flat[index]
    flat[index] = torch.where(old > 0, old / repetition, old * repetition) - penalty + bias


def allow_only(logits: Tensor, rows: Sequence[int], allowed: Sequence[Tensor]) -> None:
    """Set the logits of these rows of [R, V] to -inf in place, except where `allowed` [V], bool on the CPU, is set."""
    index = upload(rows, torch.int64, logits.device)
    mask = upload(torch.stack([*allowed]), torch.bool, logits.device)
    logits[index] = torch.where(mask, logits[index], -math.inf)
