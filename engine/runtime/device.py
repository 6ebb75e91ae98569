"""Choice of device and dtype."""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.runtime.errors import BareloopError, UsageError, quote


def choose_device(name: str = "auto") -> torch.device:
    """`auto` (CUDA, else Apple's GPU, else the CPU), `cpu`, `cuda`, `cuda:1`, `mps`.

    For CUDA it also turns off cuDNN's attention in this process, which is slow while lengths change.
    Raises `UsageError` for an unknown name, `BareloopError` for a device that this machine does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"unknown device {quote(name)}; use auto, cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count <= (device.index or 0):
            problem = f"this machine has {count} CUDA device(s)" if count else "no CUDA device is available here"
            raise BareloopError(f"device {name}: {problem}; use --device cpu or auto")
        # cuDNN's attention builds a plan for every new length: 60 ms instead of 11 ms per decoded token (H200).
        torch.backends.cuda.enable_cudnn_sdp(False)
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise BareloopError("device mps: Apple's GPU is not available here; use --device cpu or auto")
    elif device.type not in ("cpu", "mps"):
        raise UsageError(f"device {quote(name)} is not supported; use auto, cpu, cuda, cuda:N or mps")
    return device


def choose_dtype(name: str, stored: str) -> torch.dtype:
    """The torch dtype of a flag; `auto` is the dtype in which the checkpoint is stored."""
    name = stored if name == "auto" else name
    if name not in DTYPES:
        raise UsageError(f"unknown dtype {quote(name)}; use auto, {', '.join(DTYPES)}")
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    """torch.bfloat16 -> "bfloat16", as in flags and config.json."""
    return str(dtype).removeprefix("torch.")


def synchronize(device: torch.device) -> None:
    """Wait until all work on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def upload(values: Any, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """A (nested) list, or a tensor on the CPU, as a tensor on the device, without waiting for the work that is queued.

    That takes pinned memory, which PyTorch does not use again before the copy is done. `torch.tensor(…, device=…)`
    would wait for all work on the device.
    """
    if torch.device(device).type != "cuda":
        return torch.as_tensor(values, dtype=dtype).to(device)
    if isinstance(values, Tensor):
        return values.to(dtype).pin_memory().to(device, non_blocking=True)
    return torch.tensor(values, dtype=dtype, pin_memory=True).to(device, non_blocking=True)


def start_download(tensor: Tensor) -> Callable[[], Any]:
    """Begin to copy a tensor to the host -> a function that waits for this copy alone, and returns a (nested) list.

    What is launched in between runs on the device meanwhile.
    """
    if tensor.device.type != "cuda":
        return tensor.tolist
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    with torch.cuda.device(tensor.device):
        copy.copy_(tensor, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()

    def wait() -> Any:
        copied.synchronize()
        return copy.tolist()

    return wait


def download(tensor: Tensor) -> Any:
    """A tensor as a (nested) list, for which this waits."""
    return start_download(tensor)()


@cache
def slow_bfloat16() -> bool:
    """Whether this is an x86 processor on which torch's products are faster in float32 than in bfloat16.

    Without AVX-512 a prompt of 256 tokens takes a fifth of the time in float32 (SmolLM2-135M). Intel's processors with
    AVX-512 but without AMX multiply bfloat16 at half of float32's rate; AMD's multiply it faster than float32.
    """
    if platform.machine() not in ("x86_64", "AMD64") or torch.cpu._is_amx_tile_supported():
        return False
    return not (can_pack_bfloat16() and torch.cpu._is_avx512_bf16_supported() and _is_amd())


def _is_amd() -> bool:
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return "AuthenticAMD" in platform.processor()  # Windows


@cache
def can_pack_bfloat16() -> bool:
    """Whether oneDNN packs bfloat16 weights on this CPU, which needs AVX-512. Tried, as torch has no public query."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        torch.ops.mkldnn._reorder_linear_weight(torch.zeros(16, 16, dtype=torch.bfloat16), 16)
    except RuntimeError:
        return False
    return True


DTYPES = ("float32", "bfloat16", "float16", "float64")
