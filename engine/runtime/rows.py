"""Rows of data sets: JSON lines, parquet, and the hub. Loads without torch."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.runtime.errors import BareloopError

HUB_TIMEOUT = 10.0  # seconds


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the number, from 1, and the value of each line of a JSON lines file, which gzip may have compressed.

    Empty lines are left out. Raises `BareloopError` with the line's number if one is not JSON.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig") as lines:  # without a byte order mark
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise BareloopError(f"{path}, line {number} is not JSON ({error})") from error
                yield number, value
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
