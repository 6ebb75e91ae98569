"""Flags and fixtures of the benchmarks: a model for every device and weight format."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.measure import Limits, load_options
from bench.shapes import checkpoint
from engine import LLM, kernels
from engine.runtime.device import choose_device
from engine.runtime.errors import BareloopError

DEVICES = ("cpu", "cuda", "mps")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the flags of `pytest --benchmark-only`."""
    group = parser.getgroup("bareloop")
    group.addoption(
        "--bench-model", default="qwen2.5-0.5b", help="a shape (bench/shapes.py), smollm2, or a model's path"
    )
    group.addoption(
        "--bench-formats",
        nargs="+",
        default=["bfloat16"],
        help="dtypes or weight formats: bfloat16, float32, int8, int4, …",
    )
    group.addoption(
        "--bench-full", action="store_true", help="all contexts and numbers of rows, and the peers: up to an hour"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every benchmark of a model on every device with every format."""
    if "llm" in metafunc.fixturenames:
        formats = metafunc.config.getoption("--bench-formats")
        cases = [(device, weight_format) for device in DEVICES for weight_format in formats]
        metafunc.parametrize("llm", cases, ids=["-".join(case) for case in cases], indirect=True, scope="session")


@pytest.fixture(scope="session")
def llm(request: pytest.FixtureRequest) -> LLM:
    """The model on one device in one format; skipped, with the reason, if the machine does not have the device."""
    device, weight_format = request.param
    try:
        choose_device(device)
    except BareloopError as error:
        pytest.skip(str(error))
    model = LLM.load(
        checkpoint(request.config.getoption("--bench-model")), device=device, **load_options(weight_format)
    )
    kernels.wait()
    return model


@pytest.fixture(scope="session")
def limits(llm: LLM) -> Limits:
    """The limits of the device, measured repeatedly while the benchmarks run."""
    return Limits(llm.device, llm.dtype)


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    """Whether to measure everything (--bench-full)."""
    return bool(request.config.getoption("--bench-full"))


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:  # noqa: ARG001
    """Add torch's threads and accelerator to the machine info."""
    cuda = torch.cuda.is_available()
    machine_info["threads"] = torch.get_num_threads()
    machine_info["accelerator"] = torch.cuda.get_device_name() if cuda else None
