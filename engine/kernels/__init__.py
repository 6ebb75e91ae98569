"""One token's way through a model on a CPU, in C++: operators for 1 to 4 rows, built on first use.

Nobody waits for the build: PyTorch's own operators serve until it is done, and for ever where there is no compiler.
`BARELOOP_ISA` forces a path: avx512, avx2, portable (NEON on ARM), or torch for none.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

import torch
from torch import Tensor

from engine.kernels import build

ROWS = 4  # of more, a product is no longer bound by reading its weight
DTYPES = (torch.bfloat16, torch.float32)

_ops: Any = None  # the loaded library's operators; one a process, as are PyTorch's
_state = "PyTorch's operators"  # what serves few rows
_starting, _started = threading.Lock(), False
_watcher: threading.Thread | None = None


def few(x: Tensor) -> Any:
    """The operators, where they serve: up to `ROWS` rows on the CPU, without gradients. Else None."""
    if _ops is None or not 0 < len(x) <= ROWS or x.dtype not in DTYPES or x.device.type != "cpu":
        return None
    return None if torch.is_grad_enabled() else _ops


def start() -> None:
    """Load the library; have it built in the background where it is not there yet. Does nothing the second time."""
    global _started, _state, _watcher  # noqa: PLW0603
    with _starting:
        if _started:
            return
        isa = build.choose_isa()
        _started = True
        if isa == "torch":
            return
        if build.library(isa).exists():
            _load(isa)
            return
        reason = build.obstacle(isa)
        if reason is not None:
            logging.getLogger("bareloop").warning(
                "%s; a token takes PyTorch's operators, up to 3 times as long", reason
            )
            return
        _state = "PyTorch's operators, while the kernels are built"
        _watcher = threading.Thread(target=_build, args=(isa,), daemon=True)
        _watcher.start()


def wait() -> None:
    """Return when nothing is being built any more: what is computed from here on is computed in one way."""
    start()
    if _watcher is not None and _watcher.is_alive():
        logging.getLogger("bareloop").warning("building the C++ kernels, once; this takes some 20 seconds")
        _watcher.join()


def state() -> str:
    """What serves few rows, in words."""
    return _state


def load(isa: str) -> Any:
    """The operators of one path, built now if need be."""
    build.build(isa)
    return _operators(isa)


def _build(isa: str) -> None:
    """In a process of its own, which goes on when this one ends."""
    global _state  # noqa: PLW0603
    if build.in_background(isa).wait() == 0:
        _load(isa)
    else:
        _state = f"PyTorch's operators: {build.obstacle(isa)}"


def _load(isa: str) -> None:
    global _ops, _state  # noqa: PLW0603
    _ops = _operators(isa)
    _state = f"C++ kernels ({isa})"


def _operators(isa: str) -> Any:
    torch.ops.load_library(str(build.library(isa)))  # type: ignore[no-untyped-call]
    return getattr(torch.ops, build.namespace(isa))
