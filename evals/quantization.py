"""python -m evals.quantization: what each weight format costs in quality, and what it saves, in one table.

Perplexity and the likeliest next tokens come from one pass over a text, accuracy from MMLU by its run files. A format
that is measured is a line of quantization.jsonl at once, so the same command goes on where a killed one stopped.
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
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from engine.checkpoints import embedded
from engine.cli.parser import Parser, choose_model, model_options, run
from engine.cli.progress import Progress
from engine.quant import ALIASES, QUANTS, canonical
from engine.runtime.cycles import CycleCounter
from engine.runtime.errors import BareloopError, UsageError
from engine.runtime.files import AppendFile, write_atomic
from evals import mmlu
from evals.analysis.quality import FormatResult, as_json, markdown, perplexity, read_rows, table
from evals.data.texts import WIKITEXT_PART, beginning, cut, find_text
from evals.harness.evaluate import command, evaluate
from evals.harness.identity import hashes, machine, results_folder
from evals.harness.program import check_run_options
from evals.harness.task import Task
from evals.runs.run_file import read, sha256
from evals.runs.summary import short_name, summarize

if TYPE_CHECKING:
    from torch import Tensor

    from engine import LLM

FORMATS = ("none", "int8", "int4", "nf4", "fp4", "llm.int8")
WINDOW = 1024  # tokens
ROWS = 128  # rows of logits [vocab] that are worked on at once
PROMPT, NEW = 128, 32  # tokens before the decoded ones, and they
WIDTH = 120  # of the table, where there is no terminal


@dataclass(frozen=True)
class Job:
    """One model, and what it is measured on."""

    model: str
    path: Path  # of the file of finished rows
    windows: list[list[int]]  # of the text
    weights: int
    about: str
    settings: Mapping[str, Any]  # all that a row depends on


def parser() -> Parser:
    """The program's flags."""
    result = Parser("python -m evals.quantization", "Compare weight formats: size, perplexity, MMLU, agreement, speed.")
    listed = partial(result.add_argument, action="extend", nargs="+")
    result.add_model_options(without=("quant",))
    known, usual = ", ".join((*QUANTS, *ALIASES)), " ".join(FORMATS)
    listed("--formats", metavar="FORMAT", help=f"{known}; none is always measured (default: {usual})")
    text = result.add_argument_group("text")
    own = "the demo model's: unseen pages of its textbook"
    text.add_argument("--text", metavar="FILE", help=f"default: the test split of {WIKITEXT_PART}; {own}")
    text.add_argument("--text-tokens", type=int, default=16_384, metavar="N", help="of it (default: 16,384)")
    text.add_argument("--window", type=int, metavar="N", help=f"tokens of one forward (default: up to {WINDOW:,})")
    questions = result.add_argument_group("MMLU, as python -m evals.mmlu")
    questions.add_argument("--data", help=f"default: {mmlu.DATA}; the demo model's: demo")
    questions.add_argument("--subjects", action="extend", nargs="+", metavar="SUBJECT")
    questions.add_argument("--shots", type=int, default=5, help="default: 5")
    questions.add_argument("--limit", type=int, metavar="N", help="questions per subject (default: all)")
    questions.add_argument("--no-mmlu", action="store_true", help="leave it out")
    result.add_argument("--output-dir", default="results", metavar="FOLDER", help="default: results")
    return result


def main(options: Any) -> None:
    """Measure every model in every format, tell, and write."""
    counter = CycleCounter()  # before torch starts its threads
    formats = list(dict.fromkeys(("none", *map(canonical, options.formats or FORMATS))))
    for flag in ("text_tokens", "window"):
        value = getattr(options, flag)
        if value is not None and value < 2:
            raise UsageError(f"--{flag.replace('_', '-')} {value}: use 2 or more")
    options = Namespace(**{**vars(mmlu.parser().parse_args([])), **vars(options)})
    check_run_options(options)
    choose_model(options)
    models = list(dict.fromkeys(options.model))
    if len({results_folder(options, model) for model in models}) < len(models):
        raise UsageError(f"two of {', '.join(models)} would share one folder of results; use --output-dir for each")
    jobs = [make_job(options, model) for model in models]  # what is wrong is told before hours of work
    task = choose_task(options)
    for job in jobs if task is None else [with_questions(job, task) for job in jobs]:
        rows, missing = measure_all(options, job, formats, task, counter)
        tell(job, rows, missing)


def choose_task(options: Any) -> Task | None:
    """MMLU as the flags choose it; None, with a line that says so, where its data cannot be had and was not named."""
    if options.no_mmlu:
        return None
    named = options.data is not None
    if not named:
        options.data = embedded.NAME if set(options.model) == {embedded.NAME} else mmlu.DATA
    try:
        return mmlu.load_task(options)
    except UsageError:
        raise
    except BareloopError as error:
        if named:
            raise
        print(f"without MMLU: {error}", file=sys.stderr)
        return None


def make_job(options: Any, model: str) -> Job:
    """Check all that a model is measured on but for MMLU, without its weights."""
    from engine.checkpoints.opening import open_model
    from engine.runtime.device import choose_device, dtype_name
    from engine.text.tokenizer import Tokenizer

    device = choose_device(options.device)
    opened = open_model(model, options.dtype, options.allow_pickle)
    if opened.quant != "none":
        raise UsageError(f"{model} is in {opened.quant} already; name the unquantized checkpoint")
    most = opened.config.max_position_embeddings
    window = min(WINDOW, most) if options.window is None else options.window
    if window > most:
        raise UsageError(f"--window {window:,}: the model's window holds {most:,} tokens")
    source, text = find_text(options, model)
    tokenizer = Tokenizer.load(opened.folder)
    ids = tokenizer.encode(text, add_special_tokens=False)[: options.text_tokens]
    if len(ids) < 2:
        raise BareloopError(f"{source} has {len(ids)} token(s); perplexity needs 2 or more")
    windows = cut(ids, window, beginning(tokenizer))
    settings = {
        **hashes(opened),
        "device": device.type,
        "dtype": dtype_name(opened.dtype),
        "machine": machine(device),
        "text": sha256(json.dumps(windows)),
        "tokens": len(ids),
        "window": window,
    }
    about = f"{settings['device']}, {settings['dtype']}; {len(ids):,} tokens of {source}, by windows of {window:,}"
    path = results_folder(options, model) / "quantization.jsonl"
    weights = sum(parameter.numel() for parameter in opened.model.parameters())
    return Job(model, path, windows, weights, about, settings)


def with_questions(job: Job, task: Task) -> Job:
    """A job that asks MMLU too."""
    asked = {"data": task.digest, "subjects": list(task.questions), "shots": task.shots, "limit": task.limit}
    about = f"{job.about}; {len(task.wanted):,} questions of MMLU, {task.shots}-shot"
    return replace(job, settings={**job.settings, **asked}, about=about)


def measure_all(
    options: Any, job: Job, formats: Sequence[str], task: Task | None, counter: CycleCounter
) -> tuple[list[FormatResult], dict[str, str]]:
    """Measure every format that is not measured yet; -> the rows in order, and why others are not among them."""
    from engine import kernels

    with AppendFile(job.path) as file:
        rows = read_rows(job.path, file.lines, job.settings)
        if before := [form for form in formats if form in rows]:
            told = f"{len(before)} of {len(formats)} formats are in {job.path} already ({', '.join(before)})"
            print(f"{job.model}: {told}", file=sys.stderr)
        if job.settings["device"] == "cpu" and len(before) < len(formats):
            kernels.wait()
        missing = {form: why for form in formats if form not in rows and (why := obstacle(options, form))}
        todo = [form for form in formats if form not in rows and form not in missing]
        passes = list(dict.fromkeys(("none", *todo))) if todo else []  # its likeliest tokens are not in the file
        reference: Tensor | None = None
        try:
            for number, form in enumerate(passes):
                own = Namespace(**{**vars(options), "quant": form})
                steps = number * len(job.windows), len(passes) * len(job.windows)
                try:
                    row, likeliest = measure(own, job, reference, steps, None if form in rows else task, counter)
                except BareloopError as error:
                    if form == "none":
                        raise
                    missing[form] = str(error)
                    continue
                reference = likeliest if reference is None else reference
                if form not in rows:
                    file.append(json.dumps({"settings": job.settings, **asdict(row)}, ensure_ascii=False) + "\n")
                    rows[form] = row
        except KeyboardInterrupt as error:
            done = sum(form in rows for form in formats)
            saved = f"interrupted: {done} of {len(formats)} formats are saved in {job.path}; to go on: {command()}"
            raise KeyboardInterrupt(str(error) or saved) from None
    return [rows[form] for form in formats if form in rows], missing


def obstacle(options: Any, form: str) -> str | None:
    """Why a format cannot be had here. What was to be imported or begun for it is there afterwards, and not timed."""
    from engine import LLM

    try:
        LLM.load(embedded.NAME, device=options.device, quant=form)
    except BareloopError as error:
        if form == "none":
            raise
        return str(error)
    return None


def measure(
    options: Any, job: Job, reference: Tensor | None, steps: tuple[int, int], task: Task | None, counter: CycleCounter
) -> tuple[FormatResult, Tensor]:
    """One format; -> its row, and the likeliest token at each place.

    `reference` holds those of the unquantized model, `steps` the windows that were read before and those in all.
    """
    import torch

    from engine import LLM
    from engine.runtime.device import synchronize
    from engine.runtime.memory import reset_peak_memory

    start = time.perf_counter()
    llm = LLM.load(job.model, **model_options(options))
    synchronize(llm.device)
    seconds = time.perf_counter() - start
    loss, tokens, parts = 0.0, 0, []
    with Progress("windows", steps[1], steps[0]) as progress:
        for ids in job.windows:
            own, best = losses(llm.logits(ids)[:-1], ids[1:])
            loss, tokens = loss + own, tokens + len(best)
            if not math.isfinite(loss):
                raise BareloopError(f"the scores in {options.quant} are not numbers; try --dtype float32 or bfloat16")
            parts.append(best)
            progress.advance(1, f"{options.quant}: perplexity {perplexity(loss, tokens):.3f}")
    likeliest = torch.cat(parts)
    nbytes = sum(parameter.nbytes for parameter in llm.model.parameters())
    row = FormatResult(
        format=options.quant,
        nbytes=nbytes,
        bits=8 * nbytes / job.weights,
        perplexity=perplexity(loss, tokens),
        agreement=1.0 if reference is None else (likeliest == reference).double().mean().item(),
        tokens_per_second=decode_rate(llm, job.windows[0]),
        load_seconds=seconds,
    )
    if task is not None:
        reset_peak_memory(llm.device)  # what was held for the text is no part of what MMLU takes
        header, records = read(evaluate(task, options, job.model, counter, llm))
        found = summarize(header, task.select(records).values(), task.groups).overall
        row = replace(row, mmlu=found.mean, mmlu_stderr=None if math.isnan(found.stderr) else found.stderr)
    return row, likeliest


def losses(logits: Tensor, targets: Sequence[int]) -> tuple[float, Tensor]:
    """Scores [T, vocab] and the tokens that follow -> the sum of their surprises in nats, and the likeliest [T]."""
    import torch
    from torch.nn import functional as F

    pieces = zip(torch.split(logits, ROWS), torch.split(torch.tensor(targets), ROWS), strict=True)
    loss = sum(F.cross_entropy(rows, own, reduction="none").double().sum().item() for rows, own in pieces)
    return loss, logits.argmax(dim=-1).int()


def decode_rate(llm: LLM, ids: Sequence[int]) -> float:
    """Tokens a second of one row, by the median of the gaps between them; the prompt is `ids`, as often as it takes."""
    from engine import SamplingParams

    length = max(1, min(PROMPT, llm.max_length - NEW))
    prompt = (list(ids) * length)[:length]
    times = [time.perf_counter() for _ in llm.stream(prompt, SamplingParams(max_new_tokens=NEW, ignore_eos=True))]
    return 1 / median(after - before for before, after in pairwise(times))


def tell(job: Job, rows: Sequence[FormatResult], missing: Mapping[str, str]) -> None:
    """Print the table, and write it beside the rows as Markdown and JSON."""
    import torch
    from rich.console import Console

    name, date = short_name(job.model), datetime.now().isoformat(timespec="seconds")
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)
    console.print(f"{name}: {job.about}", markup=False, soft_wrap=True)
    console.print(table(rows))
    for form, why in missing.items():
        console.print(f"{form} was not measured: {why}", markup=False, soft_wrap=True)
    facts = {"model": job.model, "command": command(), "date": date, "torch": torch.__version__}
    told = [f"    {command()}", f"{date}, {job.settings['machine']}, torch {torch.__version__}; {job.about}."]
    files = {
        "md": markdown(f"Weight formats of {name}", told, rows, missing),
        "json": as_json({**facts, "settings": job.settings}, rows, missing),
    }
    for ending, text in files.items():
        write_atomic(job.path.with_suffix(f".{ending}"), text)
    print(f"records: {job.path}\ntables: {', '.join(f'{job.path.stem}.{ending}' for ending in files)}", file=sys.stderr)


if __name__ == "__main__":
    run(parser(), main)
