"""Fixtures for the tests of kernels."""

from __future__ import annotations

from typing import Any

import pytest

from engine import kernels
from engine.kernels import build


@pytest.fixture(scope="module", params=[isa for isa in build.FLAGS if isa in build.supported_isas()])
def ops(request: pytest.FixtureRequest, two_threads: None) -> Any:
    """The C++ operators for every instruction set that this machine supports, with two threads."""
    return kernels.load(request.param)
