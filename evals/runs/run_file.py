"""Run files: an append-only record of one run, from which every table and plot is computed.

The first line is a header with the setting of the run; each following line is the record of one question. The record of
a multiple-choice question holds the log-likelihoods of its choices, that of a generated answer holds the response. Both
hold the hash of the prompt, the correct answer, whether the model gave it, and the time and memory that it took.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from engine.runtime.errors import BareloopError
from engine.runtime.files import AppendFile
from evals.runs.scoring import predict

FORMAT = 1
FILE_START = f'{{"format": {FORMAT}, "task"'  # the first bytes of every run file
# Required fields and their types. JSON numbers without a decimal point are int.
HEADER_FIELDS: dict[str, type] = {
    **dict.fromkeys(("task", "split", "model", "data", "device", "dtype", "quant", "date"), str),
    **dict.fromkeys(("chat", "single_turn"), bool),
    "shots": int,
}
COMMON_FIELDS: dict[str, type] = {
    "subject": str,
    "index": int,
    "prompt_sha256": str,
    "correct": bool,  # by the first of the metrics
    "metrics": dict,  # under lm-evaluation-harness's names
    "tokens": int,  # in the prompt
    "truncated": bool,
    "times": dict,  # the question's share of its batch's cost
}
CHOICE_FIELDS: dict[str, type] = {"prediction": int, "loglikelihoods": list, "greedy": list, "margin": float}
GENERATION_FIELDS: dict[str, type] = {
    "prediction": str,
    "gold": list,
    "response": str,
    "finish_reason": str,
    "new_tokens": int,
}
REMOTE = "remote"  # device, dtype and weight format of a run on servers, whose records have the server's `url`
LOCAL_TIMES = {"cpu", "computed", "peak_memory"}  # which a server may not tell
# Header fields that may differ when a run resumes.
INFORMATIONAL = frozenset({"model", "adapter", "batch_size", "version", "date", "machine", "url", "workers"})
DIFFERENCES = {  # how error messages name a header field that differs
    "weights": "other weights",
    "config": "another config.json",
    "tokenizer": "another tokenizer",
    "data": "other data",
    "max_length": "another maximum length",
    "batch_tokens": "another --batch-tokens",
    "judge_max_tokens": "another --judge-max-tokens",
}
Key = tuple[str, int]  # (subject, row index in the split)


class RunFile:
    """A run file opened for appending. Nothing is written before the first record."""

    def __init__(self, path: Path, header: Mapping[str, Any], fresh: bool = False) -> None:
        """Resume the run at `path`, or start a new one.

        With `fresh`, start over; an existing file is renamed to `*.old` when the first record is written.

        Raises `BareloopError` if the file belongs to another setting, is damaged, or is open in another process.
        """
        self.path = path
        self.header: dict[str, Any] = dict(header)
        self.records: dict[Key, dict[str, Any]] = {}
        self._file = AppendFile(path)
        self._has_header = bool(self._file.lines) and not fresh
        self._replaces_file = fresh
        try:
            if self._has_header:
                self.header, self.records = parse(path, self._file.lines)
                check_same_setting(path, self.header, header)
            elif not fresh and not FILE_START.startswith(self._file.torn[: len(FILE_START)]):
                raise _damaged(path, 1)
        except BaseException:
            self._file.close()
            raise

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Append the records of one batch in a single write."""
        if self._replaces_file:
            self._rename_old_file()
        header = [] if self._has_header else [{"format": FORMAT, **self.header}]
        lines = (json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in (*header, *records))
        self._file.append("".join(lines))
        self._has_header = True
        self.records |= {(record["subject"], record["index"]): dict(record) for record in records}

    def close(self) -> None:
        """Close the file and release its lock. A file that is still empty is removed."""
        self._file.close()

    def __enter__(self) -> RunFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rename_old_file(self) -> None:
        """Rename an existing file to `*.old` and open a new one in its place."""
        self._replaces_file = False
        if self._file.lines or self._file.torn:
            self.path.rename(self.path.with_name(f"{self.path.name}.{datetime.now():%Y-%m-%dT%H-%M-%S.%f}.old"))
            old, self._file = self._file, AppendFile(self.path)
            old.close()


def read(path: Path) -> tuple[dict[str, Any], dict[Key, dict[str, Any]]]:
    """Return the header and the records of a run file. Another process may be appending to it."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BareloopError(f"cannot read {path}: {error.strerror}") from error
    lines = content[: content.rfind(b"\n") + 1].decode("utf-8", errors="replace").split("\n")[:-1]
    if not lines:
        raise BareloopError(f"{path} is empty: nothing has been scored yet")
    return parse(path, lines)


def parse(path: Path, lines: Sequence[str]) -> tuple[dict[str, Any], dict[Key, dict[str, Any]]]:
    """Parse complete lines into the header and the records. The first record of a question counts."""
    header, *rows = (_parse_line(path, number, line) for number, line in enumerate(lines, 1))
    is_complete = all(type(header.get(name)) is type_ for name, type_ in HEADER_FIELDS.items())
    if header.pop("format", None) != FORMAT or not is_complete:
        raise BareloopError(
            f"{path} is not a run file of this version; move it away, or use --fresh or another --output-dir"
        )
    records: dict[Key, dict[str, Any]] = {}
    for number, row in enumerate(rows, 2):
        if type(row.get("correct")) is bool:
            row.setdefault("metrics", {"acc": float(row["correct"])})  # earlier versions did not write it
        if not _is_valid_record(row):
            raise _damaged(path, number)
        records.setdefault((row["subject"], row["index"]), row)
    return header, records


def sha256(text: str) -> str:
    """Return the SHA-256 of a text in UTF-8, in hexadecimal. It identifies prompts, questions and data."""
    return hashlib.sha256(text.encode()).hexdigest()


def correct_choices(record: Mapping[str, Any]) -> list[int]:
    """Return the indices of the correct choices. Most questions have one."""
    gold = record["gold"]
    return [gold] if type(gold) is int else list(gold)


def _is_valid_record(row: Mapping[str, Any]) -> bool:
    """Return whether all fields are present, have the right types, and agree with each other."""
    is_generated, is_remote = "response" in row, "url" in row
    fields = COMMON_FIELDS | (GENERATION_FIELDS if is_generated else CHOICE_FIELDS)
    if any(type(row.get(name)) is not type_ for name, type_ in fields.items()):
        return False
    times, metrics = row["times"], row["metrics"]
    return (
        row["index"] >= 0
        and {"real", *(() if is_remote else LOCAL_TIMES)} <= times.keys()
        and all(type(value) in (int, float) and math.isfinite(value) for value in times.values())
        and row["tokens"] > 0
        and len(metrics) > 0
        and all(type(value) is float for value in metrics.values())
        and (is_remote or not is_generated or {"prefill", "decode"} <= times.keys())
        and (is_generated or _is_consistent_choice(row))
    )


def _is_consistent_choice(row: Mapping[str, Any]) -> bool:
    """Return whether the prediction follows from the log-likelihoods, and `correct` from the prediction."""
    scores, gold = row["loglikelihoods"], row.get("gold")
    correct = [gold] if type(gold) is int else gold
    return (
        len(scores) == len(row["greedy"]) > 1
        and all(type(score) is float for score in scores)
        and type(correct) is list
        and all(type(choice) is int and 0 <= choice < len(scores) for choice in correct)
        and row["prediction"] == predict(scores)
        and row["correct"] == (row["prediction"] in correct)
    )


def _parse_line(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise _damaged(path, number)
    return value


def _damaged(path: Path, number: int) -> BareloopError:
    return BareloopError(
        f"{path}, line {number} is not a record of a run: the file is damaged or belongs to another program; "
        "repair or move it, or use --fresh, which renames it to *.old"
    )


def check_same_setting(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise `BareloopError` that names what differs between the setting of a file and the one that is wanted."""
    for name in (*wanted, *found):
        if name not in INFORMATIONAL and found.get(name) != wanted.get(name):
            difference = DIFFERENCES.get(name, f"another {name}")
            raise BareloopError(
                f"{path} was started with {difference} ({_shorten(found.get(name))}, now {_shorten(wanted.get(name))});"
                " use --fresh, which renames it to *.old, or another --output-dir"
            )


def _shorten(value: Any) -> str:
    return text if len(text := str(value)) <= 20 else f"{text[:12]}…"
