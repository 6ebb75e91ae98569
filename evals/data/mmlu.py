"""The questions of MMLU, from the hub or from local files."""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple
from itertools import groupby
from pathlib import Path
from typing import Any

from engine.checkpoints import embedded
from engine.runtime.errors import BareloopError, UsageError, quote
from evals.data.question import LETTERS, Question
from evals.data.source import data_folder, hub_rows, json_lines, parquet_rows
from evals.data.subjects import GROUPS

NO_SUBJECTS = ("all", "auxiliary_train")  # configurations of the hub's data set beside the subjects
SUBJECT = re.compile(r"\w[\w.-]*")  # it becomes part of a file's name
CSV_SPLITS = {"validation": "val"}  # what the original files call a split


class MMLU:
    """The questions of MMLU by subject and split.

    `source` is a folder with `<split>.jsonl` or `.jsonl.gz` (a row a line, with its subject), with
    `<subject>/<split>-*.parquet`, or with the original `<split>/<subject>_<split>.csv`; or a hub data set with a
    configuration "all", such as cais/mmlu; or "demo", the embedded model's own questions.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.folder = embedded.QUESTIONS if source == embedded.NAME else data_folder(source)
        self._splits: dict[str, dict[str, list[Question]]] = {}

    def split(self, name: str) -> dict[str, list[Question]]:
        """All questions of a split by subject, subjects in alphabetical order, rows in their own."""
        if name not in self._splits:
            found = self._local(self.folder, name) if self.folder else self._hub(name)
            if not found:
                raise BareloopError(
                    f"{self.source} has no {name} split: no {name}.jsonl(.gz), no <subject>/{name}-*.parquet, "
                    f"no {CSV_SPLITS.get(name, name)}/<subject>_{CSV_SPLITS.get(name, name)}.csv"
                )
            self._splits[name] = dict(sorted(found.items()))
        return self._splits[name]

    def choose(self, names: Sequence[str], split: str) -> list[str]:
        """The subjects of a split by these names; see `choose`."""
        return choose(names, list(self.split(split)), f"the {split} split of {self.source}")

    def digest(self, *splits: str) -> str:
        """A SHA-256 over all rows of these splits, the same whatever kind of file they come from."""
        rows = [astuple(question) for split in splits for listed in self.split(split).values() for question in listed]
        return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()

    def _local(self, folder: Path, split: str) -> dict[str, list[Question]]:
        for path in (folder / f"{split}.jsonl", folder / f"{split}.jsonl.gz"):
            if path.exists():
                return _questions(json_lines(path), str(path))
        found: dict[str, list[Question]] = {}
        for pattern in (f"*/{split}-*.parquet", f"*/{split}.parquet"):
            by_subject = groupby(sorted(folder.glob(pattern)), key=lambda path: path.parent.name)
            for subject, paths in by_subject:
                if subject in NO_SUBJECTS:
                    continue
                rows = (row for path in paths for row in parquet_rows(path))
                found |= _questions(rows, f"{folder}/{subject}", subject)
        short = CSV_SPLITS.get(split, split)
        for path in sorted(folder.glob(f"{short}/*_{short}.csv")) if not found else ():
            found |= _questions(_csv_rows(path), str(path), path.stem.removesuffix(f"_{short}"))
        return found

    def _hub(self, split: str) -> dict[str, list[Question]]:
        return _questions(hub_rows(self.source, "all", split) or (), f"{self.source} {split}")


def choose(names: Sequence[str], available: Sequence[str], where: str) -> list[str]:
    """Subjects by their names, by group (what there is of it), or `all`; unknown names are refused."""
    groups = {group: [subject for subject in listed if subject in available] for group, listed in GROUPS.items()}
    groups["all"] = list(available)
    chosen: list[str] = []
    for name in names:
        if name not in groups and name not in available:
            near = difflib.get_close_matches(name, [*available, *groups], n=3, cutoff=0.4)
            hint = f"nearest: {', '.join(near)}" if near else f"there are: {', '.join(available)}"
            raise UsageError(f"no subject {quote(name)} in {where}; {hint}")
        if not groups.get(name, [name]):
            raise UsageError(f"{where} has no subject of the group {name}")
        chosen += groups.get(name, [name])
    return list(dict.fromkeys(chosen))


def _csv_rows(path: Path) -> Iterator[Any]:
    """The original files: question, four choices, and a letter, without a header. All of it is text."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # some programs begin such a file with a mark
            for number, row in enumerate(csv.reader(file), 1):
                if len(row) != 6 or row[5] not in LETTERS:
                    raise BareloopError(
                        f"{path}, row {number} has {len(row)} columns and ends in {quote(row[-1] if row else '')}; "
                        "MMLU's have 6: a question, 4 choices, and a letter from A to D"
                    )
                yield {"question": row[0], "choices": row[1:5], "answer": LETTERS.index(row[5])}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BareloopError(f"cannot read {path}: {error}") from error


def _questions(rows: Iterable[Any], where: str, default_subject: str | None = None) -> dict[str, list[Question]]:
    """Rows with the columns question, subject, choices, answer, by subject."""
    found: dict[str, list[Question]] = {}
    for number, row in enumerate(rows, 1):
        subject = row.get("subject") if isinstance(row, dict) and default_subject is None else default_subject
        match row:
            case {"question": str(text), "choices": [*choices], "answer": int(answer)} if (
                type(answer) is int and isinstance(subject, str) and all(isinstance(choice, str) for choice in choices)
            ):
                pass
            case _:
                raise BareloopError(
                    f"{where}, row {number} is no question: it needs question, subject and choices as text, "
                    "answer as a number"
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
            raise BareloopError(f"{where}, row {number} holds half a character ({error.reason})") from None
        listed = found.setdefault(subject, [])
        listed.append(Question(subject, len(listed), text, tuple(choices), answer))
    return found
