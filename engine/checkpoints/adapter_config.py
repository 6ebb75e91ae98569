"""adapter_config.json of peft: what a LoRA adapter consists of, and which modules of a model it changes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engine.runtime.errors import BareloopError, quote
from engine.runtime.files import local_path, read_json

CONFIG, WEIGHTS, PICKLED_WEIGHTS = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
ALL_LINEAR = "all-linear"
# Ways to initialize an adapter that leave the base model's weights as they are.
INITIALIZATIONS = (True, False, None, "true", "gaussian", "eva", "orthogonal")
# Keys that this file reads, and those that change no result.
READ_KEYS = {
    *("peft_type", "base_model_name_or_path", "revision", "r", "lora_alpha", "lora_dropout", "target_modules"),
    *("exclude_modules", "use_rslora", "rank_pattern", "alpha_pattern", "layers_to_transform", "layers_pattern"),
    *("bias", "init_lora_weights"),
}
HARMLESS_KEYS = {
    *("task_type", "auto_mapping", "peft_version", "inference_mode", "fan_in_fan_out", "megatron_core"),
    *("loftq_config", "eva_config", "qalora_group_size", "runtime_config", "ensure_weight_tying"),
}
MERGE_IN_PEFT = "merge it in peft (merge_and_unload) and load that model"


@dataclass(frozen=True)
class LoraConfig:
    """What peft's adapter_config.json says, in our names.

    `targets`: ends of checkpoint module names (q_proj, c_attn, …), a regular expression for whole names, or
    "all-linear": every linear layer but the head. `rank_pattern` and `alpha_pattern` change rank and alpha of modules
    whose name ends as a regular expression says. `excluded` is matched as `targets`; `layers` (empty: all) are those
    whose number follows one of `layers_pattern` in the name. `base` names the base model.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] | str = ALL_LINEAR
    rslora: bool = False  # scale by alpha / √rank
    base: str = ""
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    excluded: tuple[str, ...] | str = ()
    layers: tuple[int, ...] = ()
    layers_pattern: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise `BareloopError` for values that are out of range."""
        for rank in (self.rank, *self.rank_pattern.values()):
            if rank < 1:
                raise BareloopError(f"an adapter of rank {rank} is none; use rank 1 or more")
        for alpha in (self.alpha, *self.alpha_pattern.values()):
            if not math.isfinite(alpha):
                raise BareloopError(f"an adapter's alpha is a finite number, not {alpha}")
        if not 0 <= self.dropout < 1:
            raise BareloopError(f"an adapter's dropout is {self.dropout}; use 0 or more, and less than 1")
        if not self.targets:
            raise BareloopError("an adapter needs targets: ends of module names, a regular expression, or all-linear")
        if self.layers and isinstance(self.targets, str):
            raise BareloopError("layers_to_transform needs a list of target_modules, not one string")
        sources = [*self.rank_pattern, *self.alpha_pattern, *self.layers_pattern]
        sources += [source for source in (self.targets, self.excluded) if isinstance(source, str)]
        for source in sources:
            try:
                re.compile(source)
            except (re.error, RecursionError, OverflowError) as error:
                raise BareloopError(f"an adapter's regular expression {quote(source)} is invalid: {error}") from None

    def rank_of(self, module: str) -> int:
        """The rank for a module of the checkpoint."""
        return int(_of_pattern(self.rank_pattern, module, self.rank))

    def scale_of(self, module: str) -> float:
        """The factor s of B A."""
        rank = self.rank_of(module)
        return _of_pattern(self.alpha_pattern, module, self.alpha) / (math.sqrt(rank) if self.rslora else rank)

    def matches(self, module: str, by_default: bool) -> bool:
        """Whether a module of the checkpoint is a target, as peft decides. `by_default`: whether all-linear has it."""
        if _is_named(self.excluded, module):
            return False
        if self.targets == ALL_LINEAR:
            return by_default
        if isinstance(self.targets, str):
            return _is_named(self.targets, module)
        return module in self.targets or (_is_named(self.targets, module) and self._is_in_layers(module))

    def _is_in_layers(self, module: str) -> bool:
        if not self.layers:
            return True
        found = None
        for pattern in self.layers_pattern:
            found = found or re.match(rf"(?:^|.*?\.){pattern}\.(?P<index>\d+)\.", module)
        if not self.layers_pattern:
            found = re.match(r".*?\.[^.]*\.(?P<index>\d+)\.", module)
        return found is not None and int(found["index"]) in self.layers

    def identity(self) -> str:
        """What the adapter computes depends on this and its tensors, and on nothing else of the file."""
        plain = replace(self, base="", dropout=0.0, targets=tuple(sorted(self.targets)))
        return repr(plain)

    def as_json(self, targets: Iterable[str], transposed: bool) -> dict[str, Any]:
        """The content of adapter_config.json, with these ends of names in place of rules that need a model.

        `transposed`: whether the checkpoint's matrices are [in, out].
        """
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base or None,
            "revision": None,
            "inference_mode": True,
            "r": self.rank,
            "lora_alpha": int(self.alpha) if float(self.alpha).is_integer() else self.alpha,
            "lora_dropout": self.dropout,
            "target_modules": sorted(targets),
            "exclude_modules": None,
            "fan_in_fan_out": transposed,
            "bias": "none",
            "use_rslora": self.rslora,
            "use_dora": False,
            "rank_pattern": dict(self.rank_pattern),
            "alpha_pattern": dict(self.alpha_pattern),
            "layers_to_transform": None,
            "layers_pattern": None,
            "modules_to_save": None,
            "init_lora_weights": True,
        }


def is_adapter(folder: Path) -> bool:
    """Whether a folder has an adapter and no model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").exists()


def read_adapter_config(folder: Path) -> LoraConfig:
    """Read a folder's adapter_config.json.

    Raises `BareloopError` if it has none, or one that is malformed or of something else than plain LoRA.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise BareloopError(f"{folder} has no {CONFIG}, so it is not an adapter")
    raw = read_json(path)
    try:
        return _parse(raw)
    except BareloopError as error:
        raise BareloopError(f"{path}: {error}") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise BareloopError(f"{path} is not an adapter_config.json of peft ({error})") from None


def portable_name(model: str) -> str:
    """A model's name as an adapter's base: of a folder or file here its absolute path, any other name unchanged."""
    return str(local_path(model).resolve()) if local_path(model).exists() else model


def _parse(raw: Mapping[str, Any]) -> LoraConfig:
    kind = raw.get("peft_type")
    if kind != "LORA":
        raise BareloopError(f"peft_type = {quote(kind)} is not implemented; LORA is")
    if raw.get("use_dora"):
        raise BareloopError(f"DoRA (use_dora) is not implemented; {MERGE_IN_PEFT}")
    if raw.get("bias", "none") != "none":
        raise BareloopError(f"bias = {quote(raw['bias'])} trains biases, which is not implemented; {MERGE_IN_PEFT}")
    initialization = raw.get("init_lora_weights", True)
    if initialization not in INITIALIZATIONS:
        raise BareloopError(
            f"init_lora_weights = {quote(initialization)} changes the base model; save the adapter as plain LoRA "
            "(peft's path_initial_model_for_weight_conversion)"
        )
    for key, value in raw.items():
        if value and key not in READ_KEYS | HARMLESS_KEYS:
            raise BareloopError(f"{key} = {quote(value)} is not implemented; {MERGE_IN_PEFT}")
    targets, layers = raw.get("target_modules"), raw.get("layers_to_transform")
    if not targets:
        raise BareloopError("target_modules names no modules")
    patterns = raw.get("layers_pattern") or ()
    if isinstance(targets, str) and targets.lower() == ALL_LINEAR:
        targets = ALL_LINEAR
    rank_pattern = _mapping(raw, "rank_pattern")
    return LoraConfig(
        rank=_integer("r", raw.get("r", 8)),
        alpha=float(raw.get("lora_alpha", 8)),
        dropout=float(raw.get("lora_dropout", 0.0)),
        targets=targets if isinstance(targets, str) else _names("target_modules", targets),
        rslora=raw.get("use_rslora") is True,
        base=str(raw.get("base_model_name_or_path") or ""),
        rank_pattern={key: _integer(f"rank_pattern of {key}", value) for key, value in rank_pattern.items()},
        alpha_pattern={key: float(value) for key, value in _mapping(raw, "alpha_pattern").items()},
        excluded=(
            raw["exclude_modules"]
            if isinstance(raw.get("exclude_modules"), str)
            else _names("exclude_modules", raw.get("exclude_modules") or ())
        ),
        layers=tuple(_integer("layers_to_transform", x) for x in (layers if isinstance(layers, list) else [layers]))
        if layers is not None
        else (),
        layers_pattern=(patterns,) if isinstance(patterns, str) else _names("layers_pattern", patterns),
    )


def _mapping(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = raw.get(key) or {}
    if not isinstance(value, dict):
        raise BareloopError(f"{key} = {quote(value)} is not an object")
    return value


def _integer(key: str, value: Any) -> int:
    if type(value) is not int:
        raise BareloopError(f"{key} = {quote(value)} is not a whole number")
    return value


def _names(key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) and name for name in value):
        raise BareloopError(f"{key} = {quote(value)} is not a list of names")
    return tuple(value)


def _is_named(names: tuple[str, ...] | str, module: str) -> bool:
    """Whether a module has one of these ends of names, or a regular expression matches its whole name."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _of_pattern(patterns: Mapping[str, float], module: str, default: float) -> float:
    """The value of the first pattern that matches the end of a module's name."""
    found = (value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module))
    return next(found, default)
