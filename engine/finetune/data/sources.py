"""Where rows come from: a file, a split of a folder, or SQuAD by its name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.runtime.errors import BareloopError, UsageError
from engine.runtime.files import local_path, parse_json
from engine.runtime.rows import hub_rows, json_lines, parquet_rows

SQUAD = ("squad", "rajpurkar/squad")  # its name here, and on the hub
SPLIT = re.compile(r"(?P<data>.+):(?P<split>[A-Za-z]\w*)(?:\[(?P<start>\d*):(?P<stop>\d*)\])?")
PREFIXES = ("", "data/", "plain_text/", "plain_text_")  # of a split's files in a folder; the hub's layouts, too
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")
DATASETS_FILES = ("dataset_dict.json", "state.json")  # in a folder that `datasets` has saved


@dataclass(frozen=True)
class Source:
    """Rows of one split. `place(i)` names the file and the line of row i, for messages."""

    rows: list[Any]
    place: Callable[[int], str]


def read_data(data: str) -> tuple[Source, Source | None]:
    """Read the rows to train on, and those of a folder's own `valid` split, if there is one.

    `data`: a file (.jsonl, .json, also .gz; .parquet), a folder, or `squad`. The last two may choose a split and some
    of its rows, as in `FOLDER:validation[200:700]`; by default it is `train`, and only then `valid` is read.
    Raises `BareloopError` with one line for what cannot be read.
    """
    name, split, rows = _parse(data)
    path = local_path(name)
    if path.is_file():
        if split is not None:
            raise UsageError(f"--data {data}: {name} is a file, which has no splits; name it without :{split}")
        return read_file(path), None
    if path.is_dir():
        source = _read_split(path, split or "train")
        if source is None:
            missing = f"{name} has no {split or 'train'} split, such as {split or 'train'}.jsonl"
            if splits := _splits(path):
                raise BareloopError(f"{missing}; it has {', '.join(splits)}: name one as {name}:{splits[-1]}")
            raise BareloopError(f"{missing}, and no other; name a file")
        return _select(source, rows, data), _read_split(path, "valid") if split is None else None
    if name in SQUAD:
        return _select(_read_squad(split or "train"), rows, data), None
    raise UsageError(f"--data {data}: no such file or folder; the one data set known by its name is squad")


def _parse(data: str) -> tuple[str, str | None, tuple[int, int | None]]:
    match = None if local_path(data).exists() else SPLIT.fullmatch(data)
    if match is None:
        return data, None, (0, None)
    stop = match["stop"]
    return match["data"], match["split"], (int(match["start"] or 0), int(stop) if stop else None)


def _select(source: Source, rows: tuple[int, int | None], data: str) -> Source:
    start, stop = rows
    selected = source.rows[start:stop]
    if source.rows and not selected:
        raise UsageError(f"--data {data}: there is no such row, as the split has {len(source.rows):,}")
    return Source(selected, lambda index: source.place(start + index))


def read_file(path: Path) -> Source:
    """Read a file of JSON lines, a JSON array, or parquet. Raises `BareloopError` with the line of what is no JSON."""
    if path.suffix == ".parquet":
        return Source(parquet_rows(path), lambda index: f"{path}, row {index + 1}")
    if path.suffix == ".json" and _is_array(path):
        return Source(parse_json(path), lambda index: f"{path}, row {index + 1}")
    lines = list(json_lines(path))
    return Source([row for _, row in lines], lambda index: f"{path}, line {lines[index][0]}")


def _is_array(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8-sig") as file:
            return next((line.lstrip()[0] for line in file if line.strip()), "") == "["
    except (OSError, UnicodeDecodeError) as error:
        raise BareloopError(f"cannot read {path}: {error}") from error


def _read_split(folder: Path, split: str) -> Source | None:
    if any((folder / name).exists() for name in DATASETS_FILES):
        return _read_saved(folder, split)
    for prefix in PREFIXES:
        for suffix in SUFFIXES:
            if (path := folder / f"{prefix}{split}{suffix}").exists():
                return read_file(path)
        parts = sorted(folder.glob(f"{prefix}{split}-*.parquet")) or sorted(folder.glob(f"{prefix}{split}.parquet"))
        if parts:
            rows = [row for part in parts for row in parquet_rows(part)]
            return Source(rows, lambda index: f"{folder}, {split} row {index + 1}")
    return None


def _splits(folder: Path) -> list[str]:
    """The names of the splits that a folder has, as files, or as folders that `datasets` has saved."""
    if any((folder / name).exists() for name in DATASETS_FILES):
        return sorted(path.name for path in folder.iterdir() if path.is_dir())
    files = [path.name for prefix in PREFIXES for path in folder.glob(f"{prefix}*")]
    endings = (*SUFFIXES, ".parquet")
    return sorted({re.sub(r"(-\d+-of-\d+)?(\.\w+)+$", "", file) for file in files if file.endswith(endings)})


def _read_saved(folder: Path, split: str) -> Source | None:
    """A split of a folder that `datasets` has saved; one without splits has only `train`."""
    from datasets import load_from_disk

    try:
        data = load_from_disk(str(folder))
    except Exception as error:  # the library raises many types
        raise BareloopError(f"cannot read the data set {folder}: {error}") from error
    if isinstance(data, dict):
        data = data.get(split)
    elif split != "train":
        data = None
    return None if data is None else Source(data.to_list(), lambda index: f"{folder}, {split} row {index + 1}")


def _read_squad(split: str) -> Source:
    name = SQUAD[1]
    rows = hub_rows(name, None, split, alternative="pass a folder that has train-*.parquet or train.jsonl.gz")
    if rows is None:
        raise BareloopError(f"{name} has no {split} split; it has train and validation")
    return Source(rows.to_list(), lambda index: f"{name}, {split} row {index + 1}")
