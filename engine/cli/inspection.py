"""`--inspect` and `--families`: a checkpoint's shapes and the cost of a token, from its headers alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING

from engine.checkpoints.adapters.files import open_adapter
from engine.checkpoints.adapters.targets import names_of
from engine.checkpoints.gguf.reader import GGUFFile, TensorInfo, package
from engine.checkpoints.loading import plan_loading
from engine.checkpoints.opening import Opened, open_model
from engine.checkpoints.tensor_file import Stored
from engine.layers.linear import Matrix
from engine.layers.rope import RopeConfig
from engine.models import FAMILIES
from engine.models.config import ModelConfig
from engine.models.config_reader import Keys, token_ids
from engine.models.family import Cost
from engine.models.vision.siglip import VisionConfig
from engine.models.vision.smolvlm import SmolVLM
from engine.quant import AUTO
from engine.quant.gguf import Records
from engine.runtime.device import choose_device, dtype_name
from engine.runtime.errors import BareloopError, UsageError, quote
from engine.runtime.files import read_json
from engine.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from rich.table import Table
    from torch import nn


def inspect(
    name: str,
    dtype: str = "auto",
    context: int | None = None,
    allow_pickle: bool = False,
    quant: str = AUTO,
    device: str = "cpu",
    adapter: str | None = None,
) -> Iterator[Table]:
    """Tables about a model: its shape, its special tokens, and the cost of one decoded token by part.

    `context`: number of tokens before that one, by default 1,024 or the whole window. All tensors' names and shapes are
    checked. Raises `BareloopError` if they do not match config.json.
    """
    from rich.table import Table
    from rich.text import Text

    opened = open_model(name, dtype, allow_pickle, quant, choose_device(device), adapter)
    folder, config, model = opened.folder, opened.config, opened.model
    plan_loading(opened)
    maximum = config.max_position_embeddings - 1
    context = min(1024, maximum) if context is None else context
    if not 0 <= context <= maximum:
        raise UsageError(f"--context {context}: this model's window allows 0 to {maximum:,} tokens before one more")

    files = list(dict.fromkeys(stored.file for stored in opened.tensors.values()))
    gguf = [file for file in files if isinstance(file, GGUFFile)]
    facts = Table(title=Text(str(gguf[0].path if gguf else folder)), show_header=False, title_justify="left")
    parameters = sum(cost.parameters for cost in model.costs(context))
    facts.add_row("family", opened.family.model_type)
    facts.add_row("parameters", f"{parameters:,}")
    facts.add_row(
        "stored as",
        f"{', '.join(_types(gguf) or _dtype_names(opened.tensors.values()))}; {len(files)} file(s), "
        f"{sum(file.size for file in files):,} bytes",
    )
    nbytes = sum(parameter.nbytes for parameter in model.parameters())
    weight_format = "" if opened.quant == "none" else f", weights in {opened.quant}{_kept_types(model)}"
    facts.add_row("computes in", f"{dtype_name(opened.dtype)}{weight_format}: {nbytes:,} bytes of weights")
    facts.add_row("context", f"{config.max_position_embeddings:,} tokens")
    for label, value in _shape(config):
        facts.add_row(label, value)
    yield facts
    if opened.adapter is not None:
        yield _adapter(opened)

    if gguf:
        yield _metadata(gguf[0])
        yield _tensor_types(gguf)
    yield _special_tokens(folder, config)

    place = "token in a text with" if model.is_encoder else "decoded token after"
    yield _costs(f"one {place} {context:,} others", model.costs(context))
    if isinstance(model, SmolVLM):
        side = model.config.vision.image_size
        tile = f"one tile of an image: {side} x {side} pixels, {model.config.tokens_per_tile} tokens"
        yield _costs(tile, model.tile_costs())


SAMPLE = {  # a config.json for every family, with our names of the keys
    "vocab_size": 32,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "image_token_id": 3,
    "vision_config": {"image_size": 32, "patch_size": 8},
}


def families() -> Table:
    """A table of the families' building blocks, from their declarations."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    for column in ("family", "norms", "positions", "mixing of tokens", "MLP", "state", "tensors"):
        table.add_column(column, no_wrap=column in ("family", "tensors"))
    for family in FAMILIES.values():
        raw = {family.key_names.get(name, name): value for name, value in SAMPLE.items()}
        config = family.configure(Keys({**raw, "text_config": raw, "model_type": family.model_type}, family.key_names))
        traits = config.traits()
        layer = next(names[0] for module, names in family.names.items() if "*" in module).partition("*")[0]
        table.add_row(
            family.model_type, traits.norms, traits.positions, traits.mixing, traits.mlp, traits.state, f"{layer}*"
        )
    return table


def _shape(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """The fields of the family's config that differ from their defaults."""
    skipped = {"model_type", "max_position_embeddings", "dtype", "bos_token_id", "eos_token_ids", "raw"}
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in skipped or value is None or (field.default is not MISSING and value == field.default):
            continue
        if isinstance(value, RopeConfig):
            factor = f", factor {value.factor:g}" if value.factor else ""
            value = f"{value.type}, theta {value.theta:g}{factor}"
        elif isinstance(value, VisionConfig):
            value = (
                f"SigLIP, hidden size {value.hidden_size}, {value.num_layers} layers, {value.num_heads} heads, "
                f"tiles of {value.image_size} x {value.image_size} pixels in patches of {value.patch_size}"
            )
        elif field.name == "windows":
            value = _runs(value)
        elif isinstance(value, tuple) and len(set(value)) == 1:
            value = f"{value[0]:g} in every layer"
        yield field.name.replace("_", " "), str(value)


def _costs(title: str, costs: Iterable[Cost]) -> Table:
    """Parameters, bytes and FLOPs by part, with their sums."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in ("part", "parameters", "bytes read", "FLOPs"):
        table.add_column(column, justify="left" if column == "part" else "right")
    total = [0, 0, 0]
    for cost in costs:
        numbers = (cost.parameters, cost.nbytes, cost.flops)
        table.add_row(cost.part, *(f"{number:,}" for number in numbers))
        total = [a + b for a, b in zip(total, numbers, strict=True)]
    table.add_section()
    table.add_row("total", *(f"{number:,}" for number in total))
    return table


def _runs(windows: Iterable[int | None]) -> str:
    """Windows by layer, with equal neighbours merged."""
    runs: list[tuple[int, int, int | None]] = []
    for layer, window in enumerate(windows):
        if runs and runs[-1][2] == window:
            runs[-1] = (runs[-1][0], layer, window)
        else:
            runs.append((layer, layer, window))
    if len(runs) > 4:
        counts = Counter(window for first, last, window in runs for _ in range(first, last + 1))
        return "; ".join(f"{count} layers: {window or 'full'}" for window, count in counts.items())
    return "; ".join(f"layers {first}-{last}: {window or 'full'}" for first, last, window in runs)


def _adapter(opened: Opened) -> Table:
    """The adapter of a model: how many parameters of which rank, in which modules."""
    from rich.table import Table
    from rich.text import Text

    assert opened.adapter is not None
    files = open_adapter(opened.model, opened.family, opened.adapter)
    config = files.config
    table = Table(title=Text(f"adapter {opened.adapter}"), show_header=False, title_justify="left")
    names = [names_of(name, opened.family) for name in files.projections]
    ranks, scales = {config.rank_of(each) for each in names}, {config.scale_of(each) for each in names}
    ends = Counter(name.rpartition(".")[2] for name in files.projections)
    table.add_row("parameters", f"{files.parameters:,}")
    table.add_row("rank", ", ".join(map(str, sorted(ranks))))
    table.add_row("scale", ", ".join(f"{scale:g}" for scale in sorted(scales)))
    table.add_row("targets", ", ".join(f"{count} {end}" for end, count in ends.items()))
    table.add_row("base model", Text(config.base or "not named"))
    table.add_row("in use", "merged into the weights" if opened.quant == "none" else "beside the quantized weights")
    return table


def _special_tokens(folder: Path, config: ModelConfig) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="special tokens", title_justify="left")
    for column in ("role", "token", "id"):
        table.add_column(column)
    path = folder / "generation_config.json"
    additional = token_ids(read_json(path).get("eos_token_id"), path.name) if path.exists() else ()
    ids = {"bos": (config.bos_token_id,), "end of sequence": (*config.eos_token_ids, *additional)}
    try:
        tokenizer = Tokenizer.load(folder)
    except BareloopError as error:
        table.caption = Text(str(error))
        texts: dict[int, str] = {}
    else:
        table.caption = f"tokenizer: {tokenizer.vocab_size:,} tokens"
        texts = {index: str(token) for token, index in tokenizer.backend.get_vocab(with_added_tokens=True).items()}
        for role, token in tokenizer.special_tokens.items():
            table.add_row(role.replace("_", " "), Text(token), str(tokenizer.token_id(token)))
    for role, indices in ids.items():
        for index in dict.fromkeys(indices):
            if index is not None:
                table.add_row(f"{role} (config)", Text(texts.get(index, "")), str(index))
    return table


def _metadata(file: GGUFFile) -> Table:
    """The metadata of a GGUF file; arrays and long texts are shortened."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title="metadata", show_header=False, title_justify="left")
    for key, value in file.metadata.items():
        text = f"{len(value):,} items: {quote(value)}" if isinstance(value, list) and len(value) > 8 else quote(value)
        table.add_row(Text(key), Text(text))
    return table


def _types(files: Iterable[GGUFFile]) -> dict[str, list[TensorInfo]]:
    """The tensors of GGUF files by the name of their type, the largest type first."""
    result: dict[str, list[TensorInfo]] = {}
    for file in files:
        for info in file.tensors.values():
            result.setdefault(str(package().GGMLQuantizationType(info.kind).name), []).append(info)
    return dict(sorted(result.items(), key=lambda item: -sum(info.nbytes for info in item[1])))


def _kept_types(model: nn.Module) -> str:
    """The types whose blocks a GGUF model keeps; empty for any other model."""
    formats = [module.format for module in model.modules() if isinstance(module, Matrix)]
    kinds = {kind for weight_format in formats if isinstance(weight_format, Records) for kind, _ in weight_format.parts}
    names = [str(package().GGMLQuantizationType(kind).name) for kind in sorted(kinds)]
    return f" ({', '.join(names)} as in the file)" if names else ""


def _tensor_types(files: Iterable[GGUFFile]) -> Table:
    """Number, parameters and bytes of a GGUF model's tensors by type."""
    from rich.table import Table

    table = Table(title="tensor types", title_justify="left")
    for column in ("type", "tensors", "parameters", "bytes", "bits per weight"):
        table.add_column(column, justify="left" if column == "type" else "right")
    for name, infos in _types(files).items():
        parameters, nbytes = sum(math.prod(info.shape) for info in infos), sum(info.nbytes for info in infos)
        bits = 8 * nbytes / parameters
        table.add_row(name, f"{len(infos):,}", f"{parameters:,}", f"{nbytes:,}", f"{bits:.2f}")
    return table


def _dtype_names(stored: Iterable[Stored]) -> list[str]:
    return sorted({dtype_name(tensor.dtype) for tensor in stored})
