"""The kernels' own threads: whatever they do, a caller gets the same bits, and is never kept waiting for them."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

ROWS, COLUMNS = 1000, 512


@pytest.fixture
def product():
    """x and W."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, COLUMNS, generator=generator), torch.randn(ROWS, COLUMNS, generator=generator)


@pytest.fixture
def restored_threads():
    """Restore the number of threads after the test."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_more_threads_than_cores_change_no_bit(ops, product, restored_threads):
    torch.set_num_threads(1)
    expected = ops.linear(*product, None, None)
    for threads in (2, 3, 16):
        torch.set_num_threads(threads)
        for _ in range(50):
            assert torch.equal(ops.linear(*product, None, None), expected)


def test_several_callers_at_once_get_their_own_results(ops):
    inputs = [torch.full((1, COLUMNS), float(caller)) for caller in range(4)]
    weight = torch.ones(ROWS, COLUMNS)

    def compute(x: torch.Tensor) -> bool:
        return all(bool((ops.linear(x, weight, None, None) == x[0, 0] * COLUMNS).all()) for _ in range(100))

    with ThreadPoolExecutor(len(inputs)) as callers:
        assert all(callers.map(compute, inputs))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_forked_process_computes_without_the_threads_that_it_lacks(ops, product):
    """They never begin, so nothing waits for them."""
    expected = ops.linear(*product, None, None)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(ops.linear(*product, None, None), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
