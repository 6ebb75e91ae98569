"""Map checkpoint tensors to parameters: names, stacked projections, tied embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate

from torch import nn

from engine.checkpoints.safetensors import abbreviate
from engine.checkpoints.tensor_file import Stored
from engine.layers.linear import Linear, Matrix
from engine.models.config import ModelConfig
from engine.models.family import Family, Layout
from engine.runtime.device import dtype_name
from engine.runtime.errors import BareloopError


@dataclass(frozen=True)
class Source:
    """The checkpoint tensor for some rows of a parameter. `shape` and `layout` are those in the checkpoint."""

    name: str
    rows: slice
    shape: tuple[int, ...]
    layout: Layout | None = None


ALL_ROWS = Source("", slice(None), ())  # in our own layout


def parameter_sources(model: nn.Module, family: Family) -> dict[str, tuple[Source, ...]]:
    """For every parameter the checkpoint tensors that are stacked in it, in order.

    Of a quantized matrix only the weight is listed, with its dense shape; adapters are not listed.
    """
    result: dict[str, tuple[Source, ...]] = {}
    for full_name, parameter in model.named_parameters():  # a tied parameter is listed once
        path, _, leaf = full_name.rpartition(".")
        module = model.get_submodule(path)
        if ".adapter." in full_name:
            continue
        whole = tuple(parameter.shape)
        if isinstance(module, Matrix) and leaf in module.weight_tensors():
            if leaf != "weight":
                continue
            whole = (module.rows, module.columns)
        splits = module.splits if isinstance(module, Linear) else whole[:1]
        number = next((word for word in path.split(".") if word.isdigit()), "")
        pattern = path.replace(f".{number}.", ".*.") if number else path
        names, layout = family.names[pattern], family.layouts.get(pattern)
        sizes = splits if len(names) > 1 else (sum(splits),)
        result[full_name] = tuple(
            Source(
                f"{name.replace('*', number)}.{leaf}",
                slice(stop - size, stop),
                shape if layout is None else layout.shape(shape),
                layout,
            )
            for name, size, stop in zip(names, sizes, accumulate(sizes), strict=True)
            for shape in [(size, *whole[1:])]
        )
    return result


def resolve_tied_head(
    config: ModelConfig, family: Family, tensors: Mapping[str, Stored]
) -> tuple[ModelConfig, Mapping[str, Stored]]:
    """Reduce a tied checkpoint, which may have the embedding, the head or both, to the embedding.

    If it has both and they differ, they are not tied, whatever config.json says (as in transformers).
    """
    if not config.tie_word_embeddings:
        return config, tensors
    embedding, head = (f"{family.names[module][0]}.weight" for module in ("embed", "head"))
    if embedding in tensors and head in tensors and not tensors[embedding].equals(tensors[head]):
        return replace(config, tie_word_embeddings=False, raw={**config.raw, "tie_word_embeddings": False}), tensors
    if embedding not in tensors and head in tensors:
        tensors = {**tensors, embedding: tensors[head]}
    return config, {name: stored for name, stored in tensors.items() if name != head}


def match_tensors(
    model: nn.Module, family: Family, tensors: Mapping[str, Stored]
) -> dict[str, list[tuple[Stored, Source]]]:
    """The stored tensors of every parameter, with their sources.

    Raises one `BareloopError` that names all missing, misshapen and unexpected tensors.
    """
    sources = parameter_sources(model, family)
    expected = {source.name: source for group in sources.values() for source in group}
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected and not name.endswith(family.ignored)]
    misshapen = [
        f"{name} is {dtype_name(tensors[name].dtype)} {list(tensors[name].shape)}, not float {list(source.shape)}"
        for name, source in expected.items()
        if name in tensors and (tensors[name].shape != source.shape or not tensors[name].dtype.is_floating_point)
    ]
    problems = [
        f"{len(names)} {kind} ({abbreviate(names)})"
        for kind, names in (("missing", missing), ("misshapen", misshapen), ("unexpected", unexpected))
        if names
    ]
    if problems:
        raise BareloopError(f"the tensors do not fit config.json ({family.model_type}): {'; '.join(problems)}")
    return {name: [(tensors[source.name], source) for source in group] for name, group in sources.items()}
