"""The run file: a header, then a line for every question that is scored. Everything else is computed from it.

A record of a question with choices holds their log-likelihoods, one of a question that the model answers in its own
words holds its response. Both say what they were asked, what is right, whether it was met, and what it took.
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
FIRST = f'{{"format": {FORMAT}, "task"'  # what every run file begins with
HEADER: dict[str, type] = {
    **dict.fromkeys(("task", "split", "model", "data", "device", "dtype", "quant", "date"), str),
    **dict.fromkeys(("chat", "single_turn"), bool),
    "shots": int,
}
# What every record holds, and of which type. JSON's numbers without a point are int here.
FIELDS: dict[str, type] = {
    "subject": str,
    "index": int,
    "prompt_sha256": str,
    "correct": bool,  # by the first of its metrics
    "metrics": dict,  # by lm-evaluation-harness's names
    "tokens": int,  # of the prompt
    "truncated": bool,
    "times": dict,  # the question's share of what its batch took
}
CHOSEN: dict[str, type] = {"prediction": int, "loglikelihoods": list, "greedy": list, "margin": float}
WRITTEN: dict[str, type] = {"prediction": str, "gold": list, "response": str, "finish_reason": str, "new_tokens": int}
RECORDED = frozenset({"model", "version", "date", "machine"})  # told, and never a reason to refuse
SPELLED = {
    "weights": "other weights",
    "config": "another config.json",
    "tokenizer": "another tokenizer",
    "data": "other data",
    "max_length": "another maximum length",
    "batch_tokens": "another --batch-tokens",
    "batch_size": "another --batch-size",
}
Key = tuple[str, int]  # a subject, and a row of its split


class RunFile:
    """The records of one setting, opened for adding to them. Nothing is written before the first of them."""

    def __init__(self, path: Path, header: Mapping[str, Any], fresh: bool = False) -> None:
        """Go on with the file at `path` or begin it; raises one line if it is of another setting, or in use.

        `fresh` begins anew, and puts what is there aside once there is something new.
        """
        self.path = path
        self.header: dict[str, Any] = dict(header)
        self.records: dict[Key, dict[str, Any]] = {}
        self._file = AppendFile(path)
        self._begun = bool(self._file.lines) and not fresh
        self._aside = fresh
        try:
            if self._begun:
                self.header, self.records = parse(path, self._file.lines)
                _compare(path, self.header, header)
            elif not fresh and not FIRST.startswith(self._file.torn[: len(FIRST)]):
                raise _damaged(path, 1)
        except BaseException:
            self._file.close()
            raise

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Add the records of one batch, in one write."""
        if self._aside:
            self._put_aside()
        first = [] if self._begun else [{"format": FORMAT, **self.header}]
        lines = (json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in (*first, *records))
        self._file.append("".join(lines))
        self._begun = True
        self.records |= {(record["subject"], record["index"]): dict(record) for record in records}

    def close(self) -> None:
        """Let others write."""
        self._file.close()

    def __enter__(self) -> RunFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _put_aside(self) -> None:
        """Rename what was there before; the new file takes its place."""
        self._aside = False
        if self._file.lines or self._file.torn:
            self.path.rename(self.path.with_name(f"{self.path.name}.{datetime.now():%Y-%m-%dT%H-%M-%S.%f}.old"))
            old, self._file = self._file, AppendFile(self.path)
            old.close()


def read(path: Path) -> tuple[dict[str, Any], dict[Key, dict[str, Any]]]:
    """The header and the records of a run file, which somebody may be writing."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BareloopError(f"cannot read {path}: {error.strerror}") from error
    lines = content[: content.rfind(b"\n") + 1].decode("utf-8", errors="replace").split("\n")[:-1]
    if not lines:
        raise BareloopError(f"{path} is empty: nothing has been scored yet")
    return parse(path, lines)


def parse(path: Path, lines: Sequence[str]) -> tuple[dict[str, Any], dict[Key, dict[str, Any]]]:
    """Whole lines -> the header and the records; the first record of a question counts."""
    header, *rows = (_object(path, number, line) for number, line in enumerate(lines, 1))
    if header.pop("format", None) != FORMAT or any(type(header.get(name)) is not kind for name, kind in HEADER.items()):
        raise BareloopError(f"{path} is no run file of this version; move it away, or use --fresh or --output-dir")
    records: dict[Key, dict[str, Any]] = {}
    for number, row in enumerate(rows, 2):
        if type(row.get("correct")) is bool:
            row.setdefault("metrics", {"acc": float(row["correct"])})  # which earlier versions left out
        if not _is_record(row):
            raise _damaged(path, number)
        records.setdefault((row["subject"], row["index"]), row)
    return header, records


def sha256(text: str) -> str:
    """Of a text in UTF-8, in hexadecimal: how prompts, questions and data are told apart."""
    return hashlib.sha256(text.encode()).hexdigest()


def right_choices(record: Mapping[str, Any]) -> list[int]:
    """The places of the choices that are right; mostly it is one."""
    gold = record["gold"]
    return [gold] if type(gold) is int else list(gold)


def _is_record(row: Mapping[str, Any]) -> bool:
    """Whether all fields are there, of their types, and agree with each other."""
    own = WRITTEN if "response" in row else CHOSEN
    if any(type(row.get(name)) is not kind for name, kind in (FIELDS | own).items()):
        return False
    times, metrics = row["times"], row["metrics"]
    return (
        row["index"] >= 0
        and {"real", "cpu", "computed", "peak_memory"} <= times.keys()
        and all(type(value) in (int, float) and math.isfinite(value) for value in times.values())
        and row["tokens"] > 0
        and len(metrics) > 0
        and all(type(value) is float for value in metrics.values())
        and (_is_choice(row) if own is CHOSEN else {"prefill", "decode"} <= times.keys())
    )


def _is_choice(row: Mapping[str, Any]) -> bool:
    """Whether a choice follows from its log-likelihoods, and whether it is right from what is."""
    scores, gold = row["loglikelihoods"], row.get("gold")
    places = [gold] if type(gold) is int else gold
    return (
        len(scores) == len(row["greedy"]) > 1
        and all(type(score) is float for score in scores)
        and type(places) is list
        and all(type(place) is int and 0 <= place < len(scores) for place in places)
        and row["prediction"] == predict(scores)
        and row["correct"] == (row["prediction"] in places)
    )


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise _damaged(path, number)
    return value


def _damaged(path: Path, number: int) -> BareloopError:
    return BareloopError(
        f"{path}, line {number} is no record of a run: the file is damaged or not ours; "
        "repair or move it, or use --fresh, which puts it aside"
    )


def _compare(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name in (*wanted, *found):
        if name not in RECORDED and found.get(name) != wanted.get(name):
            what = SPELLED.get(name, f"another {name}")
            raise BareloopError(
                f"{path} was begun with {what} ({_short(found.get(name))}, now {_short(wanted.get(name))}); "
                "use --fresh, which puts it aside, or another --output-dir"
            )


def _short(value: Any) -> str:
    return text if len(text := str(value)) <= 20 else f"{text[:12]}…"
