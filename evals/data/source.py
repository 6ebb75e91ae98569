"""Rows of data sets: from a folder of JSON lines or parquet, or from the hub. No torch."""

from __future__ import annotations

import gzip
import json
import os
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.runtime.errors import BareloopError, UsageError
from engine.runtime.files import local_path

HUB_TIMEOUT = 10.0  # seconds


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
                return list(json_lines(path))
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


def json_lines(path: Path) -> Iterator[Any]:
    """Yield the values of a file of JSON lines, which may be compressed with gzip."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise BareloopError(f"{path}, line {number} is not JSON ({error})") from error
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise BareloopError(f"cannot read {path}: {error}") from error


def parquet_rows(path: Path) -> list[Any]:
    """Return the rows of a parquet file."""
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise BareloopError(f"cannot read {path}: {error}") from error


def hub_rows(name: str, config: str | None, split: str, alternative: str = "name a local folder with --data") -> Any:
    """Return a split from the hub, or from its cache if offline; None if the data set has no such split.

    Raises `BareloopError`, whose message ends with `alternative`, if the data cannot be fetched.
    """
    from huggingface_hub import constants

    check_data_set(name)

    from datasets import load_dataset

    try:
        return load_dataset(name, config, split=split)
    except Exception as error:  # the library raises many types
        if isinstance(error, ValueError) and "Unknown split" in str(error):
            return None
        reason = "which cannot be reached" if constants.HF_HUB_OFFLINE else type(error).__name__
        raise BareloopError(
            f"cannot get the data set {name} from the hub ({reason}); go online once to fetch it, or {alternative}"
        ) from error


def check_data_set(name: str) -> None:
    """Check that the hub has a data set. Without a network, switch to the cache at once rather than after retries."""
    from huggingface_hub import HfApi, constants, errors

    try:
        HfApi().dataset_info(name, timeout=HUB_TIMEOUT)
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise BareloopError(
            f"{name} is neither a local folder nor a data set on the hub (a private one needs HF_TOKEN)"
        ) from None
    except Exception:  # offline; the type depends on the HTTP library
        os.environ["HF_HUB_OFFLINE"] = "1"
        constants.HF_HUB_OFFLINE = True
