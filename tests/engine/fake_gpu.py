"""A GPU of fake tensors, which have a device and a shape but no numbers: what is launched there, and what waits."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import EllipsisType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from engine.decoding import capture
from engine.kernels import gpu
from engine.runtime import device as device_module
from engine.runtime.memory import free_memory

aten = torch.ops.aten
WITHOUT_A_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "detach", "_unsafe_view", "device"}
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal"}


@dataclass
class Counts:
    """What was counted."""

    launches: Counter[str] = field(default_factory=Counter)  # of PyTorch's and of our kernels
    uploads: int = 0  # copies to the device, for which nothing waits
    waits: list[str] = field(default_factory=list)  # operators that wait, and copies that do
    order: list[str] = field(default_factory=list)  # of copies to the host, for which it waits, and CUDA graphs
    captured: Counter[str] = field(default_factory=Counter)  # launches of the last CUDA graph

    def clear(self) -> None:
        self.launches.clear()
        self.waits.clear()
        self.order.clear()
        self.uploads = 0


class _Operators(TorchDispatchMode):
    """Counts PyTorch's operators on the fake device."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        result = func(*args, **kwargs)
        flat = [each for value in (*args, *kwargs.values(), result) for each in _flat(value)]
        devices = {each.device.type for each in flat if isinstance(each, Tensor)}
        if "cuda" in devices:
            is_copy = name in ("_to_copy", "copy_")
            if name in WAITS or (is_copy and "cpu" in devices and not kwargs.get("non_blocking")):
                self.counts.waits.append(name)
            if name in ("index", "index_put", "index_put_"):
                indices = [each for each in args[1] if each is not None]
                self.counts.waits += [f"{name} with a mask" for each in indices if each.dtype == torch.bool]
            is_view = func.is_view or name.endswith(("view", "split", "unbind"))
            if not is_view and name not in WITHOUT_A_KERNEL:
                self.counts.launches[name] += 1
        return result


def _flat(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else (value,)


class _Indexing(TorchFunctionMode):
    """Indexing and copies by operators, as the usual way asks for a device that torch for CPUs does not have."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__ and args[0].device.type == "cuda":
            view, indices = _basic(args[0], args[1])
            return aten.index.Tensor(view, indices) if any(each is not None for each in indices) else view
        if func is Tensor.__setitem__ and args[0].device.type == "cuda":
            view, indices = _basic(args[0], args[1])
            value = args[2] if isinstance(args[2], Tensor) else torch.tensor(args[2], dtype=view.dtype)
            if any(each is not None for each in indices):
                return aten.index_put_(view, indices, value.to(view.device, view.dtype, non_blocking=True))
            return aten.copy_.default(view, value, non_blocking=True)
        if func is Tensor.copy_:
            return aten.copy_.default(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _basic(x: Tensor, index: Any) -> tuple[Tensor, list[Tensor | None]]:
    """Carry out the slices and numbers of an index. -> the view, and the tensors that remain, by dimension"""
    parts = list(index) if isinstance(index, tuple) else [index]
    if any(isinstance(part, EllipsisType) for part in parts):
        place = next(i for i, part in enumerate(parts) if isinstance(part, EllipsisType))
        given = sum(part is not None for part in parts) - 1
        parts[place : place + 1] = [slice(None)] * (x.dim() - given)
    rest: list[Tensor | None] = []
    for part in parts:
        if part is None:
            x = x.unsqueeze(len(rest))
            rest.append(None)
        elif isinstance(part, slice):
            if part != slice(None):
                x = aten.slice.Tensor(x, len(rest), part.start, part.stop, part.step or 1)
            rest.append(None)
        elif isinstance(part, Tensor):
            rest.append(part)
        else:
            x = aten.select.int(x, len(rest), int(part))
    return x, rest


@contextmanager
def fake_gpu(operators: Any) -> Iterator[Counts]:
    """Count what happens on the device "cuda". `operators`: of Triton, none of which is run; None: without Triton."""
    counts = Counts()

    def upload(values: Sequence[Any] | Tensor, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        counts.uploads += 1
        shape = values.shape if isinstance(values, Tensor) else np.shape(values)
        return torch.empty(shape, dtype=dtype, device=device)

    def start_download(tensor: Tensor) -> Any:
        counts.order.append("download")
        return np.full(tensor.shape, 3).tolist

    def launch(kernel: Any, *_: Any, **__: Any) -> None:
        counts.launches[getattr(kernel, "__name__", None) or kernel.fn.__name__] += 1

    def record(work: Any, _: Any) -> tuple[Any, Tensor]:
        before = counts.launches.copy()
        result = work()
        counts.captured = counts.launches - before

        def replay() -> None:
            counts.launches["CUDA graph"] += 1
            counts.order.append("CUDA graph")

        return replay, result

    replaced = {
        "upload": upload,
        "start_download": start_download,
        "launch": launch,
        "free_memory": lambda device: 2**30,
    }
    originals: dict[str, Any] = {name: getattr(device_module, name) for name in ("upload", "start_download")}
    originals["free_memory"] = free_memory
    if operators is not None:
        from engine.kernels.gpu.launch import launch as original

        originals["launch"] = original
    with ExitStack() as stack:
        for module in [module for name, module in sys.modules.items() if name.startswith("engine.")]:
            for name, function in originals.items():
                if getattr(module, name, None) is function:
                    stack.enter_context(mock.patch.object(module, name, replaced[name]))
        stack.enter_context(mock.patch.object(gpu, "_operators", lambda device: operators))
        stack.enter_context(mock.patch.object(capture, "record", record))
        properties = SimpleNamespace(multi_processor_count=132)
        stack.enter_context(mock.patch.object(torch.cuda, "get_device_properties", lambda device: properties))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(_Indexing())
        stack.enter_context(_Operators(counts))
        yield counts
