"""What answers and judgments depend on, and the file beside them that says so. No torch until it is computed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.cli.parser import label
from engine.quant import AUTO, GGUF
from engine.remote.address import Address
from engine.runtime.errors import BareloopError
from engine.runtime.files import read_json, write_atomic
from evals.data.mt_bench import JudgedQuestion
from evals.harness.identity import file_name, hashes, machine, place, start
from evals.runs.run_file import REMOTE, check_same_setting

if TYPE_CHECKING:
    import torch

    from engine.checkpoints.opening import Opened

# FastChat passes only the temperature, but HF's generate, which it calls, adds what a checkpoint's
# generation_config.json says: top_p, top_k (50 by default), repetition_penalty. Here they do not count.
PLAIN_SAMPLING = {
    **{"top_k": 0, "top_p": 1.0, "min_p": 0.0},
    **{"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0},
}
REMOTE_SAMPLING = {"top_p": 1.0}  # the fields that every server takes; of others, only the server knows the defaults
AFFORDABLE = "affordable_window"  # tokens for which there was memory when the answers were started


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
        return {"model": model, **of_server(options.url[0]), **protocol, "sampling": REMOTE_SAMPLING, **start()}

    from engine.checkpoints.opening import open_model
    from engine.runtime.device import choose_device

    device = choose_device(options.device)
    opened = open_model(model, options.dtype, options.allow_pickle, options.quant, device, options.adapter)
    return {
        **of_model(model, opened, device),
        **({} if options.adapter is None else {"adapter": place(options.adapter)}),
        "window": opened.config.max_position_embeddings,
        **protocol,
        "sampling": PLAIN_SAMPLING,
        **start(),
        "machine": machine(device),
    }


def of_model(name: str, opened: Opened, device: torch.device) -> dict[str, str]:
    """Return what identifies a model that is computed here: the hashes of its files, and how it is computed."""
    from engine.runtime.device import dtype_name

    kind = {"device": device.type, "dtype": dtype_name(opened.dtype), "quant": opened.quant}
    return {"model": place(name), **hashes(opened), **kind}


def of_server(url: str) -> dict[str, str]:
    """Return what is known of a server's model. A password in the URL is left out."""
    return {"url": Address.parse(url).shown, **dict.fromkeys(("device", "dtype", "quant"), REMOTE)}


def resume_settings(answers: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a file of answers, which date from its first session, or the wanted ones without answers.

    Raises `BareloopError` that names what differs between them, and for answers of unknown origin.
    """
    if not answers.exists() or not answers.stat().st_size:
        return dict(wanted)
    check_origin(answers)
    found = read_json(settings_path(answers))
    check_same_setting(answers, {name: value for name, value in found.items() if name != AFFORDABLE}, wanted)
    return found


def check_origin(answers: Path) -> None:
    """Raise `BareloopError` if there are no settings beside answers: others must not be added to them."""
    if not settings_path(answers).exists():
        raise BareloopError(
            f"{answers} lacks answers, and nothing tells where the others are from, as it has no "
            f"{settings_path(answers).name}; use --fresh, which renames it to *.old, another --output-dir, or only the "
            "questions that it has (--categories, --limit)"
        )


def write_settings(answers: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings of a file of answers."""
    write_atomic(settings_path(answers), json.dumps(settings, ensure_ascii=False, indent=1) + "\n")
