"""C++ operators for a CPU, built on first use.

Nothing waits for the build: PyTorch's own operators serve until it is done, and always where there is no compiler.
The environment variable `BARELOOP_ISA` selects an instruction set: amx, avx512, avx2, portable (NEON on ARM), or torch
for PyTorch's operators.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from engine.kernels import build
from engine.runtime.errors import UsageError

MAX_ROWS = 32  # as in cpu/linear.h; beyond that matrix products for many rows are faster
FEW_NUMBERS = 2**20  # that one thread computes as fast as several, or nearly
DTYPES = (torch.bfloat16, torch.float32)
PYTORCH = "PyTorch's operators"

# One library per process, as PyTorch's operator registry is one per process, too.
_active_ops: Any = None  # the operators in use
_loaded_ops: Any = None  # the operators once they are loaded; `adopt` makes them active
_isa = ""
_inactive_reason = PYTORCH  # what serves instead, and why
_start_lock, _started = threading.Lock(), False
_build_thread: threading.Thread | None = None


def for_input(x: Tensor) -> Any:
    """The operators if they take this input, else None.

    They take up to `MAX_ROWS` rows [R, n] of bfloat16 or float32 on the CPU, without gradients.
    """
    return for_rows(x) if x.dim() == 2 and 0 < len(x) <= MAX_ROWS else None


def for_rows(x: Tensor) -> Any:
    """The operators for any number of rows (attention, norms, activations) if they take this input, else None.

    They take bfloat16 and float32 on the CPU, the dtype of the weights, without gradients.
    """
    if _active_ops is None or x.dtype not in DTYPES or x.device.type != "cpu":
        return None
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return None
    return _active_ops


def for_device(device: torch.device) -> Any:
    """The operators that take any number of rows (quantizing and dequantizing) if the device is the CPU, else None."""
    return _active_ops if device.type == "cpu" and not torch.compiler.is_compiling() else None


@contextmanager
def few_threads(x: Tensor) -> Iterator[None]:
    """Compute with one of PyTorch's threads if x is small. Where a processor is busy, they wait for each other.

    Only for this thread, other than `torch.set_num_threads`, which changes those that begin meanwhile.
    """
    ops = for_device(x.device)
    if ops is None or x.numel() > FEW_NUMBERS:
        yield
        return
    threads = ops.set_threads(1)
    try:
        yield
    finally:
        ops.set_threads(threads)


def start() -> None:
    """Load the library, or start to build it in the background. Only the first call has an effect."""
    global _started, _inactive_reason, _build_thread  # noqa: PLW0603
    with _start_lock:
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
        _inactive_reason = f"{PYTORCH}, while the C++ kernels are built"
        _build_thread = threading.Thread(target=_build_and_load, args=(isa,), daemon=True)
        _build_thread.start()


def adopt() -> bool:
    """Use the library from now on, if it is loaded. Called between replies, so that each is computed in one way.

    -> whether that changes how numbers are computed
    """
    global _active_ops  # noqa: PLW0603
    is_new = _active_ops is not _loaded_ops
    _active_ops = _loaded_ops
    return is_new


def wait() -> None:
    """Wait for a build in progress, so that everything from now on is computed in one way."""
    start()
    if _build_thread is not None and _build_thread.is_alive():
        logging.getLogger("bareloop").warning("building the C++ kernels, once; this takes half a minute")
        _build_thread.join()
    adopt()


def available() -> bool:
    """Whether the operators are in use; waits for a build in progress."""
    wait()
    return _active_ops is not None


def has_tiles(dtype: torch.dtype) -> bool:
    """Whether the operators multiply this dtype by AMX tiles."""
    return _active_ops is not None and _active_ops.name == build.namespace("amx") and dtype == torch.bfloat16


def rows_are_independent(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether each of up to `MAX_ROWS` rows is computed as if it were alone."""
    return _active_ops is not None and device.type == "cpu" and dtype in DTYPES


def describe(dtype: torch.dtype = torch.bfloat16) -> str:
    """What computes a few rows of this dtype, for the user."""
    if _active_ops is None:
        return _inactive_reason
    return f"C++ kernels ({_isa})" if dtype in DTYPES else PYTORCH


def load(isa: str) -> Any:
    """The operators for one instruction set, built now if need be."""
    if isa not in build.supported_isas():
        raise UsageError(f"the instruction set {isa} is not supported by this CPU")
    build.build(isa)
    return _operators(isa)


def _build_and_load(isa: str) -> None:
    """Build in a subprocess, which goes on if this process ends."""
    status = build.build_in_background(isa).wait()
    if status == 0:
        _load(isa)
    elif (other := build.choose_isa()) != isa:  # one that this compiler may know
        _load(other) if build.is_built(other) else _build_and_load(other)
    else:
        failure = f"building the C++ kernels failed ({status}): python -m engine.kernels.build"
        _give_up(build.obstacle(isa) or failure)


def _load(isa: str) -> None:
    global _loaded_ops, _isa
    try:
        _loaded_ops, _isa = _operators(isa), isa
    except (OSError, RuntimeError, AttributeError) as error:  # truncated, or built on another machine with this cache
        shutil.rmtree(build.library_path(isa).parent, ignore_errors=True)
        _give_up(f"the C++ kernels do not load, and the next run builds them again ({str(error).splitlines()[0]})")


def _give_up(reason: str) -> None:
    global _inactive_reason  # noqa: PLW0603
    _inactive_reason = f"{PYTORCH}: {reason}"
    logging.getLogger("bareloop").warning("%s; PyTorch's operators take up to 3 times as long per token", reason)


def _operators(isa: str) -> Any:
    torch.ops.load_library(str(build.library_path(isa)))  # type: ignore[no-untyped-call]
    return getattr(torch.ops, build.namespace(isa))
