"""What the programs of all benchmarks share: flags, checks, evaluating several models, tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.checkpoints import embedded
from engine.cli.parser import Parser, choose_model
from engine.quant import AUTO, GGUF, QUANTS
from engine.runtime.errors import BareloopError, UsageError
from engine.runtime.files import local_path, write_atomic
from evals.data.catalogue import BENCHMARKS
from evals.harness.evaluate import ModelLoader, evaluate, load_template, show_records
from evals.harness.exports import write_exports
from evals.harness.identity import results_folder, run_path
from evals.harness.task import Task
from evals.harness.workers.driver import add_worker_options, check_worker_options, open_pools
from evals.runs.run_file import REMOTE, read

if TYPE_CHECKING:
    from rich.table import Table

    from engine import LLM
    from engine.runtime.cycles import CycleCounter
    from evals.runs.summary import Summary

DEVICES, DTYPES = ("cpu", "cuda", "mps"), ("float32", "bfloat16", "float16")  # as in the names of run files


def add_run_options(parser: Parser, generates: bool = False) -> None:
    """Add the flags that all benchmarks share. `generates`: with those for generated answers."""
    parser.add_argument("--limit", type=int, metavar="N", help="questions per subject (default: all)")
    parser.add_argument("--chat-template", action="store_true", help="format prompts with the model's chat template")
    parser.add_argument(
        "--single-turn", action="store_true", help="with --chat-template: the examples in one message, not as turns"
    )
    parser.add_argument(
        "--batch-tokens",
        type=int,
        metavar="N",
        help="tokens computed in one forward pass (default: 2,048, on CUDA 16,384)",
    )
    if generates:
        parser.add_argument(
            "--batch-size", type=int, metavar="N", help="answers generated in parallel (default: 16, on CUDA 32)"
        )
    parser.add_argument("--verbose", action="store_true", help="show each question with the model's answer")
    add_worker_options(parser)
    add_remote_options(parser)
    files = parser.add_argument_group("files")
    files.add_argument("--output-dir", default="results", metavar="FOLDER", help="default: results")
    files.add_argument("--save-question-data", action="store_true", help="write questions and answers to one file")
    files.add_argument("--fresh", action="store_true", help="start over; an earlier run is renamed to *.old")
    files.add_argument(
        "--rescore", action="store_true", help="write tables and exports from the run file, without a model"
    )
    files.add_argument(
        "--requests-only", metavar="FILE", help="write every request as JSON lines and score nothing (- is stdout)"
    )


def add_remote_options(parser: Parser) -> None:
    """Add the flags for models on OpenAI-compatible servers."""
    remote = parser.add_argument_group("servers")
    remote.add_argument(
        "--url",
        action="extend",
        nargs="+",
        metavar="URL",
        help="ask the model -m of one or several OpenAI-compatible servers, in parallel, instead of computing it here",
    )
    remote.add_argument(
        "--api-key-file",
        metavar="FILE",
        help="the servers' key (default: from BARELOOP_API_KEY, else OPENAI_API_KEY)",
    )
    remote.add_argument(
        "--tokenizer",
        metavar="NAME",
        help="the model's tokenizer and chat template, a folder or hub id (default: the server's, which takes longer)",
    )
    remote.add_argument(
        "--max-length", type=int, metavar="N", help="the model's window in tokens (default: the server's, else 2,048)"
    )
    remote.add_argument(
        "--concurrency", type=int, metavar="N", help="questions asked at the same time, of each server (default: 4)"
    )


def check_run_options(options: Any) -> None:
    """Raise `UsageError` for invalid numbers and combinations of flags, before anything is loaded."""
    for flag in ("limit", "batch_tokens", "batch_size", "concurrency"):
        value = getattr(options, flag, None)
        if value is not None and value < 1:
            raise UsageError(f"--{flag.replace('_', '-')} {value}: use 1 or more")
    if options.single_turn and not options.chat_template:
        raise UsageError("--single-turn is a way to use the chat template; add --chat-template")
    if options.fresh and options.rescore:
        raise UsageError("--fresh starts a run over and --rescore reads one; use one of them")
    check_remote_options(options)
    check_worker_options(options)


def check_remote_options(options: Any) -> None:
    """Raise `UsageError` for flags of servers without a server, and for flags that a server decides."""
    is_remote = getattr(options, "url", None) is not None
    remote = dict.fromkeys(("api_key_file", "tokenizer", "max_length", "concurrency"))
    local = {"device": "auto", "dtype": "auto", "gpu_memory": None, "cuda_graphs": True, "allow_pickle": False}
    local |= {"batch_tokens": None, "batch_size": None, "adapter": None}
    quant = getattr(options, "quant", None)
    local |= {"quant": AUTO if isinstance(quant, str) else None}  # a list in evals run
    for name, default in (local if is_remote else remote).items():
        if getattr(options, name, default) != default:
            flag = "--no-cuda-graphs" if name == "cuda_graphs" else f"--{name.replace('_', '-')}"
            reason = (
                "the server with --url decides that; leave it out" if is_remote else "is for servers; add --url URL"
            )
            raise UsageError(f"{flag}: {reason}")
    if is_remote and options.max_length is not None and options.max_length < 16:
        raise UsageError(f"--max-length {options.max_length}: use 16 or more")


def run_program(options: Any, load_tasks: Callable[[Any], Sequence[Task]], name: str) -> list[list[Summary]]:
    """Run a benchmark's program: evaluate every model on every task, print tables, write exports.

    The tasks are settings of one benchmark, such as numbers of shots. A model is loaded once for all of them. Returns
    the summaries by task and model; none with --requests-only.
    """
    check_run_options(options)
    if not options.requests_only or options.chat_template:
        choose_models(options)
    choose_data(options, name)
    if options.requests_only:
        tasks = load_tasks(options)
        if len(tasks) > 1:
            raise UsageError("--requests-only writes the requests of one setting; use one number of --shots")
        write_requests(tasks[0], options)
        return []
    from engine.runtime.cycles import CycleCounter

    counter = CycleCounter()  # must be created before torch starts its threads
    tasks = load_tasks(options)

    refuse_shared_folders(options)
    if not options.rescore and not options.url:
        from engine.checkpoints.hub import locate

        for model in options.model:
            locate(model, options.allow_pickle, options.adapter)  # reports a wrong name before hours of work, not after
    summaries: list[list[Summary]] = [[] for _ in tasks]
    with open_pools(name, options) as pools:
        for model in options.model:
            get_model = ModelLoader(model, options)
            for number, task in enumerate(tasks):
                if options.rescore:
                    path = find_run(task, options, model)
                elif pools is not None:
                    path = pools.evaluate(task, number, model, counter)
                else:
                    path = answer(task, options, model, counter, get_model)
                summaries[number].append(conclude(task, options, path))
    for task, task_summaries in zip(tasks, summaries, strict=True):
        if len(task_summaries) > 1:
            from evals.runs.summary import accuracy_table

            print_table(f"{task.title}, {len(task_summaries)} runs", accuracy_table(task_summaries))
    return summaries


def choose_models(options: Any) -> None:
    """Select the default model if none is named: the only one of the servers with --url, else the demo."""
    if options.url and not options.model:
        from evals.harness.remote.connection import choose_remote_model

        choose_remote_model(options)
    choose_model(options)


def answer(
    task: Task, options: Any, model: str, counter: CycleCounter, get_model: Callable[[], LLM] | None = None
) -> Path:
    """Answer the missing questions here, or by the servers of --url. Return the path of the run file."""
    if options.url:
        from evals.harness.remote.servers import evaluate_remote

        return evaluate_remote(task, options, model)
    return evaluate(task, options, model, counter, get_model)


def choose_data(options: Any, name: str) -> None:
    """Set the default of --data: the benchmark's data set on the hub.

    For MMLU with the demo model: the demo's own questions.
    """
    if options.data is None:
        is_demo = name == "mmlu" and set(options.model or ()) == {embedded.NAME}
        options.data = embedded.NAME if is_demo else BENCHMARKS[name].data


def refuse_shared_folders(options: Any) -> None:
    """Raise `UsageError` if the files of two models would be in one folder."""
    folders: dict[Path, str] = {}
    for model in options.model:
        other = folders.setdefault(results_folder(options, model), model)
        if other != model:
            raise UsageError(
                f"{other} and {model} would share one folder of results; run them separately, with --output-dir"
            )


def write_requests(task: Task, options: Any) -> None:
    """Write every request as a line of JSON, in order, for --requests-only."""
    render = None
    if options.chat_template and options.url:
        from evals.harness.remote.connection import load_remote_template

        render = load_remote_template(options, options.model[0])
    elif options.chat_template:
        from engine.checkpoints.hub import find_model

        render = load_template(find_model(options.model[0], options.allow_pickle))
    items = (task.make_item(row, render) for rows in task.questions.values() for row in rows[: task.limit])
    requests = (
        {
            "task": task.full_name(item.subject),
            "doc": item.index,
            "context": context,
            "continuation": continuation,
        }
        for item in items
        for context, continuation in item.requests
    )
    lines = (json.dumps(request) + "\n" for request in requests)
    if options.requests_only == "-":
        sys.stdout.writelines(lines)
    else:
        write_atomic(local_path(options.requests_only), lines)


def find_run(task: Task, options: Any, model: str) -> Path:
    """Return the path of an existing run file: with --url of a run on servers, else of any.

    Raises `BareloopError` if there is none or if it was scored on other data, and `UsageError` if the flags leave a
    choice between several.
    """
    devices = DEVICES if options.device == "auto" else [options.device.partition(":")[0]]
    dtypes = DTYPES if options.dtype == "auto" else [options.dtype]
    # The checkpoint itself may be quantized, and a GGUF model's own format is what `auto` has chosen for it.
    first = ((GGUF,), ("none",)) if options.quant == AUTO else ((options.quant,),)
    stored_quants = tuple(name for name in QUANTS if name != GGUF) if options.quant in (AUTO, "none") else ()
    paths: list[Path] = []
    for quants in (*first, stored_quants) if not options.url else ():
        if not paths:
            paths = [run_path(task, options, model, *setting) for setting in product(devices, dtypes, quants)]
            paths = [path for path in paths if _has_run(path)]
    remote = run_path(task, options, model, REMOTE)
    if (options.device, options.dtype, options.quant) == ("auto", "auto", AUTO) and _has_run(remote):
        paths.append(remote)
    if not paths:
        setting = (REMOTE,) if options.url else ("*", "*", "*" if options.quant == AUTO else options.quant)
        raise BareloopError(f"no run to rescore: {run_path(task, options, model, *setting)} is missing")
    if len(paths) > 1:
        names = ", ".join(path.name for path in paths)
        hint = ", or --url for that of servers" if remote in paths else ""
        raise UsageError(
            f"{paths[0].parent} has several runs ({names}); choose with --device, --dtype and --quant{hint}"
        )
    header, records = read(paths[0])
    if task.questions and header["data"] != task.digest:
        raise BareloopError(f"{paths[0]} was scored on other data than --data {options.data}")
    if options.verbose:
        show_records(task, task.select(records))
    return paths[0]


def _has_run(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def conclude(task: Task, options: Any, path: Path) -> Summary:
    """Print the tables of a run file and write its exports."""
    from evals.runs.summary import accuracy_table, cost_lines, summarize

    header, all_records = read(path)
    records = task.select(all_records)
    if not records:
        raise BareloopError(f"{path} has none of these questions, only {len(all_records)} others")
    summary = summarize(header, records.values(), task.groups)
    print_table(f"{task.title}, {summary.setting}", accuracy_table([summary]))
    for line in cost_lines(summary):
        print(line)
    if missing := len(task.wanted - records.keys()):
        print(f"{missing} questions have not been scored yet")
    write_exports(task, options, path, header, records, summary)
    return summary


def print_table(title: str, table: Table) -> None:
    """Print a title and a table. If stdout is not a terminal, the table is as wide as its content."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, console.measure(table, options=console.options.update(width=10_000)).maximum)
    console.print(title, markup=False, soft_wrap=True)
    console.print(table)
