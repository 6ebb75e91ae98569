"""What a run needs: parameters, bytes and time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.cache.state import Step
from engine.finetune.loss import LOGITS_BYTES, add_gradients, count_learned
from engine.finetune.trainer import Plan
from engine.models.family import Model
from engine.runtime.device import synchronize
from engine.runtime.memory import free_memory

if TYPE_CHECKING:
    from engine.finetune.data import Dataset

STATE_BYTES = 12  # of a trained parameter: gradient and AdamW's two means, in float32
SAMPLE_TOKENS = 256  # of which the activations are measured
BLOCK_INPUTS = 2  # tensors [tokens, hidden] of a block that are kept where it is computed again


@dataclass(frozen=True)
class Memory:
    """Bytes that a run needs at its peak, by purpose."""

    weights: int  # with the adapters
    gradients: int
    optimizer: int
    activations: int  # of the largest forward pass
    logits: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def memory(model: Model, tokens: int, kept: float, recompute: bool) -> Memory:
    """The memory of a run whose largest forward pass has this many tokens. `kept`: of `kept_bytes`.

    With `recompute` the inputs of every block are kept, and the activations of one.
    """
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    layers = model.config.num_layers
    activations = kept * tokens
    if recompute:
        activations = activations / layers + BLOCK_INPUTS * layers * tokens * model.config.hidden_size * 4
    return Memory(
        weights=sum(parameter.nbytes for parameter in model.parameters()),
        gradients=4 * trained,
        optimizer=(STATE_BYTES - 4) * trained,
        activations=round(activations),
        logits=3 * min(LOGITS_BYTES, 4 * tokens * model.head.rows),
    )


def kept_bytes(model: Model, ids: Sequence[int], autocast: torch.dtype | None = None) -> float:
    """Bytes per token that a forward pass keeps for the backward pass, measured with (the first of) these tokens."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, int] = {}
    kept: list[Tensor] = []  # so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            found[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    device, ids = model.embed.weight.device, ids[:SAMPLE_TOKENS]
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast(device.type, autocast or torch.bfloat16, enabled=autocast is not None),
    ):
        hidden = model(Step.pack([ids], device=device))
    del hidden
    return sum(found.values()) / len(ids)


def needs_recompute(model: Model, plan: Plan, kept: float) -> bool:
    """Whether activations would take more than half of the memory that is free after gradients and optimizer."""
    free = free_memory(model.embed.weight.device)
    needed = memory(model, plan.largest_pass, kept, recompute=False)
    return free is not None and needed.activations > (free - needed.gradients - needed.optimizer) / 2


def seconds_per_token(model: Model, plan: Plan, autocast: torch.dtype | None = None) -> float:
    """The time of a token in training, measured with the first forward pass of the run; the weights stay as they are.

    The second of two is measured, as the first one compiles kernels and allocates memory.
    """
    examples = plan.first_pass
    for _ in range(2):
        start = time.perf_counter()
        add_gradients(model, examples, max(1, count_learned(examples)), autocast)
        synchronize(model.embed.weight.device)
        seconds = time.perf_counter() - start
    model.zero_grad(set_to_none=True)
    return seconds / sum(len(example.ids) for example in examples)


def describe(model: Model, data: Dataset, plan: Plan, needed: Memory, recompute: bool) -> dict[str, Any]:
    """The figures of a run before it begins."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    adapters = sum(p.numel() for name, p in model.named_parameters() if ".adapter." in name)
    tokens = sum(len(example.ids) for example in data.train)
    base = sum({cost.part: cost.parameters for cost in model.costs(0)}.values())
    return {
        "trained_parameters": trained,
        "parameters": base + adapters if adapters else base,
        "examples": len(data.train),
        "held_out_examples": len(data.held_out),
        "tokens_per_epoch": tokens,
        "learned_tokens_per_epoch": count_learned(data.train),
        "steps": plan.steps,
        "steps_per_epoch": len(plan.epoch(0)),
        "recompute": recompute,
        "bytes": {**vars(needed), "total": needed.total},
    }


def lines(figures: dict[str, Any], free: int | None) -> list[str]:
    """The figures as lines for a person."""
    trained, total, needed = figures["trained_parameters"], figures["parameters"], figures["bytes"]
    parts = ", ".join(f"{name} {_bytes(size)}" for name, size in needed.items() if name != "total")
    room = "" if free is None else f"; {_bytes(free)} are free"
    again = ", blocks are computed again in the backward pass" if figures["recompute"] else ""
    return [
        f"trains {trained:,} of {total:,} parameters ({trained / total:.2%})",
        f"memory: about {_bytes(needed['total'])} ({parts}){room}{again}",
        f"data: {figures['examples']:,} examples, {figures['tokens_per_epoch']:,} tokens per epoch, "
        f"{figures['learned_tokens_per_epoch']:,} of them learned; {figures['held_out_examples']:,} examples held out",
        f"steps: {figures['steps']:,}, {figures['steps_per_epoch']:,} per epoch",
    ]


def _bytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
