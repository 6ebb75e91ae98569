"""The interface of a model, and the declaration of a family: config, tensor names, layouts, costs."""

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
from torch.utils.checkpoint import checkpoint

from engine.cache.blocks import Budget
from engine.cache.state import State, Step
from engine.layers.linear import Embedding, Linear, Matrix, formats_of, takes_fused_kernels
from engine.models.config import ModelConfig
from engine.models.config_reader import Keys
from engine.runtime.memory import free_memory


class Model(nn.Module, ABC):
    """A pure function of tokens, positions and state."""

    config: ModelConfig
    embed: Embedding
    head: Linear
    source = ""  # folder or model type, for error messages
    is_encoder = False  # embeds whole texts, and has neither a state nor logits
    recompute = False  # compute each block again in the backward pass, instead of keeping its activations

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of activations and of unquantized weights."""
        return self.embed.dtype

    @cached_property
    def fused(self) -> bool:
        """Whether the C++ kernels for whole blocks support the formats of all weights."""
        return takes_fused_kernels(self)

    @cached_property
    def capturable(self) -> bool:
        """Whether a CUDA graph can have the products of all weights."""
        return all(weight_format.capturable for weight_format in formats_of(self))

    def run_block(self, block: nn.Module, *inputs: Any) -> Any:
        """A block's outputs. With `recompute` only its inputs are kept for the backward pass."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def pack(self, copies: int) -> None:
        """Pack the weights for many products, if there is ample memory. `copies`: processes that load this model."""
        matrices = (module for module in self.modules() if isinstance(module, Linear))
        layers = [matrix for matrix in matrices if matrix is not self.head]  # which gets few rows
        free = free_memory(self.embed.weight.device)
        if free is not None and free > 4 * copies * sum(layer.weight.nbytes for layer in layers):
            for layer in layers:
                layer.pack()

    @abstractmethod
    def forward(self, step: Step, state: State | None = None, last: Sequence[int] | None = None) -> Tensor:
        """Hidden states [N, hidden] of the step's tokens.

        With a state, its rows continue where they are, and the step is appended to them. Without one, every row starts
        at position 0: one causal pass, which is differentiable and changes nothing.

        `last` (only with a state): number of trailing positions per row [R] whose hidden states are returned, end to
        end; the last layer computes no others. None: all.
        """

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [M, hidden] -> logits of the next token [M, vocab]. Call it only for the rows that are needed."""

    @abstractmethod
    def new_state(self, budget: Budget | None = None) -> State:
        """An empty state on the model's device, in its dtype.

        `budget`: what is allocated at once for keys and values on a GPU; None: as much as is needed.
        """

    @abstractmethod
    def costs(self, context: int) -> Iterator[Cost]:
        """Parameters, bytes and FLOPs of decoding one token after `context` others, by part of the model."""

    def token_bytes(self, context: int) -> int:
        """Bytes that are read from memory to decode one token after `context` others."""
        return sum(cost.nbytes for cost in self.costs(context))


Initial = Callable[[torch.Size, torch.Generator], Tensor]


@dataclass(frozen=True)
class Layout:
    """How a checkpoint's tensor is converted to rows of a parameter and back; both functions get the model's config."""

    shape: Callable[[tuple[int, ...]], tuple[int, ...]]  # shape of our rows -> shape in the checkpoint
    load: Callable[[Tensor, Any], Tensor]
    save: Callable[[Tensor, Any], Tensor]

    @property
    def transposes(self) -> bool:
        """Whether the checkpoint has matrices [in, out]."""
        return self.shape((1, 2)) == (2, 1)


@dataclass(frozen=True)
class Family:
    """One `model_type`: how its config.json is read, its module, and the names of its tensors.

    `names` maps each of our modules to the checkpoint's modules whose tensors are stacked by rows in it, in this
    order; `*` stands for the layer's number, and `weight` or `bias` is appended on both sides. `layouts` converts
    modules that the checkpoint stores in another layout. `aliases` rename tensors by regular expressions. Tensors
    whose names end with one of `ignored` are other programs' buffers, or parts that are not used. `modules` is needed
    where transformers' names of modules are not those of `names`: adapters have them.
    """

    model_type: str
    configure: Callable[[Keys], ModelConfig]
    build: Callable[[Any], Model]
    names: Mapping[str, tuple[str, ...]]
    ignored: tuple[str, ...] = ("rotary_emb.inv_freq",)
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    aliases: tuple[tuple[str, str], ...] = ()  # regular expression, replacement
    modules: tuple[tuple[str, str], ...] = ()  # the same
    initial: Mapping[str, Initial] = field(default_factory=dict)  # end of a parameter's name -> its initial values
    checkpoints: tuple[str, ...] = ()  # on the hub, that it was written for
    key_names: Mapping[str, str] = field(default_factory=dict)  # our names of keys in config.json -> the family's
    unadapted: tuple[str, ...] = ()  # ends of the names of matrices that peft cannot adapt
    untrained: tuple[str, ...] = ()  # beginnings of names of modules that training leaves as they are: not for texts

    def canonical(self, name: str) -> str:
        """A tensor's name in the checkpoint, as `names` has it."""
        for pattern, replacement in self.aliases:
            name = re.sub(pattern, replacement, name)
        return name

    def module(self, name: str) -> str:
        """The name in transformers of a module, or of a tensor in it, that `names` has."""
        for pattern, replacement in self.modules:
            name = re.sub(pattern, replacement, name)
        return name


@dataclass(frozen=True)
class Cost:
    """The parameters of a part of a model, and what decoding one token reads and computes there."""

    part: str
    parameters: int
    nbytes: int
    flops: int

    @staticmethod
    def of_weights(part: str, modules: Iterable[nn.Module]) -> Cost:
        """All weights are read once, adapters in the dtype of products; a matrix of n weights costs 2 n FLOPs."""
        parameters = nbytes = flops = 0
        inner = list(chain.from_iterable(each.modules() for each in modules))
        sizes = {
            id(parameter): module.dtype.itemsize
            for module in inner
            if isinstance(module, Linear) and module.adapter is not None
            for parameter in module.adapter.parameters()
        }
        for module in inner:
            weights = dict(module.named_parameters(recurse=False))
            nbytes += sum(weight.numel() * sizes.get(id(weight), weight.itemsize) for weight in weights.values())
            if isinstance(module, Matrix):
                quantized = module.weight_tensors()
                weights = {name: weight for name, weight in weights.items() if name not in quantized}
                parameters += module.rows * module.columns
                flops += 2 * module.rows * module.columns
            parameters += sum(weight.numel() for weight in weights.values())
            flops += 2 * sum(weight.numel() for weight in weights.values() if weight.dim() == 2)
        return Cost(part, parameters, nbytes, flops)

    @staticmethod
    def of_lookup(part: str, table: Matrix) -> Cost:
        """An embedding, of which one row is read."""
        return Cost(part, table.rows * table.columns, table.nbytes // table.rows, 0)

    @staticmethod
    def of_head(head: nn.Module, tied: bool) -> Cost:
        """The output projection; the parameters of a tied head are counted with the embedding."""
        cost = Cost.of_weights("head (shares the embedding)" if tied else "head", [head])
        return replace(cost, parameters=0) if tied else cost
