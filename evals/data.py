"""Benchmark rows, from the hub or from local files."""

from __future__ import annotations

import difflib
import gzip
import json
import operator
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from engine.errors import BareloopError, UsageError
from evals.prompts import LETTERS, Question


class MMLU:
    """The questions of MMLU by subject and split.

    `source` is a folder with `<split>.jsonl` or `.jsonl.gz` (a row a line, with its subject), or with
    `<subject>/<split>-*.parquet`; or a hub data set with a configuration per subject, such as cais/mmlu.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.folder = Path(source).expanduser()
        self._files: dict[str, dict[str, list[Question]]] = {}
        self._hub_subjects: list[str] | None = None
        if not self.folder.is_dir() and (self.folder.exists() or source.startswith((".", "/", "~"))):
            what = "is a file; name its folder" if self.folder.exists() else "is no folder here"
            raise BareloopError(f"--data {source} {what}")

    def subjects(self, split: str) -> list[str]:
        """What there is, in alphabetical order."""
        if self.folder.is_dir():
            found = sorted(self._local(split)) or sorted({path.parent.name for path in self._parquet("*", split)})
            if not found:
                raise BareloopError(
                    f"{self.folder} has no {split} split: neither {split}.jsonl(.gz) nor <subject>/{split}-*.parquet"
                )
            return found
        if self._hub_subjects is None:
            from datasets import get_dataset_config_names

            names = _from_hub(self.source, lambda: get_dataset_config_names(self.source))
            self._hub_subjects = sorted(set(names) - {"all", "auxiliary_train"})
        return self._hub_subjects

    def choose(self, names: Sequence[str], split: str) -> list[str]:
        """The subjects of these names, `all` for every one; unknown names are refused with their nearest."""
        available = self.subjects(split)
        for name in names:
            if name != "all" and name not in available:
                near = difflib.get_close_matches(name, available, n=3, cutoff=0.4)
                hint = f"nearest: {', '.join(near)}" if near else f"there are: {', '.join(available)}"
                raise UsageError(f"no subject {name!r} in the {split} split of {self.source}; {hint}")
        return available if "all" in names else list(dict.fromkeys(names))

    def questions(self, subject: str, split: str) -> list[Question]:
        """A subject's rows in their order."""
        if not self.folder.is_dir():
            from datasets import load_dataset

            rows = _from_hub(self.source, lambda: load_dataset(self.source, subject, split=split))
            return _questions(rows, f"{self.source} {subject} {split}", subject)[subject]
        if local := self._local(split):
            return local.get(subject, [])
        rows = [row for path in self._parquet(subject, split) for row in _parquet_rows(path)]
        return _questions(rows, f"{self.folder}/{subject}", subject).get(subject, [])

    def _local(self, split: str) -> dict[str, list[Question]]:
        if split not in self._files:
            paths = [self.folder / f"{split}.jsonl", self.folder / f"{split}.jsonl.gz"]
            path = next((path for path in paths if path.exists()), None)
            self._files[split] = _questions(_json_lines(path), str(path)) if path else {}
        return self._files[split]

    def _parquet(self, subject: str, split: str) -> list[Path]:
        return sorted(
            [*self.folder.glob(f"{subject}/{split}-*.parquet"), *self.folder.glob(f"{subject}/{split}.parquet")]
        )


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


def _questions(rows: Iterable[Any], where: str, default_subject: str | None = None) -> dict[str, list[Question]]:
    """Rows with the columns question, subject, choices, answer, by subject."""
    found: dict[str, list[Question]] = {}
    for number, row in enumerate(rows, 1):
        try:
            subject = row["subject"] if default_subject is None else default_subject
            text, choices, answer = row["question"], tuple(row["choices"]), operator.index(row["answer"])
            if not all(isinstance(value, str) for value in (subject, text, *choices)):
                raise TypeError("question, subject and choices are text")
        except (KeyError, TypeError) as error:
            raise BareloopError(f"{where}, row {number} is no question with choices and answer ({error!r})") from error
        if len(choices) != len(LETTERS) or not 0 <= answer < len(LETTERS):
            raise BareloopError(
                f"{where}, row {number} has {len(choices)} choices and answer {answer}; "
                "MMLU has 4 choices and answers 0 to 3"
            )
        listed = found.setdefault(subject, [])
        listed.append(Question(subject, len(listed), text, choices, answer))
    return found


def _from_hub(source: str, read: Any) -> Any:
    try:
        return read()
    except Exception as error:  # the libraries below raise a dozen kinds, none with a way out
        raise BareloopError(
            f"cannot get the data set {source} from the hub ({type(error).__name__}); name a local folder with --data"
        ) from error
