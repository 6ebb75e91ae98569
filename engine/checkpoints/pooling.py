"""How a checkpoint embeds texts: modules.json and what it names, in the layout of sentence-transformers.

modules.json                       [{"path": "", "type": "….Transformer"}, {"path": "1_Pooling", …}, …]
1_Pooling/config.json              the mode
sentence_bert_config.json          max_seq_length, to which texts are cut (not tokenizer.json's own truncation)
config_sentence_transformers.json  prompts, one of which may stand before every text
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.models.pooling import FIRST, LAST, MEAN, Pooling
from engine.runtime.errors import BareloopError, quote
from engine.runtime.files import parse_json, read_json

MODULES, LENGTH, PROMPTS = "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"
POOLING_FILES = (MODULES, LENGTH, PROMPTS, "*_Pooling/config.json")
MODES = {  # flags in 1_Pooling/config.json, and the same in the form of newer versions
    **dict.fromkeys(("pooling_mode_mean_tokens", "mean"), MEAN),
    **dict.fromkeys(("pooling_mode_cls_token", "cls"), FIRST),
    **dict.fromkeys(("pooling_mode_lasttoken", "lasttoken"), LAST),
}
MAX_LENGTH = 10**9  # tokenizers without a limit declare 10^30


def read_pooling(folder: Path) -> Pooling:
    """Read the files of a model's folder. Without modules.json: mean over all tokens, normalized.

    Raises `BareloopError` for modules and modes that are not implemented.
    """
    length = _max_length(folder)
    if not (folder / MODULES).is_file():
        return Pooling(max_length=length)
    modules = parse_json(folder / MODULES)
    if not isinstance(modules, list):
        raise BareloopError(f"{folder / MODULES} has a {type(modules).__name__}, not a JSON list")
    mode, normalizes, prefix = None, False, _prefix(folder)
    for module in modules:
        declared = module if isinstance(module, dict) else {}
        kind, path = str(declared.get("type", "")).rpartition(".")[2], str(declared.get("path", ""))
        if kind == "Pooling":
            mode = _mode(folder / path / "config.json", prefix)
        elif kind == "Normalize":
            normalizes = True
        elif kind != "Transformer":
            raise BareloopError(
                f"{folder / MODULES}: the module {quote(kind or module)} is not implemented; known: Transformer, "
                "Pooling, Normalize"
            )
    if mode is None:
        raise BareloopError(f"{folder / MODULES} names no Pooling, so texts cannot be embedded")
    settings = _settings(folder / LENGTH)
    return Pooling(mode, normalizes, length, prefix, settings.get("do_lower_case") is True, True)


def _mode(path: Path, prefix: str) -> str:
    """The pooling mode of a 1_Pooling/config.json: a name, or the only flag that is true."""
    if not path.is_file():
        raise BareloopError(f"{path} is missing, which {MODULES} names; download the model again, with all its files")
    config = read_json(path)
    named = config.get("pooling_mode")
    flags = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    if prefix and config.get("include_prompt") is False:
        raise BareloopError(
            f"{path}: include_prompt = false is not implemented, and texts get the prompt {quote(prefix)}"
        )
    names = flags if named is None else named if isinstance(named, list) else [named]
    if len(names) != 1 or str(names[0]) not in MODES:
        shown = ", ".join(map(str, names)) or "none"
        raise BareloopError(f"{path}: pooling by {quote(shown)} is not implemented; known: mean, cls, lasttoken")
    return MODES[str(names[0])]


def _max_length(folder: Path) -> int | None:
    """Tokens to which texts are cut: `max_seq_length`, else the tokenizer's `model_max_length`."""
    for name, key in ((LENGTH, "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        value = _settings(folder / name).get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 1:
            raise BareloopError(f"{folder / name}: {key} = {quote(value)} is not a number of tokens")
        return int(value) if value < MAX_LENGTH else None
    return None


def _prefix(folder: Path) -> str:
    """The prompt that stands before every text, unless another is chosen; mostly none."""
    settings = _settings(folder / PROMPTS)
    prompts, name = settings.get("prompts"), settings.get("default_prompt_name")
    if not isinstance(prompts, dict) or name is None:
        return ""
    prompt = prompts.get(name, "") if isinstance(name, str) else None
    if not isinstance(prompt, str):
        raise BareloopError(f"{folder / PROMPTS}: default_prompt_name = {quote(name)} names no text among the prompts")
    return prompt


def _settings(path: Path) -> Mapping[str, Any]:
    return read_json(path) if path.is_file() else {}
