"""What recurrent models share: an embedding, layers that carry a state, a head."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import cast

from torch import Tensor, nn

from engine.cache.recurrent import Padded, RecurrentState, read_places
from engine.cache.state import State, Step
from engine.layers.linear import Embedding, Linear
from engine.models.config import ModelConfig
from engine.models.family import Cost, Model


class RecurrentModel(Model):
    """Pure: what it remembers is in the state that the caller passes.

    A layer takes the residual stream [N, hidden], the step's rows and what it remembers of them, and returns the
    stream and what it remembers next.
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
        """What one layer remembers of a row that has read nothing, by name."""

    @abstractmethod
    def residual(self, tokens: Tensor) -> Tensor:
        """The stream to which the layers add: the embedding of the tokens [N] -> [N, hidden]."""

    def forward(self, step: Step, state: State | None = None, last: Sequence[int] | None = None) -> Tensor:
        rows = Padded(step)
        view = cast("RecurrentState", state).view(step) if state is not None else None
        memory = view.memory if view is not None else self.fresh(rows.rows)
        x = self.residual(step.tokens)
        for layer, block in enumerate(self.layers):
            x, left = block(x, rows, memory[layer])
            if view is not None:
                view.leave(left)
        if view is not None:
            view.commit()
        places = read_places(step, last)
        return self.norm(x if places is None else x[places]).to(self.embed.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)

    def new_state(self) -> RecurrentState:
        return RecurrentState(self.config.num_layers, self.empty())

    def fresh(self, rows: int) -> list[dict[str, Tensor]]:
        """The memory of rows that begin here."""
        empty = {name: tensor.expand(rows, *tensor.shape) for name, tensor in self.empty().items()}
        return [empty] * self.config.num_layers

    def ends(self) -> Iterator[Cost]:
        """The costs of embedding, state and head."""
        yield Cost.of_lookup("embedding", self.embed)
        held = self.config.num_layers * sum(tensor.nbytes for tensor in self.empty().values())
        yield Cost("state, read and written", 0, 2 * held, 0)
        yield Cost.of_head(self.head, self.config.tie_word_embeddings)
