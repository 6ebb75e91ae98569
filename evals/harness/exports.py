"""Files beside a run file: lm-evaluation-harness's results and samples, and the questions with their answers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.runtime.errors import BareloopError
from engine.runtime.files import write_atomic
from evals.harness.evaluate import load_template
from evals.harness.task import Task
from evals.runs.collection import QUESTIONS_SUFFIX, RUN_SUFFIX
from evals.runs.export import first_context, question_data, results, samples, task_hash
from evals.runs.run_file import REMOTE, Key, sha256

if TYPE_CHECKING:
    from evals.harness.prompts import Render
    from evals.runs.summary import Summary


def write_exports(
    task: Task, options: Any, path: Path, header: dict[str, Any], records: Mapping[Key, Any], summary: Summary
) -> None:
    """Write `results_<time>.json` and `samples_<task>_<time>.jsonl`, unless files with this content exist.

    With --save-question-data, also the questions with their answers.
    """
    configs = {task.full_name(subject): task.harness_config(subject) for subject in task.questions}
    sizes = {subject: len(rows) for subject, rows in task.questions.items()}
    content = results(summary, header, configs, sizes, {}, task.groups, task.limit, task.version)
    file = find_results(path.parent, content, configs)
    if file is None:
        time = datetime.now().isoformat().replace(":", "-")
        content["task_hashes"] = write_samples(task, options, path, header, records, time)
        file = path.with_name(f"results_{time}.json")
        write_atomic(file, _as_json(content))
    print(f"records: {path}\nresults: {file}", file=sys.stderr)
    if options.save_question_data and task.questions:
        file = path.with_name(path.name.removesuffix(RUN_SUFFIX) + QUESTIONS_SUFFIX)
        rows = {key: task.questions[key[0]][key[1]] for key in sorted(records)}
        docs = {key: {**task.doc(row), **task.display_fields(row)} for key, row in rows.items()}
        text = _as_json(question_data(docs, records))
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            write_atomic(file, text)
        print(f"questions: {file}", file=sys.stderr)


def find_results(folder: Path, content: Mapping[str, Any], names: Iterable[str]) -> Path | None:
    """Return an existing results file with this content, except for its task hashes, if all its samples exist, too.

    `names`: full names of the subjects that need samples.
    """
    needed = set(names)
    expected = json.loads(_as_json({**content, "task_hashes": {}}))
    for path in sorted(folder.glob("results_*.json")):
        try:
            existing = json.loads(path.read_text(encoding="utf-8"))
            hashes = set(existing["task_hashes"])
            is_equal = {**existing, "task_hashes": {}} == expected
        except (OSError, ValueError, TypeError, KeyError):  # not a file of ours
            continue
        time = path.stem.removeprefix("results_")
        if is_equal and hashes >= needed and all((folder / samples_name(name, time)).exists() for name in hashes):
            return path
    return None


def samples_name(name: str, time: str) -> str:
    """Return the file name of a subject's samples."""
    return f"samples_{name}_{time}.jsonl"


def write_samples(
    task: Task, options: Any, path: Path, header: Mapping[str, Any], records: Mapping[Key, Any], time: str
) -> dict[str, str]:
    """Write the samples of each subject beside the run file `path`. Return their hashes by full name.

    Nothing is written without the data, nor if the chat template is missing with --rescore or a server does not give it
    any more. Raises `BareloopError` if the prompts are not those that were scored.
    """
    render: Render | None = None
    if header["chat"] and task.questions:
        try:
            render = _scored_template(options, header)
        except BareloopError as error:
            if not options.rescore and header["device"] != REMOTE:
                raise
            print(f"no samples are written, as they need the chat template: {error}", file=sys.stderr)
            return {}
    hashes = {}
    for subject, rows in task.questions.items():
        lines = _subject_samples(task, subject, rows, records, render)
        if changed := [line["doc_id"] for line in lines if line["prompt_hash"] != sha256(first_context(line))]:
            raise BareloopError(f"{path}: the prompts of {subject} differ from those scored, from {changed[0]} on")
        name = task.full_name(subject)
        hashes[name] = task_hash(lines)
        text = (json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_atomic(path.with_name(samples_name(name, time)), text)
    return hashes


def _scored_template(options: Any, header: Mapping[str, Any]) -> Render:
    """Return the chat template that a run was scored with, at the time of its start."""
    now = datetime.fromisoformat(header["date"])
    if header["device"] == REMOTE:
        from evals.harness.remote.connection import load_remote_template

        if not options.url:
            raise BareloopError("which the servers have; add --url URL")
        return load_remote_template(options, header["model"], now)
    from engine.checkpoints.hub import find_model

    return load_template(find_model(header["model"]), now)


def _subject_samples(
    task: Task, subject: str, rows: Sequence[Any], records: Mapping[Key, Any], render: Render | None
) -> list[dict[str, Any]]:
    scored = [(row, records[subject, index]) for index, row in enumerate(rows) if (subject, index) in records]
    return [
        line
        for row, record in scored
        for line in samples(task.doc(row), task.target(row), task.make_item(row, render).requests, record)
    ]


def _as_json(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
