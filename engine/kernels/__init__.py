"""One token's way through a model on a CPU, in C++: operators for 1 to 8 rows, built on first use.

Nobody waits for the build: PyTorch's own operators serve until it is done, and for ever where there is no compiler.
`BARELOOP_ISA` forces a path: avx512, avx2, portable (NEON on ARM), or torch for none.
"""

from __future__ import annotations

import logging
import shutil
import threading
from typing import Any

import torch
from torch import Tensor

from engine.kernels import build

ROWS = 8  # of more, matrix products for many rows are faster
DTYPES = (torch.bfloat16, torch.float32)
PYTORCH = "PyTorch's operators"

_ops: Any = None  # what serves: the library's operators; one a process, as are PyTorch's
_built: Any = None  # they, as soon as they are loaded
_isa = ""
_why = PYTORCH  # in words, as long as there are none
_starting, _started = threading.Lock(), False
_watcher: threading.Thread | None = None


def few(x: Tensor) -> Any:
    """The operators, where they serve: up to `ROWS` rows [R, n] on the CPU, without gradients. Else None."""
    if _ops is None or x.dim() != 2 or not 0 < len(x) <= ROWS or x.dtype not in DTYPES or x.device.type != "cpu":
        return None
    return None if torch.is_grad_enabled() or torch.compiler.is_compiling() else _ops


def serving(device: torch.device) -> Any:
    """The operators that take any number of rows, where they serve; else None."""
    return _ops if device.type == "cpu" and not torch.compiler.is_compiling() else None


def start() -> None:
    """Load the library; have it built in the background where it is not there yet. Does nothing the second time."""
    global _started, _why, _watcher  # noqa: PLW0603
    with _starting:
        if _started:
            return
        isa = build.choose_isa()
        _started = True
        if isa == "torch":
            return
        if build.is_built(isa):
            _load(isa)
            adopt()
            return
        reason = build.obstacle(isa)
        if reason is not None:
            _give_up(reason)
            return
        _why = f"{PYTORCH}, while the C++ kernels are built"
        _watcher = threading.Thread(target=_build, args=(isa,), daemon=True)
        _watcher.start()


def serve() -> bool:
    """Whether the library serves; one that is being built is waited for."""
    wait()
    return _ops is not None


def adopt() -> None:
    """From here on the library serves, if it is there: never from the middle of a reply."""
    global _ops  # noqa: PLW0603
    _ops = _built


def wait() -> None:
    """Return when nothing is being built any more: what is computed from here on is computed in one way."""
    start()
    if _watcher is not None and _watcher.is_alive():
        logging.getLogger("bareloop").warning("building the C++ kernels, once; this takes half a minute")
        _watcher.join()
    adopt()


def state(dtype: torch.dtype = torch.bfloat16) -> str:
    """What serves few rows of this dtype, in words."""
    if _ops is None:
        return _why
    return f"C++ kernels ({_isa})" if dtype in DTYPES else PYTORCH


def load(isa: str) -> Any:
    """The operators of one path, built now if need be."""
    build.build(isa)
    return _operators(isa)


def _build(isa: str) -> None:
    """In a process of its own, which goes on when this one ends."""
    status = build.in_background(isa).wait()
    if status == 0:
        _load(isa)
    else:
        _give_up(build.obstacle(isa) or f"building the C++ kernels failed ({status}): python -m engine.kernels.build")


def _load(isa: str) -> None:
    global _built, _isa
    try:
        _built, _isa = _operators(isa), isa
    except (OSError, RuntimeError, AttributeError) as error:  # torn, or of another machine that shares the cache
        shutil.rmtree(build.library(isa).parent, ignore_errors=True)
        _give_up(f"the C++ kernels do not load, and the next run builds them anew ({str(error).splitlines()[0]})")


def _give_up(reason: str) -> None:
    global _why  # noqa: PLW0603
    _why = f"{PYTORCH}: {reason}"
    logging.getLogger("bareloop").warning("%s; a token takes PyTorch's operators, up to 3 times as long", reason)


def _operators(isa: str) -> Any:
    torch.ops.load_library(str(build.library(isa)))  # type: ignore[no-untyped-call]
    return getattr(torch.ops, build.namespace(isa))
