"""AttentionConfig: the shape and the choices of one layer's attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class AttentionConfig:
    """One layer's shape and choices: H query heads share Hkv heads of keys and values (Ainslie et al. 2023)."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    qkv_bias: bool
    out_bias: bool
    qk_norm: Callable[[int], nn.Module] | None  # creates a norm of the given size
    qk_norm_heads: bool  # norm each head of q and k by itself, or all heads as one vector
    clip: float | None  # q, k and v are clamped to ± this
    window: int | None  # attention window in tokens; None for full attention
    scale: float  # of the scores
    softcap: float | None  # scores s become c tanh(s / c)
