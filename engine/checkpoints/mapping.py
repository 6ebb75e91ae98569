"""Which tensors of a checkpoint each parameter comes from: renames, stacking, tied embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate

from torch import nn

from engine.checkpoints.safetensors import Stored, some
from engine.layers.linear import Linear, Matrix
from engine.models.config import ModelConfig
from engine.models.family import Family, Layout
from engine.runtime.device import dtype_name
from engine.runtime.errors import BareloopError


@dataclass(frozen=True)
class Part:
    """Where some rows of a parameter come from: one tensor of the checkpoint, `shape` as it stands there."""

    name: str
    rows: slice
    shape: tuple[int, ...]
    layout: Layout | None = None


WHOLE = Part("", slice(None), ())  # all rows, as they stand


def parts(model: nn.Module, family: Family) -> dict[str, tuple[Part, ...]]:
    """For every parameter of the model, the checkpoint's tensors that it is stacked from, in order.

    The parameter of a matrix in a format is its weight, as numbers.
    """
    result: dict[str, tuple[Part, ...]] = {}
    for full_name, parameter in model.named_parameters():  # a tied one comes once
        path, _, leaf = full_name.rpartition(".")
        module = model.get_submodule(path)
        whole = tuple(parameter.shape)
        if isinstance(module, Matrix) and leaf in module.held():
            if leaf != "weight":
                continue
            whole = (module.rows, module.columns)
        splits = module.splits if isinstance(module, Linear) else whole[:1]
        number = next((word for word in path.split(".") if word.isdigit()), "")
        pattern = path.replace(f".{number}.", ".*.") if number else path
        names, layout = family.names[pattern], family.layouts.get(pattern)
        sizes = splits if len(names) > 1 else (sum(splits),)
        result[full_name] = tuple(
            Part(
                f"{name.replace('*', number)}.{leaf}",
                slice(stop - size, stop),
                shape if layout is None else layout.shape(shape),
                layout,
            )
            for name, size, stop in zip(names, sizes, accumulate(sizes), strict=True)
            for shape in [(size, *whole[1:])]
        )
    return result


def settle_tie(
    config: ModelConfig, family: Family, tensors: Mapping[str, Stored]
) -> tuple[ModelConfig, Mapping[str, Stored]]:
    """A tied checkpoint brings the embedding, or only the head, or both: leave just the embedding.

    Where both are there and differ, they are not tied, whatever config.json says (as in transformers).
    """
    if not config.tie_word_embeddings:
        return config, tensors
    embedding, head = (f"{family.names[module][0]}.weight" for module in ("embed", "head"))
    if embedding in tensors and head in tensors and not tensors[embedding].equals(tensors[head]):
        return replace(config, tie_word_embeddings=False, raw={**config.raw, "tie_word_embeddings": False}), tensors
    if embedding not in tensors and head in tensors:
        tensors = {**tensors, embedding: tensors[head]}
    return config, {name: stored for name, stored in tensors.items() if name != head}


def match(model: nn.Module, family: Family, tensors: Mapping[str, Stored]) -> dict[str, list[tuple[Stored, Part]]]:
    """The stored tensors of every parameter, with the parts that they are.

    Raises one `BareloopError` that names all missing, misshapen and unexpected tensors.
    """
    layout = parts(model, family)
    wanted = {part.name: part for listed in layout.values() for part in listed}
    missing = [name for name in wanted if name not in tensors]
    unexpected = [name for name in tensors if name not in wanted and not name.endswith(family.ignored)]
    misshapen = [
        f"{name} is {dtype_name(tensors[name].dtype)} {list(tensors[name].shape)}, not float {list(part.shape)}"
        for name, part in wanted.items()
        if name in tensors and (tensors[name].shape != part.shape or not tensors[name].dtype.is_floating_point)
    ]
    problems = [
        f"{len(listed)} {kind} ({some(listed)})"
        for kind, listed in (("missing", missing), ("misshapen", misshapen), ("unexpected", unexpected))
        if listed
    ]
    if problems:
        raise BareloopError(f"the tensors do not fit config.json ({family.model_type}): {'; '.join(problems)}")
    return {name: [(tensors[part.name], part) for part in listed] for name, listed in layout.items()}
