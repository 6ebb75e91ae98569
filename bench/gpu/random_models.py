"""Random models, matrices and prompts, drawn on the device."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bench.gpu.timing import SkippedError
from bench.shapes import SHAPES
from engine import LLM
from engine.checkpoints.loading import replace_parameters
from engine.checkpoints.weight_formats import assign_formats
from engine.decoding.scheduling.states import SchedulerStates
from engine.layers.linear import Matrix
from engine.models import configure
from engine.models.config import ModelConfig
from engine.models.family import Family, Model
from engine.quant.base import ROW_MULTIPLE, Format
from engine.runtime.device import choose_device, choose_dtype
from engine.runtime.memory import free_memory

SEED = 0
STD = 0.02  # of weights
PART = 2**24  # numbers that are quantized at once, which takes some ten times as much memory as they
GPU_MEMORY = 0.5  # of the free memory, for keys and values of a scheduler; the rest is for measurements
ROOM = 1.5e9  # bytes beside the weights, for activations and a short cache


def dtype_on(device: torch.device) -> torch.dtype:
    """bfloat16; on a CPU, where that may be slow, float32."""
    return choose_dtype("float32" if device.type == "cpu" else "bfloat16", "auto")


def undrawn_model(shape: str, device: torch.device, quant: str = "none") -> tuple[Model, Family, ModelConfig]:
    """A model of this shape on the meta device, in the dtype and the formats that it has on a device."""
    family, config = configure(SHAPES[shape])
    with torch.device("meta"):
        model = family.build(config).to(dtype_on(device))
    assign_formats(model, quant, device)
    return model, family, config


def random_llm(shape: str, device: str, quant: str = "none") -> LLM:
    """A model of this shape with random weights that are drawn on the device, and quantized there.

    Raises `SkippedError` if they and a short cache are larger than the free memory.
    """
    target = choose_device(device)
    model, family, config = undrawn_model(shape, target, quant)
    needed, free = sum(parameter.nbytes for parameter in model.parameters()) + ROOM, free_memory(target)
    if target.type == "cuda" and free is not None and needed > free:
        raise SkippedError(f"needs {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free")
    generator = torch.Generator(target).manual_seed(SEED)
    replacements: dict[int, nn.Parameter] = {}

    def keep(old: Tensor, new: Tensor) -> None:
        replacements[id(old)] = nn.Parameter(new, requires_grad=False)

    for module in model.modules():
        parameters: Mapping[str, Tensor] = dict(module.named_parameters(recurse=False))
        if isinstance(module, Matrix) and module.format is not None:
            for name, tensor in random_weight(module.format, target, generator).items():
                keep(parameters[name], tensor)
            parameters = {name: tensor for name, tensor in parameters.items() if name == "bias"}
        for name, parameter in parameters.items():
            weight = torch.empty(parameter.shape, dtype=parameter.dtype, device=target)
            if parameter.dim() > 1:
                weight.normal_(0, STD, generator=generator)
            else:
                weight.fill_(0 if name == "bias" else 1)
            keep(parameter, weight)
    replace_parameters(model, replacements)
    llm = LLM(model, family, config, None, quant)
    llm.states = SchedulerStates(model, GPU_MEMORY)
    return llm


def without_graphs(llm: LLM) -> LLM:
    """The same model, whose schedulers do not use CUDA graphs."""
    other = LLM(llm.model, llm.family, llm.config, None, llm.quant)
    other.states = SchedulerStates(llm.model, llm.states.gpu_memory, cuda_graphs=False)
    return other


def random_weight(weight_format: Format, device: torch.device, generator: torch.Generator) -> dict[str, Tensor]:
    """The tensors of a random matrix in this format."""
    tensors = weight_format.begin(device)
    step = max(1, PART // weight_format.columns // ROW_MULTIPLE) * ROW_MULTIPLE
    for first in range(0, weight_format.rows, step):
        rows = min(step, weight_format.rows - first)
        part = torch.empty(rows, weight_format.columns, device=device).normal_(0, STD, generator=generator)
        weight_format.fill(tensors, first, part)
    return weight_format.finish(tensors)


def random_ids(vocabulary: int, count: int, seed: int = SEED) -> list[int]:
    """Seeded token ids."""
    return torch.randint(2, vocabulary, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
