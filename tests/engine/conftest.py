"""Real tokenizers, fixtures for the tests of kernels, and to do on a CPU what is done on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import kernels
from engine.decoding import capture
from engine.kernels import gpu
from engine.text.tokenizer import Tokenizer
from tests.engine.kernels.isas import tested_isas


@pytest.fixture(scope="session")
def load_tokenizer(shared: Path) -> Callable[[str], Tokenizer]:
    """The tokenizers of the shared folder, each loaded once: load_tokenizer("tokenizers/gpt2"). Do not change them."""
    return cache(lambda name: Tokenizer.load(shared / name))


@pytest.fixture(scope="module", params=tested_isas())
def ops(request: pytest.FixtureRequest, two_threads: None) -> Any:
    """The C++ operators for every instruction set that this machine tests, with two threads."""
    return kernels.load(request.param)


def record(work: Callable[[], torch.Tensor], device: torch.device) -> tuple[Callable[[], None], torch.Tensor]:
    """In place of `capture.record`: run the same work on the same buffers again."""
    with torch.inference_mode():
        result = work()

    def replay() -> None:
        with torch.inference_mode():
            result.copy_(work())

    return replay, result


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do on a CPU what is done on a GPU without Triton: keys and values in blocks, captured steps."""
    monkeypatch.setattr(gpu, "DEVICE_TYPES", {"cuda", "cpu"})
    monkeypatch.setattr(gpu, "_operators", lambda device: None)
    monkeypatch.setattr(capture, "record", record)
    monkeypatch.setattr(capture, "is_supported", lambda model, state: True)


@pytest.fixture
def as_on_a_gpu_with_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do on a CPU what is done on a GPU with Triton, in its interpreter, which takes a second per layer and step."""
    pytest.importorskip("triton")
    monkeypatch.setattr(gpu, "DEVICE_TYPES", {"cuda", "cpu"})
    monkeypatch.setattr(kernels, "_active_ops", None)
    monkeypatch.setattr(kernels, "_loaded_ops", None)
    monkeypatch.setattr(capture, "record", record)
