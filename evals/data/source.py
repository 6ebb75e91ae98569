"""Where rows come from: a folder of JSON lines or parquet, or a data set on the hub. No torch."""

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
    """The folder of this name, or None for what must be a hub data set; raises one line where it can be neither."""
    folder = local_path(name)
    if folder.is_dir():
        return folder
    if folder.exists() or name.startswith((".", "/", "~")):
        what = "is a file; name its folder" if folder.exists() else "is no folder here"
        raise BareloopError(f"--data {name} {what}")
    return None


def table(name: str, split: str, config: str | None = None, alone: bool = True) -> list[Any]:
    """All rows of a split of a data set, which has this configuration alone or beside others.

    In a folder they are `<split>.jsonl` or `.jsonl.gz` or `<split>-*.parquet`, in a folder `<config>` or with
    `<config>_` before the name where there are several, and as they lie on the hub (`data/`, `<config>/`).
    """
    folder = data_folder(name)
    if folder is None:
        rows = hub_rows(name, config, split)
        if rows is None:
            raise BareloopError(f"{name} has no {split} split")
        return list(rows)
    begins = [f"{config}/", f"{config}_"] if config else []
    begins += ["", "data/"] if alone or not config else []
    for begin in begins:
        for path in (folder / f"{begin}{split}.jsonl", folder / f"{begin}{split}.jsonl.gz"):
            if path.exists():
                return list(json_lines(path))
        parts = sorted(folder.glob(f"{begin}{split}-*.parquet")) or sorted(folder.glob(f"{begin}{split}.parquet"))
        if parts:
            return [row for path in parts for row in parquet_rows(path)]
    expected = ", ".join(f"{begin}{split}.jsonl(.gz) or -*.parquet" for begin in begins)
    raise BareloopError(f"{name} has no {split} split{f' of {config}' if config else ''}: no {expected}")


def do_without(error: BareloopError, rescore: bool) -> None:
    """Where the data cannot be had: a line for --rescore, whose tables need none; else, and for a wrong flag, raise."""
    if not rescore or isinstance(error, UsageError):
        raise error
    print(f"without the data there are only tables: {error}", file=sys.stderr)


def json_lines(path: Path) -> Iterator[Any]:
    """The values in a file of JSON lines, compressed or not."""
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
    """The rows of one file."""
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise BareloopError(f"cannot read {path}: {error}") from error


def hub_rows(name: str, config: str | None, split: str) -> Any:
    """A split from the hub, or its cache where there is no network; None where the data set has no such split."""
    from huggingface_hub import constants

    look_up(name)

    from datasets import load_dataset

    try:
        return load_dataset(name, config, split=split)
    except Exception as error:  # the library raises a dozen kinds, none with a way out
        if isinstance(error, ValueError) and "Unknown split" in str(error):
            return None
        reason = "which cannot be reached" if constants.HF_HUB_OFFLINE else type(error).__name__
        raise BareloopError(
            f"cannot get the data set {name} from the hub ({reason}); "
            "go online once to fetch it, or name a local folder with --data"
        ) from error


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
