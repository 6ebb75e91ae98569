"""The device on which the Triton kernels are tested."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch

from engine.kernels import gpu

HAS_GPU = torch.cuda.is_available()
INTERPRETED = pytest.param(
    "cpu",
    marks=[
        pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed"),
        pytest.mark.skipif(HAS_GPU, reason="the GPU is tested instead of Triton's interpreter"),
    ],
)
COMPILED = pytest.param("cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(not HAS_GPU, reason="needs an NVIDIA GPU")])


@pytest.fixture(params=[INTERPRETED, COMPILED])
def gpu_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A GPU, or a CPU on which Triton's kernels are interpreted."""
    if request.param == "cpu":
        monkeypatch.setattr(gpu, "DEVICE_TYPES", {"cuda", "cpu"})
    return request.param


@pytest.fixture(autouse=True)
def bfloat16_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter has bfloat16 as uint16, and multiplies matrices of that: widen them first."""
    if find_spec("triton") is None:
        return
    from triton import language as tl
    from triton.runtime import interpreter

    builder = type(interpreter.interpreter_builder)
    create_dot = builder.create_dot

    def widened(self: Any, a: Any, b: Any, *arguments: Any) -> Any:
        a, b = (self.create_fp_ext(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return create_dot(self, a, b, *arguments)

    monkeypatch.setattr(builder, "create_dot", widened)
