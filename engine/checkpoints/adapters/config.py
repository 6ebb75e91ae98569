"""adapter_config.json of peft: what a LoRA adapter consists of, and which modules of a model it changes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.runtime.errors import BareloopError, quote
from engine.runtime.files import read_json

CONFIG, WEIGHTS, PICKLED_WEIGHTS = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
MODEL_WEIGHTS = ("model*.safetensors*", "pytorch_model*.bin*")  # files of a whole model
ALL_LINEAR = "all-linear"
# Ways to initialize an adapter that leave the base model's weights as they are.
INITIALIZATIONS = (True, False, None, "true", "gaussian", "eva", "orthogonal")
MAX_PATTERN = 1000  # characters of a regular expression
# Keys that this file reads, and those that change no result. `revision` is that of the base model, of which here the
# files at hand are loaded.
READ_KEYS = {
    *("peft_type", "base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "target_modules"),
    *("exclude_modules", "use_rslora", "rank_pattern", "alpha_pattern", "layers_to_transform", "layers_pattern"),
    *("bias", "init_lora_weights"),
}
HARMLESS_KEYS = {
    *("task_type", "auto_mapping", "peft_version", "inference_mode", "fan_in_fan_out", "megatron_core"),
    *("revision", "loftq_config", "eva_config", "qalora_group_size", "runtime_config", "ensure_weight_tying"),
}
MERGE_IN_PEFT = "merge it in peft (merge_and_unload) and load that model"


@dataclass(frozen=True)
class LoraConfig:
    """What peft's adapter_config.json says, in our names.

    `targets`: ends of checkpoint module names (q_proj, c_attn, …), a regular expression for whole names, or
    "all-linear": every linear layer but the head. `rank_pattern` and `alpha_pattern` change rank and alpha of modules
    whose name ends as a regular expression says. `excluded` is matched as `targets`; `layers` (empty: all) are those
    whose number follows one of `layers_pattern` in the name. `base` names the base model.

    The methods take all names of one module: the first is transformers', with which peft works.
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
        for source in (self.targets, self.excluded):
            if isinstance(source, str):
                _check_pattern(source, source)
        for source in (*self.rank_pattern, *self.alpha_pattern):
            _check_pattern(source, _end_pattern(source))
        for source in self.layers_pattern:
            _check_pattern(source, _layer_pattern(source))

    def rank_of(self, names: Sequence[str]) -> int:
        """The rank for a module."""
        return int(_of_pattern(self.rank_pattern, names, self.rank))

    def scale_of(self, names: Sequence[str]) -> float:
        """The factor s of B A."""
        rank = self.rank_of(names)
        return self.alpha_of(names) / (math.sqrt(rank) if self.rslora else rank)

    def alpha_of(self, names: Sequence[str]) -> float:
        """The alpha for a module."""
        return _of_pattern(self.alpha_pattern, names, self.alpha)

    def matches(self, names: Sequence[str], by_default: bool) -> bool:
        """Whether a module is a target, as peft decides. `by_default`: whether all-linear has it."""
        if any(_is_named(self.excluded, name) for name in names):
            return False
        return by_default if self.targets == ALL_LINEAR else any(map(self._is_target, names))

    def _is_target(self, name: str) -> bool:
        if isinstance(self.targets, str):
            return _is_named(self.targets, name)
        return name in self.targets or (_is_named(self.targets, name) and self._is_in_layers(name))

    def _is_in_layers(self, module: str) -> bool:
        if not self.layers:
            return True
        found = None
        for pattern in self.layers_pattern:
            found = found or re.match(_layer_pattern(pattern), module)
        if not self.layers_pattern:
            found = re.match(r".*?\.[^.]*\.(?P<index>\d+)\.", module)
        return found is not None and int(found["index"]) in self.layers

    def identity(self) -> str:
        """What the adapter computes depends on this and its tensors by name, and on nothing else of the file."""
        return repr((self.rank, self.alpha, self.rslora, self.rank_pattern, self.alpha_pattern))

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
    """Whether a folder has an adapter and no model. Some programs write the base model's config.json beside it."""
    if not (folder / CONFIG).is_file():
        return False
    return not (folder / "config.json").exists() or not any(any(folder.glob(each)) for each in MODEL_WEIGHTS)


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


def _parse(raw: Mapping[str, Any]) -> LoraConfig:
    kind = raw.get("peft_type")
    if kind != "LORA":
        raise BareloopError(f"peft_type = {quote(kind)} is not implemented; LORA is")
    if raw.get("use_dora"):
        raise BareloopError(f"DoRA (use_dora) is not implemented; {MERGE_IN_PEFT}")
    if raw.get("bias") not in (None, "none"):
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
        alpha=_number("lora_alpha", raw.get("lora_alpha"), 8.0),
        dropout=_number("lora_dropout", raw.get("lora_dropout"), 0.0),
        targets=targets if isinstance(targets, str) else _names("target_modules", targets),
        rslora=bool(raw.get("use_rslora")),
        base=str(raw.get("base_model_name_or_path") or ""),
        rank_pattern={key: _integer(f"rank_pattern of {key}", value) for key, value in rank_pattern.items()},
        alpha_pattern={
            key: _number(f"alpha_pattern of {key}", value) for key, value in _mapping(raw, "alpha_pattern").items()
        },
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


def _number(key: str, value: Any, default: float | None = None) -> float:
    """A number of the file. null: the default."""
    if value is None and default is not None:
        return default
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    except OverflowError:
        raise BareloopError(f"{key} = {quote(value)} is too large for a number") from None
    raise BareloopError(f"{key} = {quote(value)} is not a number")


def _names(key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) and name for name in value):
        raise BareloopError(f"{key} = {quote(value)} is not a list of names")
    return tuple(value)


def _is_named(names: tuple[str, ...] | str, module: str) -> bool:
    """Whether a module has one of these ends of names, or a regular expression matches its whole name."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _of_pattern(patterns: Mapping[str, float], names: Sequence[str], default: float) -> float:
    """The value of the first pattern that matches the end of a module's first name, or else of its others."""
    found = (value for name in names for pattern, value in patterns.items() if re.match(_end_pattern(pattern), name))
    return next(found, default)


def _end_pattern(pattern: str) -> str:
    """peft's regular expression for names that end as a pattern says."""
    return rf"(.*\.)?({pattern})$"


def _layer_pattern(pattern: str) -> str:
    """peft's regular expression for names in which a layer's number follows a pattern."""
    return rf"(?:^|.*?\.){pattern}\.(?P<index>\d+)\."


def _check_pattern(source: str, used: str) -> None:
    """Raise `BareloopError` for a regular expression that is too long, or does not compile as it is used."""
    if len(source) > MAX_PATTERN:
        raise BareloopError(
            f"an adapter's regular expression {quote(source)} has {len(source):,} characters; "
            f"use {MAX_PATTERN:,} at most"
        )
    try:
        re.compile(source)
        re.compile(used)
    except (re.error, RecursionError, OverflowError) as error:
        raise BareloopError(f"an adapter's regular expression {quote(source)} is invalid: {error}") from None
