"""Time MMLU on every device and in every weight format, each configuration in its own process (evals.timing)."""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from engine.cli.parser import model_options
from engine.cli.progress import Progress
from engine.quant import BITSANDBYTES, GGUF
from engine.runtime.cycles import CycleCounter
from engine.runtime.errors import BareloopError
from engine.runtime.files import write_atomic
from evals.harness.evaluate import command_to_continue, evaluate
from evals.harness.identity import cpu_name, make_header, results_folder
from evals.harness.subprocess_call import run_in_subprocess
from evals.harness.task import Task
from evals.plotting.timing import plot_measurements
from evals.runs.collection import TIMING_FILE
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

MIN_WIDTH = 120  # columns of the table if stdout is not a terminal
WARM_UP_TOKENS = 256
# Fields of a run's header that a time depends on, besides the device and the weight format.
HEADER_FIELDS = ("task", "shots", "max_length", "weights", "config", "tokenizer", "data", "dtype", "version")

LoadTask = Callable[[Any], Task]


@dataclass(frozen=True)
class Plan:
    """What is known before the first measurement."""

    settings: dict[str, dict[str, Any]]  # by model: everything its times depend on, besides the configuration
    obstacles: dict[Configuration, str]  # why this machine cannot run a configuration


def make_plan(options: Any, load_task: LoadTask) -> Plan:
    """Check the data, the models and the machine, in a subprocess."""
    plan: Plan = run_in_subprocess(prepare, options, load_task, debug=options.debug)
    return plan


def prepare(options: Any, load_task: LoadTask) -> Plan:
    """Check the data, the models and the machine."""
    import torch

    from engine.checkpoints.opening import open_model

    task = load_task(options)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = [torch.cuda.get_device_name(number) for number in range(count)]
    machine = ", ".join((cpu_name(), f"{torch.get_num_threads()} threads", *gpus, f"torch {torch.__version__}"))
    settings = {}
    for model in options.model:
        opened = open_model(model, options.dtype, options.allow_pickle, "none", adapter=options.adapter)
        header = make_header(task, options, model, opened, torch.device("cpu"), 0)
        more = {"subjects": list(task.questions), "limit": options.limit, "machine": machine}
        settings[model] = {name: header[name] for name in HEADER_FIELDS} | more | {"format": opened.format_name}
    obstacles = {key: reason for key in configurations(options) if (reason := find_obstacle(key))}
    return Plan(settings, obstacles)


def configurations(options: Any) -> list[Configuration]:
    """Return the requested configurations in order."""
    return [Configuration(device, name) for device in options.devices for name in options.formats]


def find_obstacle(configuration: Configuration) -> str:
    """Return why this machine cannot run a configuration, or an empty string if it can."""
    from engine.quant import bitsandbytes as bnb
    from engine.runtime.device import choose_device

    try:
        device = choose_device(configuration.device)
        if configuration.format == GGUF and device.type != "cpu":
            return "the blocks of GGUF files are kept on a CPU"
        if configuration.format in BITSANDBYTES:
            bnb.check(device)
    except BareloopError as error:
        return str(error).partition(";")[0]  # the rest is advice about flags of other programs
    return ""


def run_study(options: Any, load_task: LoadTask, model: str, plan: Plan) -> list[Result]:
    """Measure the configurations that are possible here and not measured yet. Each result is saved at once."""
    ready = [key for key in configurations(options) if key not in plan.obstacles]
    results = {key: Result(key, reason=reason) for key, reason in plan.obstacles.items()}
    path = results_folder(options, model) / TIMING_FILE
    with MeasurementFile(path, plan.settings[model], options.fresh) as file:
        results |= {key: Result(key, file.measurements[key]) for key in ready if key in file.measurements}
        missing = [key for key in ready if key not in results]
        before = len(ready) - len(missing)
        if before:
            message = f"{before} of {len(ready)} configurations were measured before ({path})"
            print(f"{message}; --fresh measures them again", file=sys.stderr)
        with Progress(short_name(model, options.adapter), len(ready), before) as progress:
            for key in missing:
                progress.advance(0, str(key))
                try:
                    measurement = run_in_subprocess(measure, options, load_task, model, key, debug=options.debug)
                except KeyboardInterrupt:
                    done = sum(result.measurement is not None for result in results.values())
                    message = f"interrupted: {done} of {len(ready)} configurations are saved in {path}"
                    raise KeyboardInterrupt(f"{message}; to continue: {command_to_continue()}") from None
                except BareloopError as error:
                    results[key] = Result(key, reason=str(error))
                    progress.advance(1, f"{key}: {error}")
                else:
                    results[key] = Result(key, measurement)
                    file.append(key, measurement)
                    progress.advance(1, f"{key}: {measurement.real:.2f} s")
    return [results[key] for key in configurations(options)]


def measure(options: Any, load_task: LoadTask, model: str, configuration: Configuration) -> Measurement:
    """Load the model, evaluate the task, and return the costs. Call it in a new process."""
    counter = CycleCounter()  # must be created before torch starts its threads
    import torch

    from engine import LLM, kernels
    from engine.runtime.clocks import Stopwatch
    from engine.runtime.device import choose_device, synchronize
    from engine.runtime.memory import peak_memory

    name = f"{configuration.device.replace(':', '')}_{configuration.format}"
    changes = {
        "device": configuration.device,
        "quant": configuration.format,
        "output_dir": str(results_folder(options, model) / name),
        "fresh": True,
    }
    options = Namespace(**vars(options) | changes)
    task = load_task(options)
    device = choose_device(configuration.device)
    if device.type == "cpu":
        kernels.wait()
    watch = Stopwatch(device)
    llm = LLM.load(model, **model_options(options))
    synchronize(device)
    load = watch.lap().real
    llm.logits([0] * WARM_UP_TOKENS)  # the first forward pass includes the one-time initialisation of libraries
    with contextlib.redirect_stderr(io.StringIO()):  # one progress line is enough
        header, records = read(evaluate(task, options, model, counter, lambda: llm))
    summary = summarize(header, records.values(), task.groups)
    overall = summary.overall
    return Measurement(
        questions=overall.questions,
        accuracy=overall.mean,
        stderr=None if math.isnan(overall.stderr) else overall.stderr,
        tokens=summary.tokens,
        load=load,
        real=summary.real,
        cpu=summary.cpu or 0.0,
        gpu=summary.gpu,
        cycles=summary.cycles,
        peak_memory=peak_memory(torch.device("cpu")),
        gpu_memory=peak_memory(device) if device.type == "cuda" else None,
        weights=sum(parameter.nbytes for parameter in llm.model.parameters()),
    )


def report(options: Any, model: str, settings: Mapping[str, Any], results: Sequence[Result]) -> None:
    """Print the table, and write it as Markdown, JSON and a plot."""
    folder, date = results_folder(options, model), f"{datetime.now():%Y-%m-%d %H:%M}"
    title = f"MMLU by device and weight format: {short_name(model, options.adapter)}"
    about = heading(settings, results)
    _print_table(title, about, results)
    missing = unmeasured(results)
    heads, lines = table(results)
    text = [f"# {title}", about, f"{settings['machine']}; {date}", f"    {command_to_continue()}"]
    text += ["\n".join(markdown_table(heads, lines, 2)), "![Time and memory](timing.png)"]
    if missing:
        text += ["Not measured:", "\n".join(markdown_table(["device", "format", "reason"], missing, 3))]
    write_atomic(folder / "timing.md", "\n\n".join(text) + "\n")
    content = {
        "model": model,
        "date": date,
        "command": command_to_continue(),
        "settings": settings,
        "cells": _json_rows(results),
    }
    write_atomic(folder / "timing.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    plot_measurements(results, f"{title}\n{about}", folder / "timing")
    print(f"{folder}/timing.md, .json, .png and .svg", file=sys.stderr)


def _print_table(title: str, about: str, results: Sequence[Result]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    heads, lines = table(results)
    rich_table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False)
    for column, head in enumerate(heads):
        rich_table.add_column(head, justify="left" if column < 2 else "right")
    for line in lines:
        rich_table.add_row(*line)
    console = Console(highlight=False)
    console.width = console.width if console.is_terminal else max(console.width, MIN_WIDTH)
    console.print(f"{title}\n{about}", markup=False, soft_wrap=True)
    console.print(rich_table)
    for row in unmeasured(results):
        console.print("not measured: {} ({}): {}".format(*row), markup=False, soft_wrap=True)


def _json_rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    ratios = speedups(results)
    rows: list[dict[str, Any]] = []
    for result in results:
        row: dict[str, Any] = asdict(result.configuration)
        if result.measurement:
            row |= {**asdict(result.measurement), "speedup": ratios.get(result.configuration)}
        else:
            row |= {"reason": result.reason}
        rows.append(row)
    return rows
