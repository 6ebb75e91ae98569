"""Memory that is freed and returned."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from engine.runtime.memory import BLOCK_BYTES, LARGE_PAGE, LargePages, keep_freed_memory, release_freed_memory

SIZE = 2**27  # bytes: less than the heap keeps


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="only there freed memory is kept")
def test_memory_that_is_kept_for_speed_can_be_returned():
    keep_freed_memory()
    numbers = torch.zeros(SIZE // 4).fill_(1)
    full = resident()
    del numbers
    release_freed_memory()
    assert full - resident() > SIZE // 2


def test_tensors_share_blocks_in_large_pages_and_keep_their_shapes():
    pages = LargePages()
    plain = [torch.empty(3, 5), torch.empty(7, dtype=torch.int8), torch.empty(2, 4, dtype=torch.bfloat16)]
    placed = [pages.place(tensor) for tensor in plain]
    for number, (tensor, like) in enumerate(zip(placed, plain, strict=True)):
        assert tensor.shape == like.shape and tensor.dtype == like.dtype and tensor.is_contiguous()
        assert tensor.data_ptr() % 64 == 0
        tensor.fill_(number + 1)
    assert placed[0].data_ptr() % LARGE_PAGE == 0
    assert [tensor.unique().item() for tensor in placed] == [1, 2, 3]
    assert len({tensor.untyped_storage().data_ptr() for tensor in placed}) == 1


def test_what_does_not_fit_begins_a_block_and_a_block_is_freed_with_its_tensors():
    pages = LargePages()
    small, large = pages.place(torch.empty(10)), pages.place(torch.empty(BLOCK_BYTES, dtype=torch.uint8))
    assert large.data_ptr() % LARGE_PAGE == 0 and len(large) == BLOCK_BYTES
    storages = [torch.multiprocessing.reductions.StorageWeakRef(part.untyped_storage()) for part in (small, large)]
    del large, pages
    assert [storage.expired() for storage in storages] == [False, True]
    del small
    assert storages[0].expired()


def test_a_change_of_a_tensor_is_none_of_its_neighbours_for_autograd():
    pages = LargePages()
    first, second = (torch.nn.Parameter(pages.place(torch.empty(4)).fill_(2)) for _ in range(2))
    product = (first * second).sum()
    with torch.no_grad():
        pages.place(torch.empty(4)).fill_(3)
    product.backward()
    assert torch.equal(first.grad, second.detach())


def test_other_devices_and_empty_tensors_are_left_alone():
    pages = LargePages()
    for tensor in (torch.empty(4, device="meta"), torch.empty(0)):
        assert pages.place(tensor) is tensor
