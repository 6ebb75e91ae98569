"""python -m evals run: every benchmark with every model in every weight format, each run in its own process.

Finished runs are not computed again, and a failed one does not end the others: the same command continues.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from engine.cli.parser import Parser
from engine.cli.parser import run as run_main
from engine.quant import AUTO, canonical_or_auto
from engine.runtime.errors import BareloopError, UsageError
from engine.runtime.files import local_path
from evals.data.catalogue import BENCHMARKS
from evals.harness.evaluate import command_to_continue
from evals.harness.program import add_remote_options, check_run_options, choose_models, refuse_shared_folders
from evals.harness.subprocess_call import run_in_subprocess
from evals.harness.workers.driver import add_worker_options, open_pools
from evals.runs.collection import format_rank
from evals.runs.run_file import REMOTE
from evals.studies.matrix import MatrixRun, report

if TYPE_CHECKING:
    from evals.harness.task import Task
    from evals.runs.summary import Summary


def parser() -> Parser:
    """Return the program's parser."""
    result = Parser("python -m evals run", "Score models on benchmarks in weight formats; continue unfinished runs.")

    def add_list(name: str, metavar: str, text: str, **more: Any) -> None:
        result.add_argument(name, action="extend", nargs="+", metavar=metavar, help=text, **more)

    known = ", ".join(BENCHMARKS)
    add_list("--tasks", "TASK", f"{known} (default: mmlu)", choices=tuple(BENCHMARKS), type=_task)
    result.add_model_options(without=("quant",))
    add_list("--quant", "FORMAT", "weight formats: none, int8, int4 … (default: auto, as in python -m engine)")
    result.add_argument(
        "--data", metavar="FOLDER", help="folder with a subfolder of data for each task (default: from the hub)"
    )
    add_list("--subjects", "SUBJECT", "subjects of MMLU: names, groups, or all")
    result.add_argument("--shots", type=int, metavar="N", help="solved examples (default: the benchmark's)")
    result.add_argument("--limit", type=int, metavar="N", help="questions per subject (default: all)")
    result.add_argument("--chat-template", action="store_true", help="format prompts with the models' chat templates")
    result.add_argument("--batch-tokens", type=int, metavar="N", help="tokens computed in one forward pass")
    result.add_argument("--batch-size", type=int, metavar="N", help="answers generated in parallel")
    add_worker_options(result)
    add_remote_options(result)
    result.add_argument("--output-dir", default="results", metavar="FOLDER", help="default: results")
    result.add_argument(
        "--save-question-data", action="store_true", help="write questions and answers to a file beside each run"
    )
    result.add_argument("--fresh", action="store_true", help="start over; earlier runs are renamed to *.old")
    result.set_defaults(single_turn=False, rescore=False)
    return result


def main(options: Any) -> None:
    """Run everything, then print the table."""
    check_run_options(options)
    choose_models(options)
    tasks, models = list(dict.fromkeys(options.tasks or ["mmlu"])), list(dict.fromkeys(options.model))
    options.model = models
    refuse_shared_folders(options)
    requested = {REMOTE} if options.url else {canonical_or_auto(name) for name in options.quant or [AUTO]}
    automatic = run_in_subprocess(choose_formats, options, debug=options.debug) if AUTO in requested else {}
    runs = [
        MatrixRun(task, model, quant, options.adapter)
        for task, model in product(tasks, models)
        for quant in sorted({automatic[model] if name == AUTO else name for name in requested}, key=format_rank)
    ]
    arguments = {run: flags(options, run) for run in runs}
    summaries: dict[MatrixRun, Summary] = {}
    failures: list[MatrixRun] = []
    for number, run in enumerate(runs, 1):
        print(f"[{number}/{len(runs)}] {run}", file=sys.stderr, flush=True)
        try:
            summaries[run] = run_in_subprocess(score, run.task, arguments[run], debug=options.debug)
        except KeyboardInterrupt:
            message = f"interrupted in run {number} of {len(runs)}; all answers are saved"
            raise KeyboardInterrupt(f"{message}; to continue: {command_to_continue()}") from None
        except BareloopError as error:
            failures.append(run)
            print(f"{run} failed: {error}", file=sys.stderr, flush=True)
    if summaries:
        report(local_path(options.output_dir), tasks, runs, summaries)
    if failures:
        names = "; ".join(map(str, failures))
        raise BareloopError(f"{len(failures)} of {len(runs)} runs failed ({names}); the same command tries them again")


def _task(name: str) -> str:
    if name == "mt_bench":
        raise ArgumentTypeError("mt_bench has a program of its own: python -m evals.mt_bench")
    return name


def choose_formats(options: Any) -> dict[str, str]:
    """Return the weight format of every model in quant `auto`. A model that does not open fails in its own run."""
    from engine.checkpoints.opening import open_model
    from engine.runtime.device import choose_device

    formats = {}
    for model in options.model:
        formats[model] = "none"
        with contextlib.suppress(BareloopError):
            device = choose_device(options.device)
            opened = open_model(model, options.dtype, options.allow_pickle, AUTO, device, options.adapter)
            formats[model] = opened.quant
    return formats


def flags(options: Any, run: MatrixRun) -> list[str]:
    """Return the arguments of the benchmark's program for one run."""
    arguments = ["-m", run.model, "--output-dir", options.output_dir]
    if options.url:
        arguments += ["--url", *options.url]
    else:
        arguments += ["--quant", run.quant, "--device", options.device, "--dtype", options.dtype]
    if options.data is not None:
        folder = local_path(options.data) / run.task
        if not folder.is_dir():
            raise UsageError(f"--data {options.data} has no folder {run.task}; name one with a folder for each task")
        arguments += ["--data", str(folder)]
    if options.subjects and run.task == "mmlu":
        arguments += ["--subjects", *options.subjects]
    benchmark = BENCHMARKS[run.task]
    values = {name: getattr(options, name) for name in ("limit", "batch_tokens", "max_length", "concurrency")}
    values |= {name: getattr(options, name) for name in ("api_key_file", "tokenizer", "adapter", "ray_address")}
    values |= {"workers": options.workers}
    values |= {"shots": options.shots} if benchmark.has_examples else {}
    values |= {"batch_size": options.batch_size} if benchmark.generates else {}
    for name, value in values.items():
        arguments += [f"--{name.replace('_', '-')}", str(value)] if value is not None else []
    switches = ("chat_template", "save_question_data", "fresh", "allow_pickle", "debug", "mixed_devices")
    return arguments + [f"--{name.replace('_', '-')}" for name in switches if getattr(options, name)]


def benchmark_program(task: str) -> tuple[Parser, Callable[[Any], list[Task]]]:
    """Return a benchmark's parser, and the function that loads its tasks from parsed flags."""
    module = importlib.import_module(f"evals.{task}")
    return module.parser(), module.load_tasks


def score(name: str, arguments: Sequence[str]) -> Summary:
    """Evaluate one run and write its exports. Its table is not printed."""
    from engine.runtime.cycles import CycleCounter
    from evals.harness.program import answer, choose_data, conclude

    counter = CycleCounter()  # must be created before torch starts its threads
    parser, load_tasks = benchmark_program(name)
    options = parser.parse_args(arguments)
    choose_data(options, name)
    (task,) = load_tasks(options)
    with open_pools(name, options) as pools:
        model = options.model[0]
        path = answer(task, options, model, counter) if pools is None else pools.evaluate(task, 0, model, counter)
    with contextlib.redirect_stdout(io.StringIO()):
        return conclude(task, options, path)


if __name__ == "__main__":
    run_main(parser(), main)
