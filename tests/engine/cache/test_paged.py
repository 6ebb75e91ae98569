"""Blocks of keys and values: sharing, copies, windows, capacities. What rows contain is tested in test_state.py."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from engine.cache.blocks import MAX_COPIES, Budget
from engine.cache.paged import PagedState
from engine.cache.state import Step
from engine.runtime.errors import BareloopError

LAYERS, KV_HEADS, HEAD_DIM = 2, 2, 4
BLOCK_BYTES = 2 * LAYERS * KV_HEADS * 16 * HEAD_DIM * 4


def new_state(windows: list[int | None] | None = None, budget: Budget | None = None) -> PagedState:
    return PagedState(LAYERS, KV_HEADS, HEAD_DIM, torch.float32, "cpu", windows, budget)


def write(state: PagedState, chunks: dict[int, list[int]]) -> None:
    """A step that writes each token's number as its keys and values, in all layers."""
    rows = list(chunks)
    step = Step.pack(list(chunks.values()), rows, [state.length(row) for row in rows])
    view = state.view(step)
    for layer in range(LAYERS):
        group, index = view.of(layer)
        keys, values = group.kv[index]
        blocks, places = group.slots // 16, group.slots % 16
        keys[blocks, :, places] = values[blocks, :, places] = step.tokens.float()[:, None, None]
    view.commit()


def read(state: PagedState, row: int) -> list[int]:
    """The numbers in the blocks of a row, by the table on the device."""
    state.prepare([row], [0])  # carries out what is collected
    length, line = state.length(row), state._lines[row]
    tokens: set[tuple[int, ...]] = set()
    for layer in range(LAYERS):
        group, index = state.locations[layer]
        cached = state.groups[group]
        first = cached.rows[row].dropped * 16
        blocks = cached.table[line, first // 16 : -(-length // 16)].long()
        for tensor in cached.kv[index]:
            numbers = tensor[blocks].transpose(1, 2).flatten(0, 1)[: length - first, 0, 0]
            tokens.add((*[-1] * first, *numbers.int().tolist()))
    assert len({each[-1] for each in tokens}) <= 1
    return list(min(tokens))


def test_forks_share_whole_blocks_and_copy_the_last_one():
    state = new_state()
    source = state.acquire()
    write(state, {source: list(range(40))})
    assert state.nbytes == 3 * BLOCK_BYTES
    forks = [state.acquire() for _ in range(5)]
    state.fork(source, forks)
    assert state.nbytes == 3 * BLOCK_BYTES
    write(state, {row: [100 + row] for row in forks})
    assert state.nbytes == 8 * BLOCK_BYTES
    write(state, {source: [50], forks[0]: [60]})
    assert state.nbytes == 8 * BLOCK_BYTES  # each writes in its own block
    assert read(state, source) == [*range(40), 50]
    assert read(state, forks[0]) == [*range(40), 101, 60]
    assert read(state, forks[4]) == [*range(40), 105]
    for row in (source, *forks):
        state.release(row)
    assert state.nbytes == 0


def test_a_copy_that_is_forked_before_it_is_made_has_the_content():
    state = new_state()
    a, b, c = (state.acquire() for _ in range(3))
    write(state, {a: list(range(5))})
    state.fork(a, [b])
    state.reserve(b, 3)  # its copy of the block is collected
    state.fork(b, [c])
    state.reserve(c, 3)
    state.release(a)
    d = state.acquire()
    state.reserve(d, 3)  # may take the block of a
    write(state, {d: [9, 9, 9], c: [7], b: [8]})
    assert read(state, b) == [*range(5), 8]
    assert read(state, c) == [*range(5), 7]
    assert read(state, d) == [9, 9, 9]


def test_many_copies_are_made_in_parts():
    state = new_state()
    source = state.acquire()
    write(state, {source: [3] * 5})
    forks = [state.acquire() for _ in range(MAX_COPIES + 10)]
    state.fork(source, forks)
    for row in forks:
        state.reserve(row, 2)
    write(state, {row: [row] for row in forks})
    assert all(read(state, row) == [3] * 5 + [row] for row in forks)


class Counter(TorchDispatchMode):
    """Counts operators."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_nothing_but_a_step_touches_the_device():
    state = new_state([None, 8])
    source = state.acquire()
    state.reserve(source, 200)
    write(state, {source: list(range(100))})
    state.compact(source)  # so that blocks are free
    with Counter() as counter:
        rows = [state.acquire() for _ in range(4)]
        state.fork(source, rows)
        state.rewind(rows[0], 95)
        state.reserve(rows[0], 3)  # with a copy of a block
        state.compact(source)
        state.checkpoint(source)
        state.release(source)
        assert state.nbytes > 0 and state.row_bytes(50) > 0 and state.restorable(rows[0], 90) == 90
    assert counter.count == 0
    write(state, {rows[0]: [200], rows[1]: [201]})
    assert read(state, rows[0])[-3:] == [93, 94, 200]


def test_a_window_frees_the_blocks_before_it():
    state = new_state([8, 8])
    row = state.acquire()
    for number in range(300):
        write(state, {row: [number]})
    assert state.nbytes <= (8 + 64) // 16 * BLOCK_BYTES + 2 * BLOCK_BYTES  # the window, the slack, two partial blocks
    assert read(state, row)[-72:] == list(range(228, 300))
    assert state.rewind(row, 250) == 250
    assert state.rewind(row, 100) == 0  # no longer cached, so the row is empty
    assert state.nbytes == 0


def test_rewinding_keeps_the_reserved_room():
    state = new_state()
    row = state.acquire()
    state.reserve(row, 100)
    write(state, {row: list(range(60))})
    assert state.rewind(row, 20) == 20
    assert state.nbytes == 7 * BLOCK_BYTES
    state.compact(row)
    assert state.nbytes == 2 * BLOCK_BYTES


def test_a_full_state_says_what_to_do():
    state = new_state(budget=Budget(4 * BLOCK_BYTES, 2, 64))
    row = state.acquire()
    state.reserve(row, 64)
    with pytest.raises(
        BareloopError,
        match=r"no room for 32 more tokens: of the 4 blocks of 16 tokens 0 are free; use a shorter context",
    ):
        state.reserve(state.acquire(), 30)


def test_a_budget_is_divided_so_that_the_longest_rows_fit():
    probe = new_state([None, 40])
    budget = Budget(3 * probe.row_bytes(5000), 2, 5000)
    state = new_state([None, 40], budget)
    assert state.capacity_bytes is not None
    assert 0.99 * budget.nbytes < state.capacity_bytes <= budget.nbytes
    rows = [state.acquire() for _ in range(3)]
    for row in rows:
        state.reserve(row, 5000)


@settings(max_examples=60)
@example(seed=116, windows=[None, None])  # a row is released before its entries are in the table
@given(seed=st.integers(0, 10_000), windows=st.sampled_from([[None, None], [None, 24], [24, 24]]))
def test_what_is_admitted_by_bytes_never_lacks_a_block(seed, windows):
    """As the scheduler does it: a row gets in if all bytes fit, begins as a fork, and grows to what it reserved."""
    chooser = random.Random(seed)
    state = new_state(windows, Budget(new_state(windows).row_bytes(1500), 4, 1000))
    texts: dict[int, list[int]] = {}
    room: dict[int, int] = {}
    pointers = [group.kv.data_ptr() for group in state.groups]
    for _ in range(40):
        if chooser.random() < 0.4:
            source = chooser.choice([*texts]) if texts and chooser.random() < 0.7 else None
            shared = 0 if source is None else state.restorable(source, chooser.randrange(len(texts[source]) + 1))
            tokens = shared + chooser.randrange(1, 300)
            if state.nbytes + state.row_bytes(tokens, shared) > state.capacity_bytes:
                continue
            row = state.acquire()
            if source is not None:
                state.fork(source, [row])
                assert state.rewind(row, shared) == shared
            texts[row] = texts[source][:shared] if source is not None else []
            room[row] = tokens - shared
            state.reserve(row, room[row])
        elif texts and chooser.random() < 0.2:
            row = chooser.choice([*texts])
            state.release(row)
            del texts[row], room[row]
        elif texts:
            rows = [row for row in texts if room[row] and chooser.random() < 0.7]
            chunks = {row: [chooser.randrange(1000) for _ in range(chooser.randint(1, room[row]))] for row in rows}
            if chunks:
                write(state, chunks)
            for row, chunk in chunks.items():
                texts[row] += chunk
                room[row] -= len(chunk)
        for row, text in texts.items():
            if text and chooser.random() < 0.1:
                kept = 24 if 24 in windows else len(text)
                assert read(state, row)[-kept:] == text[-kept:]
    assert pointers == [group.kv.data_ptr() for group in state.groups]  # allocated once
    for row in texts:
        state.release(row)
    assert state.nbytes == 0


def test_a_row_that_is_evicted_for_a_copy_makes_the_copy_needless():
    state = new_state(budget=Budget(BLOCK_BYTES, 1, 16))  # one block
    row, kept = state.acquire(), state.acquire()
    write(state, {row: [1, 2, 3]})
    state.fork(row, [kept])
    evicted: list[int] = []

    def evict() -> bool:
        if evicted:
            return False
        evicted.append(kept)
        state.release(kept)
        return True

    state.on_shortage(evict)
    write(state, {row: [4]})  # in its own block, which is no longer shared
    assert evicted and read(state, row) == [1, 2, 3, 4]
    state.release(row)
    assert state.nbytes == 0


def test_a_long_row_with_a_window_keeps_its_reservation_and_the_size_of_the_table():
    state = new_state([8, 8], Budget(1000 * BLOCK_BYTES, 1, 512, 0, 32))
    row, version = state.acquire(), state.version
    state.reserve(row, 512)
    reserved = state.nbytes
    for start in range(0, 512, 32):
        assert state.nbytes == reserved or start > 400  # near the end it needs fewer
        write(state, {row: list(range(start, start + 32))})
    assert read(state, row)[-72:] == list(range(440, 512))
    assert state.version == version and state.nbytes <= reserved
