"""The common part of recurrent models: an embedding, layers with a state of fixed size, a head."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import cast

from torch import Tensor, nn

from engine.cache.blocks import Budget
from engine.cache.recurrent import PaddedRows, RecurrentState, last_indices
from engine.cache.state import State, Step
from engine.layers.linear import Embedding, Linear
from engine.models.config import ModelConfig
from engine.models.family import Cost, Model


class RecurrentModel(Model):
    """A pure function of the step and the state that the caller passes.

    A layer takes the residual stream [N, hidden], the step's rows and their memory, and returns the new stream and the
    new memory.
    """

    layers: nn.ModuleList
    norm: nn.Module

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = Embedding(config.vocab_size, config.hidden_size)
        self.head = Linear(config.hidden_size, config.vocab_size)
        if config.tie_word_embeddings:
            self.head.share(self.embed)

    @abstractmethod
    def empty(self) -> dict[str, Tensor]:
        """One layer's initial memory of a row: name -> tensor."""

    @abstractmethod
    def residual(self, tokens: Tensor) -> Tensor:
        """The initial residual stream: tokens [N] -> [N, hidden]."""

    def forward(self, step: Step, state: State | None = None, last: Sequence[int] | None = None) -> Tensor:
        rows = PaddedRows(step)
        view = cast("RecurrentState", state).view(step) if state is not None else None
        memory = view.memory if view is not None else self.fresh(rows.count)
        x = self.residual(step.tokens)
        for layer, block in enumerate(self.layers):
            x, new_memory = self.run_block(block, x, rows, memory[layer])
            if view is not None:
                view.append(new_memory)
        if view is not None:
            view.commit()
        indices = last_indices(step, last)
        return self.norm(x if indices is None else x[indices]).to(self.embed.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)

    def new_state(self, budget: Budget | None = None) -> RecurrentState:  # noqa: ARG002
        return RecurrentState(self.config.num_layers, self.empty())

    def fresh(self, rows: int) -> list[dict[str, Tensor]]:
        """The initial memory of new rows, by layer."""
        empty = {name: tensor.expand(rows, *tensor.shape) for name, tensor in self.empty().items()}
        return [empty] * self.config.num_layers

    def common_costs(self) -> Iterator[Cost]:
        """The costs of the embedding, the state and the head."""
        yield Cost.of_lookup("embedding", self.embed)
        nbytes = self.config.num_layers * sum(tensor.nbytes for tensor in self.empty().values())
        yield Cost("state, read and written", 0, 2 * nbytes, 0)
        yield Cost.of_head(self.head, self.config.tie_word_embeddings)
