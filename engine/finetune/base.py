"""The model that is trained: loading it, what of it is trained, and writing the result."""

from __future__ import annotations

import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from engine import kernels
from engine.checkpoints.adapters.config import LoraConfig
from engine.checkpoints.adapters.files import add_adapters, save_adapter
from engine.checkpoints.adapters.targets import is_untrained
from engine.checkpoints.loading import replace_parameters
from engine.checkpoints.mapping import parameter_sources
from engine.checkpoints.opening import Opened, open_model, weights_fingerprint
from engine.finetune.checkpoint import sync_folder, writing
from engine.finetune.settings import Settings
from engine.llm import LLM
from engine.models.family import Model
from engine.runtime.device import choose_device, dtype_name, slow_bfloat16
from engine.runtime.errors import BareloopError, UsageError
from engine.runtime.files import local_path

# Names of drafts: of whole models (`_save_weights` and `draft_folder`), and of an adapter's files (`write_atomic`).
DRAFTS = re.compile(r"\.draft|\.\.draft\..+|\.adapter_(model\.safetensors|config\.json)\.\d+")


@dataclass(frozen=True)
class Trainee:
    """A loaded model with what is trained of it."""

    name: str  # of the model, as other programs take it
    llm: LLM
    config: LoraConfig | None  # None: all weights are trained
    stored: torch.dtype  # of the checkpoint, in which a full result is written
    autocast: torch.dtype | None  # dtype of products, if it is not that of the weights

    @property
    def model(self) -> Model:
        return self.llm.model

    @property
    def has_template(self) -> bool:
        """Whether the model has a chat template."""
        try:
            return self.llm.chat_template is not None
        except BareloopError:
            return False

    def fingerprint(self) -> str:
        """What identifies the base's weights."""
        assert self.llm.folder is not None
        return weights_fingerprint(self.llm.folder, self.llm.adapter)

    def save(self, folder: Path) -> None:
        """Write the result into a folder, which other programs can load at any moment. No other process writes there.

        Raises `BareloopError` if it cannot be written.
        """
        remove_drafts(folder)
        if self.config is not None:
            save_adapter(self.model, self.llm.family, self.config, folder)
        else:
            _save_weights(self.llm, self.stored, folder)


def load_trainee(name: str, settings: Settings, device: str = "auto", allow_pickle: bool = False) -> Trainee:
    """Load a model, and make its adapters or all its weights trainable.

    The dtype `auto` is float32 on a CPU with slow bfloat16, otherwise that of the checkpoint, but never float16, whose
    gradients overflow. Full fine-tuning keeps float32 weights, and multiplies in bfloat16 where that is fast.
    """
    place = choose_device(device)
    is_slow = place.type == "cpu" and slow_bfloat16()
    opened = open_base(name, settings, device, allow_pickle)
    if opened.model.is_encoder:
        raise BareloopError(f"{name} is an encoder, which embeds texts and generates none; name a model that does")
    stored = opened.dtype
    dtype = settings.dtype
    if not settings.adapts or (dtype == "auto" and is_slow):
        dtype = "float32"
    elif dtype == "auto":
        dtype = "bfloat16" if stored == torch.float16 else dtype_name(stored)
    llm = LLM.load(name, device=device, dtype=dtype, quant=settings.quant, allow_pickle=allow_pickle)
    if place.type == "cpu":
        kernels.wait()  # so that all of a run is computed in one way
    if settings.adapts:
        config = LoraConfig(
            rank=settings.rank,
            alpha=settings.alpha,
            dropout=settings.dropout,
            targets=settings.targets,
            base=portable_name(name),
        )
        add_adapters(llm.model, llm.family, config, settings.seed)
        return Trainee(name, llm, config, stored, None)
    sources = parameter_sources(llm.model, llm.family)
    for path, parameter in llm.model.named_parameters():
        if not is_untrained(sources[path][0].name, llm.family):
            parameter.data = parameter.data.clone()  # it may be mapped from the file
            parameter.requires_grad_(True)
    autocast = None if is_slow or place.type == "mps" else torch.bfloat16
    return Trainee(name, llm, None, stored, autocast)


def open_base(name: str, settings: Settings, device: str = "auto", allow_pickle: bool = False) -> Opened:
    """Read the headers of the model to train. Raises `UsageError` for one that the method cannot train."""
    opened = open_model(name, "auto", allow_pickle, settings.quant, choose_device(device))
    if opened.adapter is not None and settings.adapts:
        raise UsageError(
            f"{name} is an adapter, and another one on top of it could not be loaded; merge it first, and train the "
            f"result: python -m engine -m {shlex.quote(name)} --save {shlex.quote(f'{name}-merged')}"
        )
    if opened.quant != "none" and not settings.adapts:
        raise UsageError(
            f"{name} is quantized to {opened.quant}, and full fine-tuning trains the weights: use --method qlora"
        )
    return opened


def portable_name(name: str) -> str:
    """A model's name for files that are read from any working directory."""
    path = local_path(name)
    return str(path.resolve()) if path.exists() else name


def _save_weights(llm: LLM, dtype: torch.dtype, folder: Path) -> None:
    """Write a model in this dtype into a folder that may have other files, replacing each of its own."""
    with torch.device("meta"):
        model = llm.family.build(llm.config)
    converted: dict[int, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        weight = llm.model.get_parameter(name).detach().to(dtype)
        converted[id(parameter)] = nn.Parameter(weight, requires_grad=False)
    replace_parameters(model, converted)
    draft = folder / ".draft"
    with writing(folder):
        LLM(model, llm.family, llm.config, llm.folder).save(draft)
        for path in sorted(draft.iterdir()):
            path.replace(folder / path.name)
        draft.rmdir()
        sync_folder(folder)


def remove_drafts(folder: Path) -> None:
    """Remove what killed runs have not finished writing into their folder."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if DRAFTS.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
