"""Fixtures of the benchmarks' tests."""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture
def restored():
    """The environment and torch's threads are afterwards as they were: workers in this process change them."""
    environment, threads = {**os.environ}, torch.get_num_threads()
    yield
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(threads)
