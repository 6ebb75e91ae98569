"""Run files -> what can be compared: runs of one benchmark in one setting, on the same data. No model, no torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engine.runtime.errors import BareloopError, UsageError
from engine.runtime.files import local_path
from evals.data.catalogue import BENCHMARKS
from evals.runs.run_file import Key, read
from evals.runs.summary import asked, run_name

ENDING = ".run.jsonl"
SETTING = ("task", "split", "shots", "chat", "single_turn")  # what runs that are compared have in common
TIMING = "timing.jsonl"  # beside what evals.timing scores for its own use
QUESTIONS = "_questions.json"  # what --save-question-data writes beside a run file


@dataclass(frozen=True)
class Run:
    """One run file: a model in a setting, and its records."""

    path: Path
    header: Mapping[str, Any]
    records: Mapping[Key, Mapping[str, Any]]
    label: str  # the model's short name, and what else tells it from the others

    @property
    def questions_file(self) -> Path:
        """Where --save-question-data puts the texts."""
        return self.path.with_name(self.path.name.removesuffix(ENDING) + QUESTIONS)


@dataclass(frozen=True)
class Group:
    """Runs of one benchmark, asked in the same way on the same data, and the questions that all of them answered."""

    title: str  # MMLU, 5-shot
    task: str
    runs: list[Run]
    keys: list[Key]  # in order
    texts: Mapping[Key, Mapping[str, Any]] = field(default_factory=dict)  # where saved: question, choices

    @property
    def subjects(self) -> list[str]:
        """Those that have a question here."""
        return list(dict.fromkeys(subject for subject, _ in self.keys))

    @property
    def has_choices(self) -> bool:
        """Whether its questions have choices; else the models answered in their own words."""
        return "loglikelihoods" in self.runs[0].records[self.keys[0]]

    @property
    def correct(self) -> list[list[bool]]:
        """Of each run, whether each of the questions was answered correctly."""
        return [[bool(run.records[key]["correct"]) for key in self.keys] for run in self.runs]


def load(paths: Sequence[str]) -> list[Run]:
    """The runs in these run files and folders (and theirs), in the paths' order, told apart by their labels.

    Other files in a folder are passed over; a run file there that is empty or damaged is named on stderr and left out.
    Raises one line for a path that is not there, a named file that is no run file, and where there is no run at all.
    """
    runs: dict[Path, Run] = {}
    for name in paths:
        path = local_path(name)
        if path.is_dir():
            for file in sorted(path.rglob(f"*{ENDING}")):
                if any((parent / TIMING).exists() for parent in file.parents[:3]):
                    continue  # a cell of evals.timing
                try:
                    runs.setdefault(file.resolve(), _read(file))
                except BareloopError as error:
                    print(f"left out: {error}", file=sys.stderr)
        elif path.exists():
            runs.setdefault(path.resolve(), _read(path))
        else:
            raise BareloopError(f"no such file or folder: {name}")
    if not runs:
        raise BareloopError(f"no run files (*{ENDING}) in {', '.join(map(str, paths))}; score a model first")
    return list(runs.values())


def groups(runs: Sequence[Run], least: int = 1) -> list[Group]:
    """What can be compared, in the catalogue's order; groups of fewer than `least` runs are left out.

    Runs on different data are in groups of their own, which is told on stderr. Raises one line where that leaves
    nothing to compare, where runs have no question in common, or where they are all too few.
    """
    by_setting: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        setting = tuple(run.header[name] for name in (*SETTING, "data"))
        by_setting.setdefault(setting, []).append(run)
    known = list(BENCHMARKS)
    order = sorted(by_setting, key=lambda own: (known.index(own[0]) if own[0] in known else len(known), own[1:]))
    found = [_group(by_setting[setting]) for setting in order if len(by_setting[setting]) >= least]
    firsts: dict[tuple[Any, ...], Run] = {}
    for setting in order:
        own = by_setting[setting][0]
        first = firsts.setdefault(setting[:-1], own)
        if first is not own:
            told = f"{first.path} and {own.path} were scored on different data, and cannot be compared"
            if not found:
                raise BareloopError(f"{told}; name the run files of one data set")
            print(f"{told} with each other", file=sys.stderr)
    if not found:
        (alone, *_) = runs
        raise UsageError(
            f"a comparison needs {least} runs of one benchmark in one setting, and there are only single ones "
            f"(such as {alone.path}); score another model, or name its results too"
        )
    return found


def parts(group: Group) -> list[Group]:
    """The group, or where a benchmark's subjects are no whole (the same questions in other ways), each subject's."""
    benchmark = BENCHMARKS.get(group.task)
    if benchmark is None or benchmark.pools or len(group.subjects) == 1:
        return [group]
    return [
        replace(group, title=f"{group.title}: {subject}", keys=[key for key in group.keys if key[0] == subject])
        for subject in group.subjects
    ]


def _group(runs: list[Run]) -> Group:
    first, *others = runs
    common = set(first.records).intersection(*(run.records for run in others))
    if not common:
        listed = ", ".join(str(run.path) for run in runs)
        raise BareloopError(f"these runs have no question in common: {listed}; score them on the same subjects")
    benchmark = BENCHMARKS.get(first.header["task"])
    title = f"{benchmark.title if benchmark else first.header['task']}, {asked(first.header)}"
    return Group(title, first.header["task"], labelled(runs), sorted(common), _texts(runs))


def labelled(runs: Sequence[Run]) -> list[Run]:
    """The runs, each under a label of its own: the model's name, its weight format, and what else it takes."""
    more: list[Callable[[Run], str]] = [
        lambda run: run.header["dtype"],
        lambda run: run.header["device"],
        lambda run: run.path.parent.name,
        lambda run: str(run.path),
    ]
    result = list(runs)
    for part in more:
        labels = [run.label for run in result]
        if len(set(labels)) == len(labels):
            break
        if len({part(run) for run in result}) > 1:
            result = [
                replace(run, label=f"{run.label} {part(run)}") if labels.count(run.label) > 1 else run for run in result
            ]
    return result


def _read(path: Path) -> Run:
    header, records = read(path)
    if not records:
        raise BareloopError(f"{path} has no records: nothing has been scored yet")
    return Run(path, header, records, run_name(header["model"], header["quant"]))


def _texts(runs: Sequence[Run]) -> dict[Key, Mapping[str, Any]]:
    """What the first file of questions says that can be read; later ones add what is missing."""
    texts: dict[Key, Mapping[str, Any]] = {}
    for run in reversed(runs):
        try:
            rows = json.loads(run.questions_file.read_text(encoding="utf-8"))
            texts |= {(row["subject"], row["index"]): _readable(row) for row in rows}
        except FileNotFoundError:
            continue
        except (OSError, ValueError, TypeError, KeyError):
            print(f"left out: {run.questions_file} cannot be read as saved questions", file=sys.stderr)
    return texts


def _readable(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A saved question without what is no text where there should be one."""
    choices = row.get("choices")
    is_listed = isinstance(choices, list) and all(isinstance(choice, str) for choice in choices)
    dropped = set() if isinstance(row.get("question"), str) else {"question"}
    dropped |= set() if is_listed else {"choices"}
    return {name: value for name, value in row.items() if name not in dropped}
