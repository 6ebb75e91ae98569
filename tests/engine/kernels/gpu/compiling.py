"""python compiling.py 90 FILE…: compile all kernels that the `calls` of test files launch, without a GPU.

Triton's interpreter runs programs that its compiler refuses. So each test file of kernels has a function `calls()`,
which calls its operators with CPU tensors of typical shapes and dtypes; here every launch compiles the kernel down to
machine code for one compute capability (80: A100, 90: H100) instead of running it. Prints a line for each kernel.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

os.environ["TRITON_INTERPRET"] = "0"
sys.path.insert(0, str(Path(__file__).parents[4]))

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

CAPABILITY = int(sys.argv[1])
SHARED_MEMORY = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448}  # bytes that a block can have


class Driver:
    """What Triton asks of a driver before it launches."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", CAPABILITY, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def compile_only(kernel: Any, grid: tuple[int, ...], first: Tensor, *arguments: Any, **constants: Any) -> None:
    """In place of `engine.kernels.gpu.launch.launch`."""
    compiled = kernel.warmup(first, *arguments, grid=grid, **constants)
    name, shared = compiled.metadata.name, compiled.metadata.shared
    types = ", ".join(
        str(each.dtype).removeprefix("torch.") for each in (first, *arguments) if isinstance(each, Tensor)
    )
    assert shared <= SHARED_MEMORY[CAPABILITY], f"{name} needs {shared} bytes of shared memory"
    assert compiled.asm["cubin"]
    assert all(1 <= size < 2**31 for size in grid), f"{name}: grid {grid}"
    assert all(size <= 65535 for size in grid[1:]), f"{name}: grid {grid}"
    print(f"{name}({types}) {constants}: {shared} bytes of shared memory, {compiled.metadata.num_warps} warps")


def main(paths: list[str]) -> None:
    driver.set_active(Driver())
    from engine.kernels.gpu import launch, operators

    modules = [module for name, module in sys.modules.items() if name.startswith("engine.kernels.gpu.")]
    assert operators in modules
    with torch.inference_mode(), mock.patch.object(launch, "launch", compile_only):
        for module in modules:
            if hasattr(module, "launch") and module is not launch:
                module.launch = compile_only
        for path in paths:
            spec = importlib.util.spec_from_file_location(Path(path).stem, path)
            assert spec is not None and spec.loader is not None
            tests = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(tests)
            tests.calls()


if __name__ == "__main__":
    main(sys.argv[2:])
