"""The questions of MMLU, from the hub or from local files."""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from engine.checkpoints import embedded
from engine.runtime.errors import BareloopError, UsageError, quote
from engine.runtime.rows import hub_rows, json_lines, parquet_rows
from evals.data.question import LETTERS, MMLUQuestion
from evals.data.source import data_folder
from evals.data.subjects import GROUPS

OTHER_CONFIGURATIONS = ("all", "auxiliary_train")  # of the hub's data set, beside its subjects
SUBJECT = re.compile(r"\w[\w.-]*")  # part of file names
CSV_SPLITS = {"validation": "val"}  # names of splits in the original files


class MMLU:
    """The questions of MMLU by subject and split.

    `source` is one of:
    - a folder with `<split>.jsonl` or `<split>.jsonl.gz` (one row per line, with its subject),
      `<subject>/<split>-*.parquet`, or the original `<split>/<subject>_<split>.csv`
    - a hub data set with a configuration "all", such as cais/mmlu
    - "demo", the embedded model's own questions
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.folder = embedded.QUESTIONS if source == embedded.NAME else data_folder(source)
        self._splits: dict[str, dict[str, list[MMLUQuestion]]] = {}

    def split(self, name: str) -> dict[str, list[MMLUQuestion]]:
        """Return all questions of a split by subject: subjects in alphabetical order, rows in file order."""
        if name not in self._splits:
            questions = self._load_local(self.folder, name) if self.folder else self._load_hub(name)
            if not questions:
                csv_name = CSV_SPLITS.get(name, name)
                raise BareloopError(
                    f"{self.source} has no {name} split: no {name}.jsonl(.gz), no <subject>/{name}-*.parquet, "
                    f"no {csv_name}/<subject>_{csv_name}.csv"
                )
            self._splits[name] = dict(sorted(questions.items()))
        return self._splits[name]

    def choose(self, names: Sequence[str], split: str) -> list[str]:
        """Return the subjects of a split that `names` selects; see `choose`."""
        return choose(names, list(self.split(split)), f"the {split} split of {self.source}")

    def digest(self, *splits: str) -> str:
        """Return a SHA-256 of all rows of these splits; it does not depend on the file format."""
        rows = [[*vars(row).values()] for split in splits for subject in self.split(split).values() for row in subject]
        return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()

    def _load_local(self, folder: Path, split: str) -> dict[str, list[MMLUQuestion]]:
        for path in (folder / f"{split}.jsonl", folder / f"{split}.jsonl.gz"):
            if path.exists():
                return _parse((row for _, row in json_lines(path)), str(path))
        questions: dict[str, list[MMLUQuestion]] = {}
        for pattern in (f"*/{split}-*.parquet", f"*/{split}.parquet"):
            by_subject = groupby(sorted(folder.glob(pattern)), key=lambda path: path.parent.name)
            for subject, paths in by_subject:
                if subject in OTHER_CONFIGURATIONS:
                    continue
                rows = (row for path in paths for row in parquet_rows(path))
                questions |= _parse(rows, f"{folder}/{subject}", subject)
        csv_name = CSV_SPLITS.get(split, split)
        for path in sorted(folder.glob(f"{csv_name}/*_{csv_name}.csv")) if not questions else ():
            questions |= _parse(_csv_rows(path), str(path), path.stem.removesuffix(f"_{csv_name}"))
        return questions

    def _load_hub(self, split: str) -> dict[str, list[MMLUQuestion]]:
        return _parse(hub_rows(self.source, "all", split) or (), f"{self.source} {split}")


def choose(names: Sequence[str], available: Sequence[str], where: str) -> list[str]:
    """Return the subjects that `names` selects from `available`: subjects, groups, or `all`.

    A group selects those of its subjects that are available. Raises `UsageError` for an unknown name or an empty group;
    `where` describes the source in the message.
    """
    groups = {group: [subject for subject in subjects if subject in available] for group, subjects in GROUPS.items()}
    groups["all"] = list(available)
    chosen: list[str] = []
    for name in names:
        if name not in groups and name not in available:
            near = difflib.get_close_matches(name, [*available, *groups], n=3, cutoff=0.4)
            hint = f"nearest: {', '.join(near)}" if near else f"subjects: {', '.join(available)}"
            raise UsageError(f"no subject {quote(name)} in {where}; {hint}")
        if not groups.get(name, [name]):
            raise UsageError(f"{where} has no subject of the group {name}")
        chosen += groups.get(name, [name])
    return list(dict.fromkeys(chosen))


def _csv_rows(path: Path) -> Iterator[Any]:
    """Yield the rows of an original file, which has no header: question, four choices, letter. All values are text."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # some programs write a byte order mark
            for number, row in enumerate(csv.reader(file), 1):
                if len(row) != 6 or row[5] not in LETTERS:
                    raise BareloopError(
                        f"{path}, row {number} has {len(row)} columns and ends in {quote(row[-1] if row else '')}; "
                        "rows of MMLU have 6: a question, 4 choices, and a letter from A to D"
                    )
                yield {"question": row[0], "choices": row[1:5], "answer": LETTERS.index(row[5])}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BareloopError(f"cannot read {path}: {error}") from error


def _parse(rows: Iterable[Any], where: str, default_subject: str | None = None) -> dict[str, list[MMLUQuestion]]:
    """Parse rows with question, subject, choices and answer; group them by subject.

    Without a `default_subject`, each row has its own. Raises `BareloopError` that names an invalid row.
    """
    questions: dict[str, list[MMLUQuestion]] = {}
    for number, row in enumerate(rows, 1):
        subject = row.get("subject") if isinstance(row, dict) and default_subject is None else default_subject
        match row:
            case {"question": str(text), "choices": [*choices], "answer": int(answer)} if (
                type(answer) is int and isinstance(subject, str) and all(isinstance(choice, str) for choice in choices)
            ):
                pass
            case _:
                raise BareloopError(
                    f"{where}, row {number} is not a question: question, subject and choices must be text, "
                    "answer must be an integer"
                )
        if len(choices) != len(LETTERS) or not 0 <= answer < len(LETTERS):
            raise BareloopError(
                f"{where}, row {number} has {len(choices)} choices and answer {answer}; "
                "MMLU has 4 choices and answers 0 to 3"
            )
        if not SUBJECT.fullmatch(subject):
            raise BareloopError(
                f"{where}, row {number}: {quote(subject)} is not a subject name; use letters, digits, _-."
            )
        try:
            "".join((text, *choices)).encode()
        except UnicodeEncodeError as error:
            raise BareloopError(f"{where}, row {number} contains a lone surrogate ({error.reason})") from None
        subject_rows = questions.setdefault(subject, [])
        subject_rows.append(MMLUQuestion(subject, len(subject_rows), text, tuple(choices), answer))
    return questions
