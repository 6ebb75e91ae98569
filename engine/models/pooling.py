"""Pooling: the hidden states of a text's tokens -> one vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

MEAN, FIRST, LAST = "mean", "first", "last"  # of all tokens; the first token's, which is [CLS] in BERT; the last one's


@dataclass(frozen=True)
class Pooling:
    """How a model embeds a text, as its checkpoint says.

    `max_length`: tokens to which a text is cut; None: the model's window. `prefix`: text before each text.
    `lowercases`: the text is converted first. `is_declared`: the checkpoint was made to embed texts, and says how.
    """

    mode: str = MEAN
    normalizes: bool = True  # to length 1
    max_length: int | None = None
    prefix: str = ""
    lowercases: bool = False
    is_declared: bool = False

    def pool(self, hidden: Tensor, lengths: Sequence[int]) -> Tensor:
        """hidden [N, D] of texts with these lengths, end to end -> float32 [R, D]."""
        if self.mode == MEAN:
            vectors = torch.stack([part.float().mean(0) for part in torch.split(hidden, list(lengths))])
        else:
            ends = torch.tensor(lengths).cumsum(0)
            places = ends - 1 if self.mode == LAST else ends - torch.tensor(lengths)
            vectors = hidden[places.to(hidden.device)].float()
        return F.normalize(vectors, dim=-1) if self.normalizes else vectors

    def prepare(self, text: str) -> str:
        """A text as the tokenizer gets it."""
        text = self.prefix + text
        return text.lower() if self.lowercases else text
