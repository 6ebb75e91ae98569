"""Benchmark rows, from the hub or from local files."""

from __future__ import annotations

import csv
import difflib
import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple
from itertools import groupby
from pathlib import Path
from typing import Any

from engine import demo
from engine.errors import BareloopError, UsageError
from engine.files import local_path
from evals.prompts import LETTERS, Question
from evals.subjects import GROUPS

HUB_TIMEOUT = 10.0  # seconds
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
        self.folder = demo.QUESTIONS if source == demo.NAME else local_path(source)
        self._splits: dict[str, dict[str, list[Question]]] = {}
        if not self.folder.is_dir() and (self.folder.exists() or source.startswith((".", "/", "~"))):
            what = "is a file; name its folder" if self.folder.exists() else "is no folder here"
            raise BareloopError(f"--data {source} {what}")

    def split(self, name: str) -> dict[str, list[Question]]:
        """All questions of a split by subject, subjects in alphabetical order, rows in their own."""
        if name not in self._splits:
            found = self._local(name) if self.folder.is_dir() else self._hub(name)
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

    def _local(self, split: str) -> dict[str, list[Question]]:
        for path in (self.folder / f"{split}.jsonl", self.folder / f"{split}.jsonl.gz"):
            if path.exists():
                return _questions(_json_lines(path), str(path))
        found: dict[str, list[Question]] = {}
        for pattern in (f"*/{split}-*.parquet", f"*/{split}.parquet"):
            by_subject = groupby(sorted(self.folder.glob(pattern)), key=lambda path: path.parent.name)
            for subject, paths in by_subject:
                if subject in NO_SUBJECTS:
                    continue
                rows = (row for path in paths for row in _parquet_rows(path))
                found |= _questions(rows, f"{self.folder}/{subject}", subject)
        short = CSV_SPLITS.get(split, split)
        for path in sorted(self.folder.glob(f"{short}/*_{short}.csv")) if not found else ():
            found |= _questions(_csv_rows(path), str(path), path.stem.removesuffix(f"_{short}"))
        return found

    def _hub(self, split: str) -> dict[str, list[Question]]:
        """From the hub, or its cache where there is no network."""
        from huggingface_hub import constants

        look_up(self.source)

        from datasets import load_dataset

        try:
            rows = load_dataset(self.source, "all", split=split)
        except Exception as error:  # the library raises a dozen kinds, none with a way out
            if isinstance(error, ValueError) and "Unknown split" in str(error):
                return {}
            reason = "which cannot be reached" if constants.HF_HUB_OFFLINE else type(error).__name__
            raise BareloopError(
                f"cannot get the data set {self.source} from the hub ({reason}); "
                "go online once to fetch it, or name a local folder with --data"
            ) from error
        return _questions(rows, f"{self.source} {split}")


def look_up(data_set: str) -> None:
    """Ask the hub for a data set; without a network, turn to the cache: at once, not after many retries."""
    from huggingface_hub import HfApi, constants, errors

    try:
        HfApi().dataset_info(data_set, timeout=HUB_TIMEOUT)
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise BareloopError(
            f"{data_set} is neither a folder here nor a data set on the hub (a private one needs HF_TOKEN)"
        ) from None
    except Exception:  # offline, in the words of whatever HTTP library is below
        os.environ["HF_HUB_OFFLINE"] = "1"
        constants.HF_HUB_OFFLINE = True


def choose(names: Sequence[str], available: Sequence[str], where: str) -> list[str]:
    """Subjects by their names, by group (what there is of it), or `all`; unknown names are refused."""
    groups = {group: [subject for subject in listed if subject in available] for group, listed in GROUPS.items()}
    groups["all"] = list(available)
    chosen: list[str] = []
    for name in names:
        if name not in groups and name not in available:
            near = difflib.get_close_matches(name, [*available, *groups], n=3, cutoff=0.4)
            hint = f"nearest: {', '.join(near)}" if near else f"there are: {', '.join(available)}"
            raise UsageError(f"no subject {name!r} in {where}; {hint}")
        if not groups.get(name, [name]):
            raise UsageError(f"{where} has no subject of the group {name}")
        chosen += groups.get(name, [name])
    return list(dict.fromkeys(chosen))


def _json_lines(path: Path) -> Iterator[Any]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise BareloopError(f"{path}, line {number} is not JSON ({error})") from error
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise BareloopError(f"cannot read {path}: {error}") from error


def _parquet_rows(path: Path) -> list[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise BareloopError(f"cannot read {path}: {error}") from error


def _csv_rows(path: Path) -> Iterator[Any]:
    """The original files: question, four choices, and a letter, without a header. All of it is text."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # some programs begin such a file with a mark
            for number, row in enumerate(csv.reader(file), 1):
                if len(row) != 6 or row[5] not in LETTERS:
                    raise BareloopError(
                        f"{path}, row {number} has {len(row)} columns and ends in {row[-1] if row else ''!r}; "
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
            raise BareloopError(f"{where}, row {number}: {subject!r} is no name of a subject; use letters, digits, _-.")
        try:
            "".join((text, *choices)).encode()
        except UnicodeEncodeError as error:
            raise BareloopError(f"{where}, row {number} holds half a character ({error.reason})") from None
        listed = found.setdefault(subject, [])
        listed.append(Question(subject, len(listed), text, tuple(choices), answer))
    return found
