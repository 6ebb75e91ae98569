"""Rows of data sets: from a folder of JSON lines or parquet, or from the hub. No torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from engine.runtime.errors import BareloopError, UsageError
from engine.runtime.files import local_path
from engine.runtime.rows import hub_rows, json_lines, parquet_rows


def data_folder(name: str) -> Path | None:
    """Return the local folder of this name, or None if the name must be a hub data set.

    Raises `BareloopError` if it can be neither.
    """
    folder = local_path(name)
    if folder.is_dir():
        return folder
    if folder.exists() or name.startswith((".", "/", "~")):
        problem = "is a file; name its folder" if folder.exists() else "is not a folder"
        raise BareloopError(f"--data {name} {problem}")
    return None


def load_rows(name: str, split: str, config: str | None = None, is_only_config: bool = True) -> list[Any]:
    """Return all rows of a split. `config` is a configuration of the data set, its only one or one of several.

    In a folder, the rows are in `<split>.jsonl`, `<split>.jsonl.gz` or `<split>-*.parquet`. If the data set has several
    configurations, these are in a folder `<config>` or the file name begins with `<config>_`. The hub's layouts
    (`data/`, `<config>/`) are read, too.
    """
    folder = data_folder(name)
    if folder is None:
        rows = hub_rows(name, config, split)
        if rows is None:
            raise BareloopError(f"{name} has no {split} split")
        return list(rows)
    prefixes = [f"{config}/", f"{config}_"] if config else []
    prefixes += ["", "data/"] if is_only_config or not config else []
    for prefix in prefixes:
        for path in (folder / f"{prefix}{split}.jsonl", folder / f"{prefix}{split}.jsonl.gz"):
            if path.exists():
                return [row for _, row in json_lines(path)]
        parts = sorted(folder.glob(f"{prefix}{split}-*.parquet")) or sorted(folder.glob(f"{prefix}{split}.parquet"))
        if parts:
            return [row for path in parts for row in parquet_rows(path)]
    expected = ", ".join(f"{prefix}{split}.jsonl(.gz) or -*.parquet" for prefix in prefixes)
    raise BareloopError(f"{name} has no {split} split{f' of {config}' if config else ''}: no {expected}")


def continue_without_data(error: BareloopError, rescore: bool) -> None:
    """With --rescore, report that the data is missing and return: tables need no data. Otherwise raise the error.

    Usage errors are always raised.
    """
    if not rescore or isinstance(error, UsageError):
        raise error
    print(f"without the data only tables can be made: {error}", file=sys.stderr)
