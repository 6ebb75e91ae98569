"""Which matrices of a model a LoRA config targets, by their names in the checkpoint."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from torch import Tensor

from engine.checkpoints.adapters.config import LoraConfig
from engine.checkpoints.mapping import parameter_sources
from engine.layers.linear import Linear
from engine.models.family import Family, Layout, Model
from engine.runtime.errors import BareloopError, quote


@dataclass(frozen=True)
class Projection:
    """A matrix of the checkpoint, as rows of one of our Linears."""

    linear: Linear
    rows: slice
    layout: Layout | None

    def load_b(self, b: Tensor, model: Model) -> Tensor:
        """B [out, r] of peft's file, with its rows in our order."""
        return b if self.layout is None or self.layout.transposes else self.layout.load(b, model.config)

    def save_b(self, b: Tensor, model: Model) -> Tensor:
        """The inverse of `load_b`."""
        return b if self.layout is None or self.layout.transposes else self.layout.save(b, model.config)


def projections(model: Model, family: Family) -> tuple[dict[str, Projection], dict[str, str]]:
    """By their names in the checkpoint: the linear layers, and what kind each other module with parameters is.

    A tied head is one of the others.
    """
    linear: dict[str, Projection] = {}
    others: dict[str, str] = {}
    for parameter, sources in parameter_sources(model, family).items():
        path, _, leaf = parameter.rpartition(".")
        module = model.get_submodule(path)
        for source in sources:
            name, _, _ = source.name.rpartition(".")
            if not isinstance(module, Linear):
                others[name] = f"of type {type(module).__name__}"
            elif leaf == "weight":
                linear[name] = Projection(module, source.rows, source.layout)
    head = head_of(family)
    if head is not None and head not in linear:
        others[head] = "a head whose weight is the embedding's"
    return linear, others


def head_of(family: Family) -> str | None:
    """The head's name in the checkpoint; None for encoders, which have none."""
    return next(iter(family.names.get("head", ())), None)


def is_unadapted(name: str, family: Family) -> bool:
    """Whether a family excludes a module of the checkpoint."""
    return any(name.endswith(f".{end}") for end in family.unadapted)


def is_untrained(name: str, family: Family) -> bool:
    """Whether training leaves a module of the checkpoint as it is: a part for images."""
    return name.startswith(family.untrained)


def names_of(name: str, family: Family) -> tuple[str, str]:
    """A module's name in transformers, with which peft works, and that in the checkpoint."""
    return family.module(name), name


def select(model: Model, family: Family, config: LoraConfig, strict: bool) -> dict[str, Projection]:
    """The projections that a config targets.

    With `strict`, for training, every name among the targets must be that of one, and none that the family excludes;
    parts for images are left out.
    """
    linear, others = projections(model, family)
    head = head_of(family)
    chosen: dict[str, Projection] = {}
    possible: set[str] = set()  # ends of names
    for name, projection in linear.items():
        if strict and is_untrained(name, family):
            continue
        is_refused = is_unadapted(name, family)
        possible |= set() if is_refused or name == head else {name.rpartition(".")[2]}
        if not config.matches(names_of(name, family), by_default=name != head and not is_refused):
            continue
        if is_refused and strict:
            raise BareloopError(
                f"{name} is not adapted, as transformers computes a {family.model_type} model without that adapter; "
                f"leave it out; targets can be {', '.join(sorted(possible))}"
            )
        chosen[name] = projection
    for name, kind in others.items():
        if config.matches(names_of(name, family), by_default=False):
            raise BareloopError(f"the target {name} is {kind}; only linear layers are adapted: leave it out")
    if not chosen and config.layers and select(model, family, replace(config, layers=()), strict):
        raise BareloopError(
            f"layers_to_transform = {quote(list(config.layers))} selects no layer; this {family.model_type} model has "
            f"layers 0 to {model.config.num_layers - 1}"
        )
    matched = [f".{each}" for name in chosen for each in names_of(name, family)]
    unmatched = [
        target
        for target in (config.targets if strict and isinstance(config.targets, tuple) else ())
        if not any(name.endswith(f".{target}") for name in matched)
    ]
    if unmatched or not chosen:
        target = unmatched[0] if unmatched else config.targets
        alone = replace(config, targets=(unmatched[0],)) if unmatched else config
        untrained = (names_of(name, family) for name in linear if strict and is_untrained(name, family))
        if any(alone.matches(names, by_default=False) for names in untrained):
            raise BareloopError(
                f"the target {quote(target)} is in the part of this {family.model_type} model for images, which is not "
                f"trained; targets can be {', '.join(sorted(possible))}"
            )
        raise BareloopError(
            f"the target {quote(target)} is no linear layer of this {family.model_type} model; it has: "
            f"{', '.join(sorted(possible))}"
        )
    return chosen


def name_ends(model: Model, family: Family, adapted: Collection[str]) -> set[str]:
    """The shortest ends of names that these modules have, and no other module of the model.

    Where transformers' name is another one, it is the whole name: a part of the model that is not loaded, such as a
    vision tower, may have modules with the same ends.
    """
    linear, others = projections(model, family)
    rest = [f".{name}" for name in (*linear, *others) if name not in adapted]
    ends = set()
    for name in adapted:
        if family.module(name) != name:
            ends.add(family.module(name))
            continue
        words = name.split(".")
        candidates = (".".join(words[index:]) for index in range(len(words) - 1, -1, -1))
        ends.add(next(end for end in candidates if not any(other.endswith(f".{end}") for other in rest)))
    return ends
