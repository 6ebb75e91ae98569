"""Memory of a KV state: growth, shared prefixes, windows, release."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
import torch

from engine import LLM, kernels
from engine.cache.kv_state import KVState
from engine.cache.state import Step

CONFIG = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.3,
}


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM.from_config(CONFIG, seed=3, device="cpu")


def forward(llm: LLM, state: KVState, chunks: dict[int, list[int]]) -> torch.Tensor:
    """Logits of all new tokens."""
    rows = list(chunks)
    step = Step.pack(list(chunks.values()), rows, [state.length(row) for row in rows])
    with torch.inference_mode():
        return llm.model.logits(llm.model.forward(step, state))


def test_pack_concatenates_rows():
    step = Step.pack([[5, 6], [7]], rows=[3, 0], starts=[10, 0])
    assert step.tokens.tolist() == [5, 6, 7]
    assert step.positions.tolist() == [10, 11, 0]
    assert step.rows.tolist() == [3, 0]
    assert list(step.slices()) == [slice(0, 2), slice(2, 3)]


@pytest.mark.parametrize("min_tokens", [1, 2, 5, 17])
def test_sixteen_forks_of_a_long_prefix_store_it_once(llm, min_tokens):
    state = llm.model.new_state()
    source = state.acquire()
    state.reserve(source, 2000)
    for _ in range(4):
        forward(llm, state, {source: [1] * 500})
    one_row = 2 * 2 * 2 * 4 * 4 * 2000  # layers, k and v, heads, head_dim, bytes, tokens
    assert state.nbytes == one_row
    forks = [state.acquire() for _ in range(16)]
    state.fork(source, forks)
    forward(llm, state, {row: [2 + i] * (min_tokens + i % 4) for i, row in enumerate(forks)})
    new = sum(min_tokens + i % 4 for i in range(16)) * one_row // 2000
    assert state.nbytes <= 1.1 * one_row + new
    for row in forks:
        state.release(row)
    assert state.nbytes == one_row


def test_capacity_doubles_and_release_frees_it(llm):
    state = llm.model.new_state()
    row = state.acquire()
    sizes = set()
    for _ in range(200):
        forward(llm, state, {row: [1]})
        sizes.add(state.nbytes)
    assert len(sizes) == 7  # 4, 8, 16 … 256 tokens
    state.release(row)
    assert state.nbytes == 0
    with pytest.raises(KeyError):
        state.length(row)


def test_an_interrupted_forward_changes_nothing(llm, monkeypatch):
    state = llm.model.new_state()
    row = state.acquire()
    forward(llm, state, {row: [1, 2, 3]})
    block = llm.model.layers[1]
    monkeypatch.setattr(block.mlp, "forward", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        forward(llm, state, {row: range(kernels.MAX_ROWS + 1)})  # of fewer tokens a kernel computes whole blocks
    monkeypatch.undo()
    assert state.length(row) == 3
    expected = llm.logits([1, 2, 3, 6])[-1]
    assert torch.allclose(forward(llm, state, {row: [6]})[-1], expected, atol=1e-5)


def test_rewind_is_limited_to_the_length_of_the_row(llm):
    state = llm.model.new_state()
    row = state.acquire()
    forward(llm, state, {row: [1, 2, 3]})
    state.checkpoint(row)
    assert state.rewind(row, 99) == 3
    assert state.rewind(row, -1) == 0


def test_a_state_written_in_inference_mode_can_be_used_outside_it(llm):
    state = llm.model.new_state()
    row = state.acquire()
    forward(llm, state, {row: [1, 2, 3]})
    hidden = llm.model.forward(Step.pack([[4]], [row], [3]), state)
    assert torch.allclose(llm.model.logits(hidden)[0], llm.logits([1, 2, 3, 4])[-1], atol=1e-5)


def test_a_prefix_passed_from_fork_to_fork_is_stored_once(llm):
    state = llm.model.new_state()
    row = state.acquire()
    forward(llm, state, {row: [1] * 100})
    for i in range(50):
        fork = state.acquire()
        state.fork(row, [fork])
        state.release(row)
        row = fork
        forward(llm, state, {row: [i]})
    assert state.length(row) == 150
    assert state.nbytes <= 256 * 2 * 2 * 2 * 4 * 4  # one segment, doubled


def test_a_step_with_a_row_twice_or_without_tokens_is_refused(llm):
    state = llm.model.new_state()
    a, b = state.acquire(), state.acquire()
    for step in (Step.pack([[1], [2]], [a, a]), Step.pack([[], [1]], [a, b])):
        with pytest.raises(ValueError, match="distinct rows with a token or more"):
            state.view(step)


def test_a_row_longer_than_its_window_keeps_only_the_window():
    llm = LLM.from_config(CONFIG | {"model_type": "mistral", "sliding_window": 100}, seed=3, device="cpu")
    state = llm.model.new_state()
    row, ids = state.acquire(), [i * 7 % 64 for i in range(1500)]
    state.reserve(row, len(ids))
    for start in range(0, 1500, 75):
        forward(llm, state, {row: ids[start : start + 75]})
        assert state.nbytes <= state.row_bytes(1500) + 75 * state.row_bytes(1)
    assert state.row_bytes(1500) == 228 * state.row_bytes(1)
    assert torch.allclose(forward(llm, state, {row: [5]})[-1], llm.logits([*ids, 5])[-1], atol=1e-5)
    fork = state.acquire()
    state.fork(row, [fork])
    assert state.rewind(row, 1440) == 1440  # within the window
    assert torch.allclose(forward(llm, state, {row: [9]})[-1], llm.logits([*ids[:1440], 9])[-1], atol=1e-5)
    assert state.rewind(row, 700) == 0  # beyond the window: start over
    assert torch.allclose(forward(llm, state, {row: [3, 4]})[-1], llm.logits([3, 4])[-1], atol=1e-5)
    assert torch.allclose(forward(llm, state, {fork: [8]})[-1], llm.logits([*ids, 5, 8])[-1], atol=1e-5)


def test_only_layers_with_a_window_drop_tokens():
    windows = {"use_sliding_window": True, "sliding_window": 50, "max_window_layers": 1}
    llm = LLM.from_config(CONFIG | {"model_type": "qwen2", **windows}, seed=3, device="cpu")
    state = llm.model.new_state()
    row, ids = state.acquire(), [i * 5 % 64 for i in range(900)]
    for start in range(0, 900, 60):
        forward(llm, state, {row: ids[start : start + 60]})
    full, windowed = (sum(s.capacity for s in cache.segments().values()) for cache in state.caches)
    assert full >= 900
    assert windowed <= 50 + 2 * 64 + 60
    assert torch.allclose(forward(llm, state, {row: [5]})[-1], llm.logits([*ids, 5])[-1], atol=1e-5)
