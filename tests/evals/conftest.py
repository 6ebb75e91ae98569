"""Fixtures of the benchmarks' tests."""

from __future__ import annotations

import os

import pytest
import torch

from evals.data.mmlu import MMLU


@pytest.fixture
def restored():
    """The environment and torch's threads are afterwards as they were: workers in this process change them."""
    environment, threads = {**os.environ}, torch.get_num_threads()
    yield
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def mmlu_read_once(shared):
    """The questions of the shared folder are parsed once for all tests of a module; none changes them."""
    load, loaded = MMLU._load_local, {}

    def load_once(self, folder, split):
        if not folder.is_relative_to(shared):
            return load(self, folder, split)
        if (folder, split) not in loaded:
            loaded[folder, split] = load(self, folder, split)
        return loaded[folder, split]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MMLU, "_load_local", load_once)
        yield
