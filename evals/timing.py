"""python -m evals.timing: MMLU on every device and in every weight format, each in a process of its own."""

from __future__ import annotations

import contextlib
import io
import json
import math
import platform
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from engine.checkpoints import embedded
from engine.cli.parser import Parser, choose_model, model_options, run
from engine.cli.progress import Progress
from engine.quant import ALIASES, BITSANDBYTES, QUANTS, canonical
from engine.runtime.cycles import CycleCounter
from engine.runtime.errors import BareloopError, UsageError, quote
from engine.runtime.files import write_atomic
from evals.harness.evaluate import command, evaluate
from evals.harness.identity import make_header, results_folder
from evals.harness.program import DEVICES, check_run_options
from evals.harness.subprocess_call import apart
from evals.mmlu import DATA, SUBJECTS, load_task
from evals.plotting.timing import plot_measurements
from evals.runs.measurements import (
    Configuration,
    Measurement,
    MeasurementFile,
    Result,
    heading,
    markdown_table,
    speedups,
    table,
    unmeasured,
)
from evals.runs.run_file import read
from evals.runs.summary import short_name, summarize

FORMATS = ("none", "int8", "int4", "nf4", "fp4", "llm.int8")
WIDE = 120  # columns where there is no terminal
WARM = 256  # tokens
# What evals.mmlu has flags for, and this program has not.
FIXED = {"split": "test", "quant": "none", "batch_tokens": None}
OFF = dict.fromkeys(("chat_template", "single_turn", "rescore", "verbose"), False)
# Of a run's header, what a time depends on beside its device and format.
HEADER = ("task", "shots", "max_length", "weights", "config", "tokenizer", "data", "dtype", "version")


@dataclass(frozen=True)
class Plan:
    """What is known before anything is measured."""

    settings: dict[str, dict[str, Any]]  # of each model: all that its times depend on, beside the cell
    obstacles: dict[Configuration, str]  # cells that this machine does not have, with the reasons


def parser() -> Parser:
    """The program's flags."""
    result = Parser("python -m evals.timing", "Time MMLU on every device and in every weight format.")

    def add_list(*names: str, metavar: str, told: str) -> None:
        result.add_argument(*names, action="extend", nargs="+", metavar=metavar, help=told)

    result.add_model_options(without=("device", "quant"))
    known = ", ".join((*QUANTS, *ALIASES))
    add_list("--devices", metavar="DEVICE", told=f"cpu, cuda, cuda:N, mps (default: {' '.join(DEVICES)})")
    add_list("--formats", metavar="FORMAT", told=f"of the weights: {known} (default: {' '.join(FORMATS)})")
    result.add_argument("--data", help=f"hub data set, folder, or demo (default: {DATA}; the demo model's: demo)")
    add_list("--subjects", metavar="SUBJECT", told=f"names, groups, or all (default: {' '.join(SUBJECTS)})")
    result.add_argument("--shots", type=int, default=5, help="solved examples before each question (default: 5)")
    result.add_argument("--limit", type=int, metavar="N", help="questions per subject (default: all)")
    result.add_argument("--output-dir", default="results/timing", metavar="FOLDER", help="default: results/timing")
    result.add_argument("--fresh", action="store_true", help="begin anew; an earlier study is put aside, not deleted")
    result.set_defaults(**FIXED, **OFF)
    return result


def main(options: Any) -> None:
    """Plan, measure, tell, model by model."""
    check(options)
    choose_model(options)
    options.model = list(dict.fromkeys(options.model))
    if options.data is None:
        options.data = embedded.NAME if options.model == [embedded.NAME] else DATA
    if len({results_folder(options, model) for model in options.model}) < len(options.model):
        raise UsageError("two models would share one folder of results; time them apart, with --output-dir")
    plan = apart(prepare, options, debug=options.debug)
    failed = []
    for model in options.model:
        rows = study(options, model, plan)
        if any(row.measurement for row in rows):
            tell(options, model, plan.settings[model], rows)
        else:
            failed.append(f"nothing could be measured of {model} ({rows[0].configuration}: {rows[0].reason})")
    if failed:
        raise BareloopError("; ".join(failed))


def check(options: Any) -> None:
    """Refuse what makes no sense; put in place the lists' defaults and the formats' own names."""
    check_run_options(options)
    options.devices = list(dict.fromkeys(options.devices or DEVICES))
    for device in options.devices:
        if device.partition(":")[0] not in DEVICES:
            raise UsageError(f"unknown device {quote(device)}; use cpu, cuda, cuda:N or mps")
    options.formats = list(dict.fromkeys(canonical(name) for name in options.formats or FORMATS))


def prepare(options: Any) -> Plan:
    """Look at the data, the models and the machine."""
    import torch

    from engine.checkpoints.opening import open_model

    task = load_task(options)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = [torch.cuda.get_device_name(number) for number in range(count)]
    machine = ", ".join((cpu_name(), f"{torch.get_num_threads()} threads", *gpus, f"torch {torch.__version__}"))
    settings = {}
    for model in options.model:
        opened = open_model(model, options.dtype, options.allow_pickle)
        header = make_header(task, options, model, opened, torch.device("cpu"), 0)
        own = {"subjects": list(task.questions), "limit": options.limit, "machine": machine}
        settings[model] = {name: header[name] for name in HEADER} | own | {"format": opened.format_name}
    return Plan(settings, {cell: reason for cell in cells(options) if (reason := obstacle(cell))})


def cells(options: Any) -> list[Configuration]:
    """All that were asked for, in their order."""
    return [Configuration(device, name) for device in options.devices for name in options.formats]


def obstacle(cell: Configuration) -> str:
    """Why this machine does not have a cell; empty where it has."""
    from engine.quant import bitsandbytes as bnb
    from engine.runtime.device import choose_device

    try:
        device = choose_device(cell.device)
        if cell.format in BITSANDBYTES:
            bnb.check(device)
    except BareloopError as error:
        return str(error).partition(";")[0]  # what follows is advice on other programs' flags
    return ""


def cpu_name() -> str:
    """The processor's model, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, "") or platform.processor() or platform.machine()


def study(options: Any, model: str, plan: Plan) -> list[Result]:
    """Measure what the machine has and no earlier sitting did; each cell is saved as soon as it is there."""
    ready = [cell for cell in cells(options) if cell not in plan.obstacles]
    rows = {cell: Result(cell, reason=reason) for cell, reason in plan.obstacles.items()}
    path = results_folder(options, model) / "timing.jsonl"
    with MeasurementFile(path, plan.settings[model], options.fresh) as store:
        rows |= {cell: Result(cell, store.measurements[cell]) for cell in ready if cell in store.measurements}
        missing = [cell for cell in ready if cell not in rows]
        before = len(ready) - len(missing)
        if before:
            told = f"{before} of {len(ready)} cells were measured before"
            print(f"{told} ({path}); --fresh measures them again", file=sys.stderr)
        with Progress(short_name(model), len(ready), before) as progress:
            for cell in missing:
                progress.advance(0, str(cell))
                try:
                    own = apart(measure, options, model, cell, debug=options.debug)
                except KeyboardInterrupt:
                    done = sum(row.measurement is not None for row in rows.values())
                    told = f"interrupted: {done} of {len(ready)} cells are saved in {path}"
                    raise KeyboardInterrupt(f"{told}; to go on: {command()}") from None
                except BareloopError as error:
                    rows[cell] = Result(cell, reason=str(error))
                    progress.advance(1, f"{cell}: {error}")
                else:
                    rows[cell] = Result(cell, own)
                    store.append(cell, own)
                    progress.advance(1, f"{cell}: {own.real:.2f} s")
    return [rows[cell] for cell in cells(options)]


def measure(options: Any, model: str, cell: Configuration) -> Measurement:
    """Load, score, and tell what it took; in a process that has done nothing else."""
    counter = CycleCounter()  # before torch starts its threads
    import torch

    from engine import LLM, kernels
    from engine.runtime.clocks import Stopwatch
    from engine.runtime.device import choose_device, synchronize
    from engine.runtime.memory import peak_memory

    folder = results_folder(options, model) / f"{cell.device.replace(':', '')}_{cell.format}"
    own = {"device": cell.device, "quant": cell.format, "output_dir": str(folder), "fresh": True}
    options = Namespace(**vars(options) | own)
    task = load_task(options)
    device = choose_device(cell.device)
    if device.type == "cpu":
        kernels.wait()
    watch = Stopwatch(device)
    llm = LLM.load(model, **model_options(options))
    synchronize(device)
    load = watch.lap().real
    llm.logits([0] * WARM)  # the first pass pays for what libraries do once
    with contextlib.redirect_stderr(io.StringIO()):  # one line of progress is enough
        header, records = read(evaluate(task, options, model, counter, llm))
    summary = summarize(header, records.values(), task.groups)
    overall = summary.overall
    return Measurement(
        questions=overall.questions,
        accuracy=overall.mean,
        stderr=None if math.isnan(overall.stderr) else overall.stderr,
        tokens=summary.tokens,
        load=load,
        real=summary.real,
        cpu=summary.cpu,
        gpu=summary.gpu,
        cycles=summary.cycles,
        peak_memory=peak_memory(torch.device("cpu")),
        gpu_memory=peak_memory(device) if device.type == "cuda" else None,
        weights=sum(parameter.nbytes for parameter in llm.model.parameters()),
    )


def tell(options: Any, model: str, settings: dict[str, Any], rows: Sequence[Result]) -> None:
    """The table, on the screen and as Markdown, JSON and a picture."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    folder, date = results_folder(options, model), f"{datetime.now():%Y-%m-%d %H:%M}"
    title, about = f"MMLU by device and weight format: {short_name(model)}", heading(settings, rows)
    heads, lines = table(rows)
    shown = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False)
    for place, head in enumerate(heads):
        shown.add_column(head, justify="left" if place < 2 else "right")
    for line in lines:
        shown.add_row(*line)
    console = Console(highlight=False)
    console.width = console.width if console.is_terminal else max(console.width, WIDE)
    console.print(f"{title}\n{about}", markup=False, soft_wrap=True)
    console.print(shown)
    for left_out in unmeasured(rows):
        console.print("not measured: {} ({}): {}".format(*left_out), markup=False, soft_wrap=True)

    text = [f"# {title}", about, f"{settings['machine']}; {date}", f"    {command()}"]
    text += ["\n".join(markdown_table(heads, lines, 2)), "![Time and memory](timing.png)"]
    if left := unmeasured(rows):
        text += ["Not measured:", "\n".join(markdown_table(["device", "format", "reason"], left, 3))]
    write_atomic(folder / "timing.md", "\n\n".join(text) + "\n")
    faster = speedups(rows)
    listed = [
        asdict(row.configuration)
        | (
            {**asdict(row.measurement), "speedup": faster.get(row.configuration)}
            if row.measurement
            else {"reason": row.reason}
        )
        for row in rows
    ]
    report = {"model": model, "date": date, "command": command(), "settings": settings, "cells": listed}
    write_atomic(folder / "timing.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    plot_measurements(rows, f"{title}\n{about}", folder / "timing")
    print(f"{folder}/timing.md, .json, .png and .svg", file=sys.stderr)


if __name__ == "__main__":
    run(parser(), main)
