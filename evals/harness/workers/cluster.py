"""Ray: started on this machine, or joined where a cluster runs. Nothing else here imports it."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.runtime.errors import BareloopError, UsageError, first_line

OBJECT_STORE = 2**27  # bytes; records are small
ENVIRONMENT = {  # read when Ray is imported
    "RAY_USAGE_STATS_ENABLED": "0",  # it reports to its makers otherwise
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a thread that asks after the end would start it again
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # it prints a paragraph on stdout when a worker ends
}
FOLDERS = Path("/tmp") if Path("/tmp").is_dir() else Path(tempfile.gettempdir())  # paths of sockets must be short
PREFIX = "bareloop-ray"  # of a folder's name, followed by the process that made it


def load_ray(address: str | None) -> Any:
    """Import Ray, to be used with the cluster at this address. Raises `UsageError` if it is not installed."""
    token = {}
    if address is None:
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # else it writes one to ~/.ray
    elif _has_token():
        token = {"RAY_AUTH_MODE": "token"}
    for name, value in (ENVIRONMENT | token).items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise UsageError("--workers needs Ray; install it with: pip install 'bareloop[ray]'") from None
    return ray


def start(ray: Any, address: str | None, cores: int) -> Path | None:
    """Join the cluster at the address, or start Ray with so many cores on this machine, in a folder that is returned.

    Raises `BareloopError` if that fails.
    """
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    folder = None
    if address is None:
        remove_stale()
        folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}-{os.getpid()}-", dir=FOLDERS))
        options |= {"address": "local", "num_cpus": cores, "object_store_memory": OBJECT_STORE}
        options |= {"include_dashboard": False, "_temp_dir": str(folder)}
    else:
        options["address"] = address
    try:
        ray.init(**options)
    except Exception as error:  # ConnectionError, ValueError, RuntimeError, …, some with a page of text
        stop(ray, folder)
        place = "on this machine" if address is None else f"at {address}"
        raise BareloopError(f"cannot start Ray {place}: {first_line(error)}") from None
    return folder


def stop(ray: Any, folder: Path | None) -> None:
    """Leave the cluster, or end Ray on this machine and remove its folder."""
    try:
        with contextlib.suppress(Exception):
            ray.shutdown()
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def remove_stale() -> None:
    """Remove the folders of processes that were killed."""
    for folder in FOLDERS.glob(f"{PREFIX}-*"):
        match = re.fullmatch(rf"{PREFIX}-(\d+)-\w+", folder.name)
        if match and not _is_running(int(match[1])):
            shutil.rmtree(folder, ignore_errors=True)


def threads_of_each(workers: int, cores: Sequence[int]) -> int:
    """The most threads with which so many workers fit on nodes with these numbers of cores; at least 1."""
    for threads in range(max(cores, default=1), 1, -1):
        if sum(node // threads for node in cores) >= workers:
            return threads
    return 1


def _has_token() -> bool:
    """Whether there is a token for clusters, which Ray makes for the first one, but does not use by itself."""
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(named) or (Path.home() / ".ray" / "auth_token").exists()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True
