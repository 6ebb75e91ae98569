"""What a model's answers depend on, and the file beside them that says so."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from engine.cli.parser import label
from engine.quant import AUTO, GGUF
from engine.runtime.files import read_json, write_atomic
from evals.data.mt_bench import JudgedQuestion
from evals.harness.identity import file_name, hashes, machine, place, start
from evals.runs.run_file import REMOTE, check_same_setting

# FastChat samples at a temperature, and with nothing else; a model's generation_config.json does not count.
PLAIN_SAMPLING = {
    **{"top_k": 0, "top_p": 1.0, "min_p": 0.0},
    **{"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0},
}
REMOTE_SAMPLING = {"top_p": 1.0}  # the fields that every server takes; of others, only the server knows the defaults


def model_id(model: str, options: Any) -> str:
    """Return a model's name in files: as in other programs, then the weight format of --quant, adapter, history."""
    quant = "" if options.quant in (AUTO, GGUF, "none") else f"-{options.quant}"
    history = "-no-history" if options.no_history else ""
    return f"{label(f'{file_name(model)}{quant}', options.adapter, '+')}{history}"


def settings_path(answers: Path) -> Path:
    """Return the path of the settings of a file of answers."""
    return answers.with_suffix(".settings.json")


def questions_digest(questions: Iterable[JudgedQuestion]) -> str:
    """Return a SHA-256 of what the models are asked: ids, categories and turns."""
    rows = [(question.id, question.category, question.turns) for question in questions]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def make_settings(model: str, options: Any, data: str) -> dict[str, Any]:
    """Return everything that a model's answers depend on. `data`: the digest of the questions.

    Of a model that is computed here, its files are read, but it is not loaded. Raises `BareloopError` if they are
    missing.
    """
    protocol = {
        "history": not options.no_history,
        "max_new_tokens": options.max_new_tokens,
        "num_choices": options.num_choices,
        "data": data,
    }
    if options.url:
        kind = dict.fromkeys(("device", "dtype", "quant"), REMOTE)
        return {"model": model, "url": options.url, **kind, **protocol, "sampling": REMOTE_SAMPLING, **start()}

    from engine.checkpoints.opening import open_model
    from engine.runtime.device import choose_device, dtype_name

    device = choose_device(options.device)
    opened = open_model(model, options.dtype, options.allow_pickle, options.quant, device, options.adapter)
    return {
        "model": place(model),
        **({} if options.adapter is None else {"adapter": place(options.adapter)}),
        **hashes(opened),
        "device": device.type,
        "dtype": dtype_name(opened.dtype),
        "quant": opened.quant,
        "window": opened.config.max_position_embeddings,
        **protocol,
        "sampling": PLAIN_SAMPLING,
        **start(),
        "machine": machine(device),
    }


def resume_settings(answers: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a file of answers, which date from its first session, or the wanted ones without such.

    Raises `BareloopError` that names what differs between them.
    """
    path = settings_path(answers)
    if not path.exists() or not answers.exists():
        return dict(wanted)
    found = read_json(path)
    check_same_setting(answers, found, wanted)
    return found


def write_settings(answers: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings of a file of answers."""
    write_atomic(settings_path(answers), json.dumps(settings, ensure_ascii=False, indent=1) + "\n")
