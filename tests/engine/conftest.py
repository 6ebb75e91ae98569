"""Fixtures for the tests of kernels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from engine import kernels
from engine.kernels import build


@pytest.fixture(scope="module", params=[isa for isa in build.FLAGS if isa in build.supported_isas()])
def ops(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The C++ operators for every instruction set that this machine supports, with two threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield kernels.load(request.param)
    torch.set_num_threads(threads)
