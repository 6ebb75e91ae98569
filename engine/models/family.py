"""What a family of models declares, and what every model can do."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from engine.cache.state import State, Step
from engine.layers.linear import Embedding, Linear, Matrix, fused
from engine.models.config import ModelConfig
from engine.models.config_reader import Keys


class Model(nn.Module, ABC):
    """A pure function of tokens, positions and state."""

    config: ModelConfig
    embed: Embedding
    head: Linear

    @property
    def dtype(self) -> torch.dtype:
        """Of activations, and of weights that are in no format."""
        return self.embed.dtype

    @cached_property
    def fused(self) -> bool:
        """Whether the CPU's kernels for whole blocks take all its weights."""
        return fused(self)

    @abstractmethod
    def forward(self, step: Step, state: State | None = None, last: Sequence[int] | None = None) -> Tensor:
        """Hidden states [N, hidden] of the step's tokens.

        With a state, its rows go on from where they are and remember the step. Without one, every row
        begins here: one causal pass that is differentiable and changes nothing.

        `last` (with a state): how many of each row's last tokens somebody reads, none to all. Only theirs are
        returned, end to end, and the last layer computes no others.
        """

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [M, hidden] -> scores of the next token [M, vocab]. Ask only for rows that someone reads."""

    @abstractmethod
    def new_state(self) -> State:
        """An empty state on the model's device, in its dtype."""

    @abstractmethod
    def costs(self, context: int) -> Iterator[Cost]:
        """What one decoded token costs after `context` others, by part."""


Initial = Callable[[torch.Size, torch.Generator], Tensor]


@dataclass(frozen=True)
class Layout:
    """How a checkpoint's tensor becomes rows of a parameter, and back; `config` is the model's."""

    shape: Callable[[tuple[int, ...]], tuple[int, ...]]  # ours -> the checkpoint's
    load: Callable[[Tensor, Any], Tensor]
    save: Callable[[Tensor, Any], Tensor]


@dataclass(frozen=True)
class Family:
    """One `model_type`: how its config.json is read, its module, and the names of its tensors.

    `names` maps a module of ours to the modules of the checkpoint whose tensors it holds, stacked by rows in
    this order; `*` stands for the layer's number, and `weight` or `bias` is appended to both sides. `layouts` says
    which of our modules a checkpoint holds in another order. `aliases` are patterns of names and what they stand
    for. Tensors that end with a name in `ignored` are buffers of other programs, or parts that are not used.
    """

    model_type: str
    configure: Callable[[Keys], ModelConfig]
    build: Callable[[Any], Model]
    names: Mapping[str, tuple[str, ...]]
    ignored: tuple[str, ...] = ("rotary_emb.inv_freq",)
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    aliases: tuple[tuple[str, str], ...] = ()  # regular expression, replacement
    initial: Mapping[str, Initial] = field(default_factory=dict)  # end of a parameter's name -> what it begins as
    checkpoints: tuple[str, ...] = ()  # on the hub, for which it was written
    spelled: Mapping[str, str] = field(default_factory=dict)  # our names of keys in config.json -> the family's

    def canonical(self, name: str) -> str:
        """The name that stands in `names` for a checkpoint's."""
        for pattern, replacement in self.aliases:
            name = re.sub(pattern, replacement, name)
        return name


@dataclass(frozen=True)
class Cost:
    """What a part of a model holds, and what one decoded token reads and computes there."""

    part: str
    parameters: int
    nbytes: int
    flops: int

    @staticmethod
    def of_weights(part: str, modules: Iterable[nn.Module]) -> Cost:
        """All weights of the modules are read once; a matrix of n numbers costs 2 n operations."""
        parameters = nbytes = flops = 0
        for module in chain.from_iterable(each.modules() for each in modules):
            own = dict(module.named_parameters(recurse=False))
            nbytes += sum(weight.nbytes for weight in own.values())
            if isinstance(module, Matrix):
                own = {name: weight for name, weight in own.items() if name not in module.held()}
                parameters += module.rows * module.columns
                flops += 2 * module.rows * module.columns
            parameters += sum(weight.numel() for weight in own.values())
            flops += 2 * sum(weight.numel() for weight in own.values() if weight.dim() == 2)
        return Cost(part, parameters, nbytes, flops)

    @staticmethod
    def of_lookup(part: str, table: Matrix) -> Cost:
        """One row is read."""
        return Cost(part, table.rows * table.columns, table.nbytes // table.rows, 0)

    @staticmethod
    def of_head(head: nn.Module, tied: bool) -> Cost:
        """The scores of all tokens; the weights of a tied head are counted with the embedding."""
        cost = Cost.of_weights("head (shares the embedding)" if tied else "head", [head])
        return replace(cost, parameters=0) if tied else cost
