"""Where to compute and in which dtype, and what it took: real, CPU and GPU seconds, and memory."""

from __future__ import annotations

import torch

from engine.runtime.errors import BareloopError


def choose_device(name: str = "auto") -> torch.device:
    """`auto` (CUDA, else Apple's GPU, else the CPU), `cpu`, `cuda`, `cuda:1`, `mps`."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BareloopError(f"unknown device {name!r}; use auto, cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count <= (device.index or 0):
            have = f"this machine has {count} CUDA device(s)" if count else "no CUDA device is available here"
            raise BareloopError(f"device {name}: {have}; use --device cpu or auto")
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise BareloopError("device mps: Apple's GPU is not available here; use --device cpu or auto")
    elif device.type not in ("cpu", "mps"):
        raise BareloopError(f"device {name} is not supported; use auto, cpu, cuda, cuda:N or mps")
    return device


def choose_dtype(name: str, stored: str) -> torch.dtype:
    """`auto` is the dtype that the checkpoint is stored in."""
    name = stored if name == "auto" else name
    if name not in DTYPES:
        raise BareloopError(f"unknown dtype {name!r}; use auto, {', '.join(DTYPES)}")
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    """torch.bfloat16 -> bfloat16, as flags and config.json spell it."""
    return str(dtype).removeprefix("torch.")


def synchronize(device: torch.device) -> None:
    """Wait until what was started there is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


DTYPES = ("float32", "bfloat16", "float16", "float64")
