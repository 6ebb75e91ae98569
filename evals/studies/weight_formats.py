"""Measure what each weight format costs in quality and saves in memory and time (evals.quantization).

Perplexity and agreement come from one pass over a text, accuracy from MMLU. Each result is appended to
quantization.jsonl at once, so the same command continues after a kill.
"""

from __future__ import annotations

import json
import math
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from engine.checkpoints import embedded
from engine.cli.parser import model_options
from engine.cli.progress import Progress
from engine.quant import GGUF
from engine.runtime.cycles import CycleCounter
from engine.runtime.errors import BareloopError, UsageError
from engine.runtime.files import AppendFile, write_atomic
from evals.analysis.quality import FormatResult, as_json, markdown, perplexity, read_rows, table
from evals.data.texts import find_text, prefix_ids, split_windows
from evals.harness.evaluate import command_to_continue, evaluate
from evals.harness.identity import hashes, machine, results_folder
from evals.harness.task import Task
from evals.runs.run_file import read, sha256
from evals.runs.summary import short_name, summarize

if TYPE_CHECKING:
    from torch import Tensor

    from engine import LLM

DEFAULT_WINDOW = 1024  # tokens
LOGITS_ROWS = 128  # rows of logits [vocab] processed at once
PROMPT_TOKENS, NEW_TOKENS = 128, 32  # for the decoding speed
MIN_WIDTH = 120  # columns of the table if stdout is not a terminal


@dataclass(frozen=True)
class Study:
    """One model, and what it is measured on."""

    model: str
    name: str  # for people
    path: Path  # file of finished results
    windows: list[list[int]]  # ids of the text
    weights: int  # number of parameters
    about: str
    settings: Mapping[str, Any]  # everything that a result depends on, besides the format
    is_gguf: bool  # whether the model is a GGUF file, whose own blocks are a format


def make_study(options: Any, model: str) -> Study:
    """Check everything that a model is measured on, except MMLU, without loading its weights."""
    from engine.checkpoints.gguf.source import gguf_files
    from engine.checkpoints.opening import open_model
    from engine.runtime.device import choose_device, dtype_name
    from engine.text.tokenizer import Tokenizer

    device = choose_device(options.device)
    opened = open_model(model, options.dtype, options.allow_pickle, "none", adapter=options.adapter)
    if opened.quant != "none":
        raise UsageError(f"{model} is in {opened.quant} already; name the unquantized checkpoint")
    max_length = opened.config.max_position_embeddings
    window = min(DEFAULT_WINDOW, max_length) if options.window is None else options.window
    if window > max_length:
        raise UsageError(f"--window {window:,}: the model's window holds {max_length:,} tokens")
    source, text = find_text(options, model)
    tokenizer = Tokenizer.load(opened.folder)
    ids = tokenizer.encode(text, add_special_tokens=False)[: options.text_tokens]
    if len(ids) < 2:
        raise BareloopError(f"{source} has {len(ids)} token(s); perplexity needs 2 or more")
    windows = split_windows(ids, window, prefix_ids(tokenizer))
    settings = {
        **hashes(opened),
        "device": device.type,
        "dtype": dtype_name(opened.dtype),
        "machine": machine(device),
        "text": sha256(json.dumps(windows)),
        "tokens": len(ids),
        "window": window,
    }
    about = f"{settings['device']}, {settings['dtype']}; {len(ids):,} tokens of {source}, in windows of {window:,}"
    path = results_folder(options, model) / "quantization.jsonl"
    weights = sum(parameter.numel() for parameter in opened.model.parameters())
    name, is_gguf = short_name(model, options.adapter), bool(gguf_files(opened.folder))
    return Study(model, name, path, windows, weights, about, settings, is_gguf)


def with_mmlu(study: Study, task: Task) -> Study:
    """Return the study with MMLU added to its settings."""
    settings = {"data": task.digest, "subjects": list(task.questions), "shots": task.shots, "limit": task.limit}
    about = f"{study.about}; {len(task.wanted):,} questions of MMLU, {task.shots}-shot"
    return replace(study, settings={**study.settings, **settings}, about=about)


def run_study(
    options: Any, study: Study, formats: Sequence[str], task: Task | None, counter: CycleCounter
) -> tuple[list[FormatResult], dict[str, str]]:
    """Measure every format that is not measured yet. Return the results in order, and reasons by missing format."""
    from engine import kernels

    with AppendFile(study.path) as file:
        results = read_rows(study.path, file.lines, study.settings)
        if before := [name for name in formats if name in results]:
            message = f"{len(before)} of {len(formats)} formats are in {study.path} already ({', '.join(before)})"
            print(f"{study.model}: {message}", file=sys.stderr)
        if study.settings["device"] == "cpu" and len(before) < len(formats):
            kernels.wait()
        obstacles = ((name, find_obstacle(options, name)) for name in formats if name not in results)
        missing = {name: reason for name, reason in obstacles if reason}
        todo = [name for name in formats if name not in results and name not in missing]
        # The unquantized model is always run: its most likely tokens are the reference, and are not in the file.
        passes = list(dict.fromkeys(("none", *todo))) if todo else []
        reference: Tensor | None = None
        try:
            for number, name in enumerate(passes):
                format_options = Namespace(**{**vars(options), "quant": name})
                windows = number * len(study.windows), len(passes) * len(study.windows)
                format_task = None if name in results else task
                try:
                    result, best = measure(format_options, study, reference, windows, format_task, counter)
                except BareloopError as error:
                    if name == "none":
                        raise
                    missing[name] = str(error)
                    continue
                reference = best if reference is None else reference
                if name not in results:
                    line = {"settings": study.settings, **asdict(result)}
                    file.append(json.dumps(line, ensure_ascii=False) + "\n")
                    results[name] = result
        except KeyboardInterrupt as error:
            done = sum(name in results for name in formats)
            message = f"interrupted: {done} of {len(formats)} formats are saved in {study.path}"
            message += f"; to continue: {command_to_continue()}"
            raise KeyboardInterrupt(str(error) or message) from None
    return [results[name] for name in formats if name in results], missing


def find_obstacle(options: Any, name: str) -> str | None:
    """Return why a format is not available here, or None. Raises `BareloopError` if the unquantized model is not.

    It loads the demo model, so that importing and initialising libraries is not part of the measured load times.
    """
    from engine import LLM, kernels
    from engine.runtime.device import choose_device

    if name == GGUF and (choose_device(options.device).type != "cpu" or not kernels.available()):
        return "the blocks of GGUF files are kept on a CPU with the C++ kernels"
    try:
        LLM.load(embedded.NAME, device=options.device, quant="none" if name == GGUF else name)
    except BareloopError as error:
        if name == "none":
            raise
        return str(error)
    return None


def measure(
    options: Any,
    study: Study,
    reference: Tensor | None,
    windows: tuple[int, int],
    task: Task | None,
    counter: CycleCounter,
) -> tuple[FormatResult, Tensor]:
    """Measure one format. Return its result and the most likely next token at each position.

    `reference`: those tokens of the unquantized model; `windows`: number of windows before this format and in total,
    for the progress.
    """
    import torch

    from engine import LLM
    from engine.runtime.device import synchronize
    from engine.runtime.memory import reset_peak_memory

    start = time.perf_counter()
    llm = LLM.load(study.model, **model_options(options))
    synchronize(llm.device)
    load_seconds = time.perf_counter() - start
    total_loss, tokens, parts = 0.0, 0, []
    with Progress("windows", windows[1], windows[0]) as progress:
        for ids in study.windows:
            loss, best = losses(llm.logits(ids)[:-1], ids[1:])
            total_loss, tokens = total_loss + loss, tokens + len(best)
            if not math.isfinite(total_loss):
                raise BareloopError(f"the scores in {options.quant} are not finite; try --dtype float32 or bfloat16")
            parts.append(best)
            progress.advance(1, f"{options.quant}: perplexity {perplexity(total_loss, tokens):.3f}")
    predictions = torch.cat(parts)
    nbytes = sum(parameter.nbytes for parameter in llm.model.parameters())
    result = FormatResult(
        format=options.quant,
        nbytes=nbytes,
        bits=8 * nbytes / study.weights,
        perplexity=perplexity(total_loss, tokens),
        agreement=1.0 if reference is None else (predictions == reference).double().mean().item(),
        tokens_per_second=decode_speed(llm, study.windows[0]),
        load_seconds=load_seconds,
    )
    if task is not None:
        reset_peak_memory(llm.device)  # memory for the text is not part of MMLU's
        header, records = read(evaluate(task, options, study.model, counter, lambda: llm))
        overall = summarize(header, task.select(records).values(), task.groups).overall
        stderr = None if math.isnan(overall.stderr) else overall.stderr
        result = replace(result, mmlu=overall.mean, mmlu_stderr=stderr)
    return result, predictions


def losses(logits: Tensor, targets: Sequence[int]) -> tuple[float, Tensor]:
    """Return the sum of the negative log-likelihoods of `targets` in nats, and the most likely tokens [T].

    `logits`: [T, vocab]; `targets`: the T tokens that follow.
    """
    import torch
    from torch.nn import functional as F

    pieces = zip(torch.split(logits, LOGITS_ROWS), torch.split(torch.tensor(targets), LOGITS_ROWS), strict=True)
    loss = sum(F.cross_entropy(rows, labels, reduction="none").double().sum().item() for rows, labels in pieces)
    return loss, logits.argmax(dim=-1).int()


def decode_speed(llm: LLM, ids: Sequence[int]) -> float:
    """Return the tokens per second of one sequence, from the median time between tokens. The prompt repeats `ids`."""
    from engine import SamplingParams

    length = max(1, min(PROMPT_TOKENS, llm.max_length - NEW_TOKENS))
    prompt = (list(ids) * length)[:length]
    params = SamplingParams(max_new_tokens=NEW_TOKENS, ignore_eos=True)
    times = [time.perf_counter() for _ in llm.stream(prompt, params)]
    return 1 / median(after - before for before, after in pairwise(times))


def report(study: Study, results: Sequence[FormatResult], missing: Mapping[str, str]) -> None:
    """Print the table, and write it as Markdown and JSON."""
    import torch
    from rich.console import Console

    name, date = study.name, datetime.now().isoformat(timespec="seconds")
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, MIN_WIDTH)
    console.print(f"{name}: {study.about}", markup=False, soft_wrap=True)
    console.print(table(results))
    for format_name, reason in missing.items():
        console.print(f"{format_name} was not measured: {reason}", markup=False, soft_wrap=True)
    command = command_to_continue()
    facts = {"model": study.model, "name": name, "command": command, "date": date, "torch": torch.__version__}
    lines = [f"    {command}", f"{date}, {study.settings['machine']}, torch {torch.__version__}; {study.about}."]
    files = {
        "md": markdown(f"Weight formats of {name}", lines, results, missing),
        "json": as_json({**facts, "settings": study.settings}, results, missing),
    }
    for suffix, text in files.items():
        write_atomic(study.path.with_suffix(f".{suffix}"), text)
    names = ", ".join(f"{study.path.stem}.{suffix}" for suffix in files)
    print(f"records: {study.path}\ntables: {names}", file=sys.stderr)
