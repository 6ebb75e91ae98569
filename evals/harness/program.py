"""What the benchmarks' programs share: flags, models in turn, tables, exports."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.checkpoints import embedded
from engine.cli.parser import Parser, choose_model
from engine.quant import QUANTS
from engine.runtime.errors import BareloopError, UsageError
from engine.runtime.files import local_path, write_atomic
from evals.data.catalogue import BENCHMARKS
from evals.harness.evaluate import evaluate, renderer, show_all
from evals.harness.identity import results_folder, run_file
from evals.harness.task import Task
from evals.runs.run_file import Key, read, sha256

if TYPE_CHECKING:
    from rich.table import Table

    from evals.runs.summary import Summary

DEVICES, DTYPES = ("cpu", "cuda", "mps"), ("float32", "bfloat16", "float16")  # in the names of run files


def add_run_options(parser: Parser, writes: bool = False) -> None:
    """What every benchmark's program takes; `writes` where models answer in their own words."""
    parser.add_argument("--limit", type=int, metavar="N", help="questions per subject (default: all)")
    parser.add_argument("--chat-template", action="store_true", help="ask through the model's chat template")
    parser.add_argument(
        "--single-turn", action="store_true", help="with --chat-template: the examples in one message, not as turns"
    )
    parser.add_argument(
        "--batch-tokens",
        type=int,
        metavar="N",
        help="tokens computed at once (default: 2,048, on CUDA 16,384)",
    )
    if writes:
        parser.add_argument(
            "--batch-size",
            type=int,
            metavar="N",
            help="questions that are answered side by side (default: 8, on CUDA 32)",
        )
    parser.add_argument("--verbose", action="store_true", help="show each question with the model's answer")
    files = parser.add_argument_group("files")
    files.add_argument("--output-dir", default="results", metavar="FOLDER", help="default: results")
    files.add_argument("--save-question-data", action="store_true", help="write questions and answers to one file")
    files.add_argument("--fresh", action="store_true", help="begin anew; an earlier run is put aside, not deleted")
    files.add_argument("--rescore", action="store_true", help="tables and exports from the run file, without a model")
    files.add_argument(
        "--requests-only", metavar="FILE", help="write every request as JSON lines, and score nothing (- is stdout)"
    )


def check_run_options(options: Any) -> None:
    """Refuse what makes no sense before anything is loaded."""
    for flag in ("limit", "batch_tokens", "batch_size"):
        value = getattr(options, flag, None)
        if value is not None and value < 1:
            raise UsageError(f"--{flag.replace('_', '-')} {value}: use 1 or more")
    if options.single_turn and not options.chat_template:
        raise UsageError("--single-turn is a way to use the chat template; add --chat-template")
    if options.fresh and options.rescore:
        raise UsageError("--fresh begins a run anew and --rescore reads one; use one of them")


def run_program(options: Any, load_task: Callable[[Any], Task], name: str) -> list[Summary]:
    """A benchmark's whole program, after its flags: score, tell, export.

    Where no data is named, the embedded model is asked its own questions of MMLU, and others those of the hub.
    """
    check_run_options(options)
    if not options.requests_only or options.chat_template:
        choose_model(options)
    choose_data(options, name)
    if options.requests_only:
        write_requests(load_task(options), options)
        return []
    from engine.runtime.cycles import CycleCounter

    counter = CycleCounter()  # before torch starts its threads
    task = load_task(options)

    from engine.checkpoints.hub import find_model

    refuse_shared_folders(options)
    for model in options.model if not options.rescore else ():
        find_model(model, options.allow_pickle)  # what is wrong with a name is told before hours of work, not after
    summaries = []
    for model in options.model:
        path = find_run(task, options, model) if options.rescore else evaluate(task, options, model, counter)
        summaries.append(conclude(task, options, path))
    if len(summaries) > 1:
        from evals.runs.summary import accuracy_table

        print_table(f"{task.title}, {len(summaries)} runs", accuracy_table(summaries))
    return summaries


def choose_data(options: Any, name: str) -> None:
    """Where no data is named: the hub's, and of MMLU the embedded model's own."""
    if options.data is None:
        own = name == "mmlu" and set(options.model or ()) == {embedded.NAME}
        options.data = embedded.NAME if own else BENCHMARKS[name].data


def refuse_shared_folders(options: Any) -> None:
    """Two models whose files would go to one folder."""
    folders: dict[Path, str] = {}
    for model in options.model:
        other = folders.setdefault(results_folder(options, model), model)
        if other != model:
            raise UsageError(
                f"{other} and {model} would share one folder of results; score them apart, with --output-dir"
            )


def write_requests(task: Task, options: Any) -> None:
    """--requests-only: every request as a line of JSON, in order."""
    render = None
    if options.chat_template:
        from engine.checkpoints.hub import find_model

        render = renderer(find_model(options.model[0], options.allow_pickle))
    lines = (
        json.dumps({"task": task.full_name(item.subject), "doc": item.index, "context": context, "continuation": own})
        + "\n"
        for rows in task.questions.values()
        for item in (task.item(row, render) for row in rows[: task.limit])
        for context, own in item.requests
    )
    if options.requests_only == "-":
        sys.stdout.writelines(lines)
    else:
        write_atomic(local_path(options.requests_only), lines)


def find_run(task: Task, options: Any, model: str) -> Path:
    """The run file of an earlier run; raises one line where there is none, or where flags leave a choice."""
    devices = DEVICES if options.device == "auto" else [options.device.partition(":")[0]]
    dtypes = DTYPES if options.dtype == "auto" else [options.dtype]
    others = QUANTS if options.quant == "none" else ()  # a checkpoint may be quantized itself
    for quants in ((options.quant,), others):
        files = [run_file(task, options, model, *cell) for cell in product(devices, dtypes, quants)]
        found = [path for path in files if path.exists() and path.stat().st_size]
        if found:
            break
    else:
        raise BareloopError(f"no run to rescore: there is no {run_file(task, options, model, '*', '*', options.quant)}")
    if len(found) > 1:
        listed = ", ".join(path.name for path in found)
        raise UsageError(f"{found[0].parent} has several runs ({listed}); choose with --device, --dtype and --quant")
    header, records = read(found[0])
    if task.questions and header["data"] != task.digest:
        raise BareloopError(f"{found[0]} was scored on other data than --data {options.data}")
    if options.verbose:
        show_all(task, task.select(records))
    return found[0]


def conclude(task: Task, options: Any, path: Path) -> Summary:
    """Print what a run file says of a task, and write its exports beside it."""
    from evals.runs.summary import accuracy_table, cost_lines, summarize

    header, everything = read(path)
    records = task.select(everything)
    if not records:
        raise BareloopError(f"{path} has none of these questions, and {len(everything)} others")
    summary = summarize(header, records.values(), task.groups)
    print_table(f"{task.title}, {summary.setting}", accuracy_table([summary]))
    for line in cost_lines(summary):
        print(line)
    if missing := len(task.wanted - records.keys()):
        print(f"{missing} questions are not scored yet")
    export(task, options, path, header, records, summary)
    return summary


def print_table(title: str, table: Table) -> None:
    """A title and a table; as wide as it must be where there is no terminal."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, console.measure(table, options=console.options.update(width=10_000)).maximum)
    console.print(title, markup=False, soft_wrap=True)
    console.print(table)


def export(
    task: Task, options: Any, path: Path, header: dict[str, Any], records: Mapping[Key, Any], summary: Summary
) -> None:
    """Write results and samples in lm-evaluation-harness's shapes, and what --save-question-data asks for."""
    from engine.checkpoints.hub import find_model
    from evals.runs.export import first_context, question_data, results, samples, task_hash

    time = datetime.now().isoformat().replace(":", "-")
    hashes = {}
    questions, render = task.questions, None
    if header["chat"] and questions:
        try:
            render = renderer(find_model(header["model"]), datetime.fromisoformat(header["date"]))
        except BareloopError as error:
            if not options.rescore:
                raise
            print(f"no samples are written, which need the chat template: {error}", file=sys.stderr)
            questions = {}
    for subject, rows in questions.items():
        own = [(row, records[subject, place]) for place, row in enumerate(rows) if (subject, place) in records]
        told = [
            line
            for row, record in own
            for line in samples(task.doc(row), task.target(row), task.item(row, render).requests, record)
        ]
        if changed := [line["doc_id"] for line in told if line["prompt_hash"] != sha256(first_context(line))]:
            raise BareloopError(
                f"{path}: the prompts of {subject} are not those that were scored, from {changed[0]} on"
            )
        name = task.full_name(subject)
        hashes[name] = task_hash(told)
        lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in told)
        write_atomic(path.with_name(f"samples_{name}_{time}.jsonl"), lines)
    file = path.with_name(f"results_{time}.json")
    configs = {task.full_name(subject): task.config(subject) for subject in task.questions}
    sizes = {subject: len(rows) for subject, rows in task.questions.items()}
    exported = results(summary, header, configs, sizes, hashes, task.groups, task.limit, task.version)
    write_atomic(file, json.dumps(exported, indent=2, ensure_ascii=False) + "\n")
    print(f"records: {path}\nresults: {file}", file=sys.stderr)
    if options.save_question_data and task.questions:
        file = path.with_name(path.name.removesuffix(".run.jsonl") + "_questions.json")
        rows_of = {key: task.questions[key[0]][key[1]] for key in sorted(records)}
        docs = {key: {**task.doc(row), **task.text(row)} for key, row in rows_of.items()}
        write_atomic(file, json.dumps(question_data(docs, records), indent=2, ensure_ascii=False) + "\n")
        print(f"questions: {file}", file=sys.stderr)
