"""The encoder's trunk: every token attends to its whole text, before and after it (BERT, Devlin et al. 2019).

    tokens -> embedding + position + type -> norm -> n x ( norm(x + attention(x));  norm(x + mlp(x)) ) -> hidden states

The layers are the decoder's, but for attention. An encoder keeps no state and generates nothing: its hidden states are
the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn, cast

import torch
from torch import Tensor, nn

from engine.cache.blocks import Budget
from engine.cache.state import State, Step
from engine.layers.bidirectional import Batch, BidirectionalAttention, pad_rows
from engine.layers.linear import Embedding, Linear
from engine.layers.mlp import MLP
from engine.layers.norms import LayerNorm, add_and_norm
from engine.models.config import ModelConfig, Traits
from engine.models.family import Cost, Model
from engine.runtime.errors import BareloopError


@dataclass(frozen=True)
class EncoderConfig(ModelConfig):
    """The shape of an encoder."""

    intermediate_size: int
    num_heads: int
    norm_eps: float
    activation: str
    num_types: int  # of tokens: those of a first and a second text; a text to embed is a first one

    def traits(self) -> Traits:
        return Traits(
            norms="layer; after the sum of each branch",
            positions="learned, token types",
            mixing="attention in both directions, biases",
            mlp=f"{self.activation}, biases",
            state="none",
        )


class EncoderBlock(nn.Module):
    """x = norm(x + attention(x)); x = norm(x + mlp(x))."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.attention = BidirectionalAttention(config.hidden_size, config.num_heads)
        self.attention_norm = LayerNorm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size, config.activation, bias=True)
        self.mlp_norm = LayerNorm(config.hidden_size, config.norm_eps)

    def forward(self, x: Tensor, batches: Sequence[Batch]) -> Tensor:
        """x [P, hidden] -> [P, hidden]. `batches`: the padded rows of the step."""
        attended = self.attention(x, batches)
        x = add_and_norm(x, attended, self.attention_norm)[1]
        return add_and_norm(x, self.mlp(x), self.mlp_norm)[1]


class Encoder(Model):
    """An encoder: a pure function of the step, whose rows are whole texts."""

    is_encoder = True

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config: EncoderConfig = config
        self.embed = Embedding(config.vocab_size, config.hidden_size)
        self.positions = Embedding(config.max_position_embeddings, config.hidden_size)
        self.types = Embedding(config.num_types, config.hidden_size)
        self.norm = LayerNorm(config.hidden_size, config.norm_eps)
        self.layers = nn.ModuleList(EncoderBlock(config) for _ in range(config.num_layers))
        self.head = Linear(config.hidden_size, config.vocab_size)  # no product uses it; formats treat it as tied
        self.head.share(self.embed)

    def forward(self, step: Step, state: State | None = None, last: Sequence[int] | None = None) -> Tensor:  # noqa: ARG002
        """Hidden states [N, hidden] of whole texts; `state` and `last` are None."""
        rows = pad_rows(step.lengths.tolist(), step.tokens.device)
        tokens, positions = rows.pad(step.tokens), rows.pad(step.positions)
        x = self.norm(self.embed(tokens) + self.positions(positions) + self.types(torch.zeros_like(tokens)))
        for block in self.layers:
            x = self.run_block(block, x, rows.batches)
        return rows.unpad(x)

    def logits(self, hidden: Tensor) -> Tensor:  # noqa: ARG002
        self._refuse()

    def new_state(self, budget: Budget | None = None) -> State:  # noqa: ARG002
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise BareloopError(
            f"{self.source or self.config.model_type} is an encoder ({self.config.model_type}), which embeds texts and "
            "generates none: use --embed or LLM.embed, or name another model"
        )

    def costs(self, context: int) -> Iterator[Cost]:
        """Parameters, bytes and FLOPs of one token in a text with `context` others."""
        config = self.config
        blocks = cast("list[EncoderBlock]", list(self.layers))
        yield Cost.of_lookup("embedding", self.embed)
        yield Cost.of_lookup("positions", self.positions)
        yield Cost.of_lookup("token types", self.types)
        yield Cost.of_weights("attention projections", (block.attention for block in blocks))
        flops = 4 * config.hidden_size * config.num_layers * (context + 1)
        yield Cost(f"attention to {context + 1:,} tokens", 0, 0, flops)
        yield Cost.of_weights("MLP", (block.mlp for block in blocks))
        norms = (norm for block in blocks for norm in (block.attention_norm, block.mlp_norm))
        yield Cost.of_weights("norms", (self.norm, *norms))
