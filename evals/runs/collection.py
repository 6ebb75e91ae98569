"""Load run files and group the runs that can be compared: one benchmark, one setting, the same data. No torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engine.quant import QUANTS
from engine.runtime.errors import BareloopError, UsageError
from engine.runtime.files import local_path
from evals.data.catalogue import BENCHMARKS
from evals.runs.run_file import Key, read
from evals.runs.summary import prompt_setting, run_name

RUN_SUFFIX = ".run.jsonl"
QUESTIONS_SUFFIX = "_questions.json"  # of the file that --save-question-data writes beside a run file
SETTING_FIELDS = ("task", "split", "shots", "chat", "single_turn")  # header fields that compared runs have in common
TIMING_FILE = "timing.jsonl"  # marks a folder of evals.timing, whose run files are not results


@dataclass(frozen=True)
class Run:
    """One run file: a model in one setting, and its records."""

    path: Path
    header: Mapping[str, Any]
    records: Mapping[Key, Mapping[str, Any]]
    label: str  # the model's short name, with as much of the setting as makes it unique among compared runs

    @property
    def questions_file(self) -> Path:
        """Path of the question texts that --save-question-data writes."""
        return self.path.with_name(self.path.name.removesuffix(RUN_SUFFIX) + QUESTIONS_SUFFIX)


@dataclass(frozen=True)
class Group:
    """Runs of one benchmark in one setting on the same data, and the questions that all of them answered."""

    title: str  # such as "MMLU, 5-shot"
    task: str
    runs: list[Run]
    keys: list[Key]  # sorted
    texts: Mapping[Key, Mapping[str, Any]] = field(default_factory=dict)  # saved questions and choices, if any

    @property
    def subjects(self) -> list[str]:
        """Subjects with at least one question."""
        return list(dict.fromkeys(subject for subject, _ in self.keys))

    @property
    def has_choices(self) -> bool:
        """True for multiple-choice questions, False for generated answers."""
        return "loglikelihoods" in self.runs[0].records[self.keys[0]]

    @property
    def correct(self) -> list[list[bool]]:
        """Whether each run answered each question correctly: [run][question]."""
        return [[bool(run.records[key]["correct"]) for key in self.keys] for run in self.runs]


def load_runs(paths: Sequence[str], may_be_empty: bool = False) -> list[Run]:
    """Load the given run files, and the run files in the given folders and their subfolders.

    The runs come back in the order of `in_order`. Other files in a folder are ignored; an empty or damaged run file in
    a folder is reported on stderr and skipped. Raises `BareloopError` for a path that does not exist, for a given file
    that is not a run file, and if there is no run at all unless `may_be_empty`.
    """
    runs: dict[Path, Run] = {}
    for name in paths:
        path = local_path(name)
        if path.is_dir():
            for file in sorted(path.rglob(f"*{RUN_SUFFIX}")):
                if any((parent / TIMING_FILE).exists() for parent in file.parents[:3]):
                    continue
                try:
                    runs.setdefault(file.resolve(), _load(file))
                except BareloopError as error:
                    print(f"skipped: {error}", file=sys.stderr)
        elif path.exists():
            runs.setdefault(path.resolve(), _load(path))
        else:
            raise BareloopError(f"no such file or folder: {name}")
    if not runs and not may_be_empty:
        raise BareloopError(f"no run files (*{RUN_SUFFIX}) in {', '.join(map(str, paths))}; score a model first")
    return in_order(runs.values())


def in_order(runs: Iterable[Run]) -> list[Run]:
    """Sort runs for display: models in order of first appearance, each model's plain run before its weight formats."""
    listed = list(runs)
    models = list(dict.fromkeys(map(_model, listed)))
    return sorted(listed, key=lambda run: (models.index(_model(run)), format_rank(run.header["quant"])))


def _model(run: Run) -> tuple[str, str | None]:
    """Return a run's model and adapter."""
    return run.header["model"], run.header.get("adapter")


def format_rank(quant: str) -> int:
    """Return the place of a weight format in tables: `none` first, then as `--help` lists them, unknown ones last."""
    return QUANTS.index(quant) if quant in QUANTS else len(QUANTS)


def group_runs(runs: Sequence[Run], min_runs: int = 1) -> list[Group]:
    """Group runs by benchmark, setting and data, in the catalogue's order; skip groups of fewer than `min_runs` runs.

    Runs on different data form separate groups, which is reported on stderr. Raises `BareloopError` if that leaves
    nothing to compare or if grouped runs have no question in common, and `UsageError` if all groups are too small.
    """
    by_setting: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        setting = tuple(run.header[name] for name in (*SETTING_FIELDS, "data"))
        by_setting.setdefault(setting, []).append(run)
    tasks = list(BENCHMARKS)
    settings = sorted(by_setting, key=lambda key: (tasks.index(key[0]) if key[0] in tasks else len(tasks), key[1:]))
    groups = [_group(by_setting[setting]) for setting in settings if len(by_setting[setting]) >= min_runs]
    first_runs: dict[tuple[Any, ...], Run] = {}
    for setting in settings:
        run = by_setting[setting][0]
        first = first_runs.setdefault(setting[:-1], run)
        if first is not run:
            message = f"{first.path} and {run.path} were scored on different data and cannot be compared"
            if not groups:
                raise BareloopError(f"{message}; name the run files of one data set")
            print(message, file=sys.stderr)
    if not groups:
        raise UsageError(
            f"a comparison needs {min_runs} runs of one benchmark in one setting; there is only one run of each "
            f"(such as {runs[0].path}); score another model, or name its results too"
        )
    return groups


def split_unpooled(group: Group) -> list[Group]:
    """Return one group per subject if a mean over the benchmark's subjects is meaningless, otherwise the group itself.

    TruthfulQA's subjects, for example, ask the same questions in two ways.
    """
    benchmark = BENCHMARKS.get(group.task)
    if benchmark is None or benchmark.pools or len(group.subjects) == 1:
        return [group]
    return [
        replace(group, title=f"{group.title}: {subject}", keys=[key for key in group.keys if key[0] == subject])
        for subject in group.subjects
    ]


def with_unique_labels(runs: Sequence[Run]) -> list[Run]:
    """Extend labels that occur more than once by the number format, device, folder or path, as far as needed."""
    details: list[Callable[[Run], str]] = [
        lambda run: run.header["dtype"],
        lambda run: run.header["device"],
        lambda run: run.path.parent.name,
        lambda run: str(run.path),
    ]
    result = list(runs)
    for detail in details:
        labels = [run.label for run in result]
        if len(set(labels)) == len(labels):
            break
        if len({detail(run) for run in result}) > 1:
            result = [
                replace(run, label=f"{run.label} {detail(run)}") if labels.count(run.label) > 1 else run
                for run in result
            ]
    return result


def _group(runs: list[Run]) -> Group:
    first, *others = runs
    common = set(first.records).intersection(*(run.records for run in others))
    if not common:
        paths = ", ".join(str(run.path) for run in runs)
        raise BareloopError(f"these runs have no question in common: {paths}; score them on the same subjects")
    task = first.header["task"]
    benchmark = BENCHMARKS.get(task)
    title = f"{benchmark.title if benchmark else task}, {prompt_setting(first.header)}"
    return Group(title, task, with_unique_labels(runs), sorted(common), _load_texts(runs))


def _load(path: Path) -> Run:
    header, records = read(path)
    if not records:
        raise BareloopError(f"{path} has no records: nothing has been scored yet")
    return Run(path, header, records, run_name(header["model"], header["quant"], header.get("adapter")))


def _load_texts(runs: Sequence[Run]) -> dict[Key, Mapping[str, Any]]:
    """Merge the saved question files of several runs; the first run's texts win."""
    texts: dict[Key, Mapping[str, Any]] = {}
    for run in reversed(runs):
        try:
            rows = json.loads(run.questions_file.read_text(encoding="utf-8"))
            texts |= {(row["subject"], row["index"]): _without_invalid_texts(row) for row in rows}
        except FileNotFoundError:
            continue
        except (OSError, ValueError, TypeError, KeyError):
            print(f"skipped: {run.questions_file} is not a file of saved questions", file=sys.stderr)
    return texts


def _without_invalid_texts(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Drop `question` if it is not a string and `choices` if it is not a list of strings."""
    choices = row.get("choices")
    invalid = set() if isinstance(row.get("question"), str) else {"question"}
    if not (isinstance(choices, list) and all(isinstance(choice, str) for choice in choices)):
        invalid.add("choices")
    return {name: value for name, value in row.items() if name not in invalid}
