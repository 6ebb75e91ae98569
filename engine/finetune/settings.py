"""The settings of a run that decide its result. Loads without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from engine.quant import GGUF
from engine.runtime.errors import BareloopError, UsageError, quote

METHODS = ("lora", "qlora", "full")
SCHEDULES = ("cosine", "linear", "constant")
LEARNING_RATE = {"lora": 2e-4, "qlora": 2e-4, "full": 2e-5}
QUANT = {"lora": "none", "qlora": "nf4", "full": "none"}
ALL_LINEAR = "all-linear"
SEEDS = 2**32


@dataclass(frozen=True)
class Settings:
    """Two runs with equal settings, weights and data give the same bits on the same machine."""

    method: str = "lora"
    quant: str = "none"  # weight format of the frozen base
    dtype: str = "auto"
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] | str = ALL_LINEAR
    learning_rate: float = 2e-4  # at its peak
    schedule: str = "cosine"
    warmup: float = 0.03  # below 1: share of the steps; else a number of steps
    epochs: int = 1
    steps: int | None = None  # of the optimizer; None: as many as `epochs` take
    batch_tokens: int = 2048  # of a forward pass
    accumulate: int = 1  # forward passes per step
    max_length: int | None = None  # tokens of an example; None: 2,048, or the model's window
    clip: float = 1.0  # largest norm of the gradient; 0: any
    weight_decay: float = 0.0
    seed: int = 0
    mask_prompt: bool = True
    held_out: int | None = None  # examples that are not trained on; None: as the data says
    limit: int | None = None  # examples; None: all

    @property
    def adapts(self) -> bool:
        """Whether adapters are trained, not the weights themselves."""
        return self.method != "full"

    def as_json(self) -> dict[str, Any]:
        """The settings as JSON has them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def settings_from(options: Any) -> Settings:
    """The settings of the program's flags, with the method's defaults. Raises `UsageError` for values out of range."""
    method = options.method
    quant = options.quant if options.quant is not None else QUANT[method]
    if method == "qlora" and quant == "none":
        raise UsageError("--method qlora needs a weight format: --quant nf4, int8 or int4; or use --method lora")
    adapter = {name: getattr(options, name) for name in ("rank", "alpha", "dropout", "targets")}
    given = [flag(name) for name, value in adapter.items() if value is not None]
    if method == "full" and given:
        raise UsageError(f"--method full has no adapters: leave out {', '.join(given)}")
    if method == "full" and quant != "none":
        raise UsageError(f"--method full trains the weights themselves, which {quant} freezes: leave out --quant")
    if method == "lora" and quant not in ("none", GGUF):
        raise UsageError(f"--method lora has a dense base: use --method qlora with --quant {quant}")
    if options.dtype == "float16":
        raise UsageError("--dtype float16: gradients overflow in it; use bfloat16 or float32")
    if method == "full" and options.dtype != "auto":
        raise UsageError(f"--dtype {options.dtype}: full fine-tuning keeps its weights in float32; leave it out")
    rank = Settings.rank if options.rank is None else options.rank
    settings = Settings(
        method=method,
        quant=quant,
        dtype=options.dtype,
        rank=rank,
        alpha=2.0 * rank if options.alpha is None else options.alpha,
        dropout=Settings.dropout if options.dropout is None else options.dropout,
        targets=Settings.targets if options.targets is None else parse_targets(options.targets),
        learning_rate=LEARNING_RATE[method] if options.learning_rate is None else options.learning_rate,
        schedule=options.schedule,
        warmup=options.warmup,
        epochs=1 if options.epochs is None else options.epochs,
        steps=options.steps,
        batch_tokens=options.batch_tokens,
        accumulate=options.accumulate,
        max_length=options.max_length,
        clip=options.clip,
        weight_decay=options.weight_decay,
        seed=options.seed,
        mask_prompt=options.mask_prompt,
        held_out=options.held_out,
        limit=options.limit,
    )
    if options.steps is not None and options.epochs is not None:
        raise UsageError(f"--epochs {options.epochs} and --steps {options.steps}: give one of them")
    for name in ("alpha", "learning_rate"):
        if not 0 < getattr(settings, name) < float("inf"):
            raise UsageError(f"{flag(name)} {getattr(settings, name)}: use a number above 0")
    for name in ("warmup", "clip", "weight_decay"):
        if not 0 <= getattr(settings, name) < float("inf"):
            raise UsageError(f"{flag(name)} {getattr(settings, name)}: use 0 or more")
    if settings.warmup >= 1 and settings.warmup != int(settings.warmup):
        raise UsageError(f"--warmup {settings.warmup}: use a share of the steps below 1, or a whole number of steps")
    if not 0 <= settings.seed < SEEDS:
        raise UsageError(f"--seed {settings.seed}: use 0 to {SEEDS - 1}")
    if not 0 <= settings.dropout < 1:
        raise UsageError(f"--dropout {settings.dropout}: use 0 or more, and less than 1")
    return settings


def parse_targets(names: list[str]) -> tuple[str, ...] | str:
    """The values of --targets: `all-linear`, names of modules, or one regular expression."""
    if len(names) == 1 and not names[0].replace("_", "").replace(".", "").isalnum():
        return names[0]  # all-linear, or a regular expression
    if ALL_LINEAR in names:
        raise UsageError(f"--targets {ALL_LINEAR} is all linear layers but the head; give it alone, or names alone")
    return tuple(names)


def flag(name: str) -> str:
    """A setting's flag."""
    return f"--{name.replace('_', '-')}"


def check_same(saved: Mapping[str, Any], current: Mapping[str, Any], what: str, way_out: str) -> None:
    """Raise `BareloopError` that names the settings of a checkpoint that differ from the current ones."""
    names = [name for name in {**saved, **current} if saved.get(name) != current.get(name)]
    if names:
        found = ", ".join(f"{name} {_short(saved.get(name))}, not {_short(current.get(name))}" for name in names)
        raise BareloopError(f"{what} is from a run with other settings: {found}; use those, or {way_out}")


def _short(value: object) -> str:
    """A setting's value for a message; of a fingerprint the beginning."""
    return value if isinstance(value, str) and len(value) <= 12 else quote(value)[:32]
