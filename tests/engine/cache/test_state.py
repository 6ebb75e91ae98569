"""After any sequence of operations each row of a state behaves like a fresh forward pass over its tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine import LLM
from engine.cache.blocks import Budget
from engine.cache.paged import PagedState
from engine.cache.state import State, Step


def forward(llm: LLM, state: State, chunks: dict[int, list[int]]) -> torch.Tensor:
    """Logits of all new tokens."""
    rows = list(chunks)
    step = Step.pack(list(chunks.values()), rows, [state.length(row) for row in rows])
    with torch.inference_mode():
        return llm.model.logits(llm.model.forward(step, state))


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["feed", "feed", "feed", "rewind", "fork", "release", "checkpoint"]),
        st.integers(0, 5),
        st.integers(0, 40),
        st.integers(0, 5),
    ),
    min_size=4,
    max_size=14,
)


SIZE = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "initializer_range": 0.3}
DECODER = SIZE | {"intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
MODELS = {
    "full": DECODER | {"model_type": "llama"},
    "window": DECODER | {"model_type": "mistral", "sliding_window": 7},
    "mixed": DECODER | {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    "mamba": SIZE | {"model_type": "mamba"},
    "rwkv": SIZE | {"model_type": "rwkv"},
}


def paged_state(llm: LLM, budget: Budget | None = None) -> PagedState:
    """The state that the model has on a GPU, on the CPU."""
    config = llm.config
    shape = (config.num_layers, config.num_kv_heads, config.head_dim)
    return PagedState(*shape, llm.dtype, "cpu", config.windows, budget)


@pytest.mark.parametrize("model", [*MODELS, "paged full", "paged window", "paged mixed"])
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=OPERATIONS)
def test_after_random_operations_every_row_equals_a_fresh_forward_pass(
    operations: Any, model: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("engine.cache.state.MIN_SLACK", 4)  # so that short rows exceed their windows
    paged, name = model.startswith("paged"), model.removeprefix("paged ")
    llm = LLM.from_config(MODELS[name], seed=3, device="cpu")
    state = paged_state(llm) if paged else llm.model.new_state()
    texts: dict[int, list[int]] = {state.acquire(): []}
    for number, (operation, first, amount, second) in enumerate(operations):
        rows = list(texts)
        row = rows[first % len(rows)]
        if operation == "feed":
            chosen = {row, rows[second % len(rows)]}
            chunks = {r: [(number * 7 + r * 3 + i) % 64 for i in range(1 + (amount + r) % 40)] for r in chosen}
            logits = forward(llm, state, chunks)
            ends = torch.tensor([len(chunk) for chunk in chunks.values()]).cumsum(0) - 1
            for end, (r, chunk) in zip(ends, chunks.items(), strict=True):
                texts[r] += chunk
                assert torch.allclose(logits[end], llm.logits(texts[r])[-1], atol=1e-4)
        elif operation == "rewind":
            texts[row] = texts[row][: state.rewind(row, amount)]
        elif operation == "checkpoint":
            state.checkpoint(row)
        elif operation == "fork" and len(rows) < 6:
            new = state.acquire()
            state.fork(row, [new])
            texts[new] = list(texts[row])
        elif operation == "release" and len(rows) > 1:
            state.release(row)
            del texts[row]
        assert all(state.length(r) == len(ids) for r, ids in texts.items())
    for row in texts:
        state.release(row)
    assert state.nbytes == 0


@pytest.mark.parametrize("model", ["mamba", "rwkv"])
def test_a_recurrent_checkpoint_keeps_no_other_memory_alive(model):
    llm = LLM.from_config(MODELS[model], seed=3, device="cpu")
    state = llm.model.new_state()
    row = state.acquire()
    for _ in range(3):
        forward(llm, state, {row: list(range(60))})
        state.checkpoint(row)
    storages = {
        id(t.untyped_storage()): t.untyped_storage().nbytes()
        for layer in state._rows[row].current.memory
        for t in layer.values()
    }
    assert state.nbytes == 3 * sum(storages.values())
    assert not any(t.is_inference() for layer in state._rows[row].current.memory for t in layer.values())
    assert state.nbytes <= state.row_bytes(180)


def test_padded_steps_stay_small_for_rows_of_very_different_lengths():
    from engine.decoding.sequence import _plan_steps

    starts, stops = [0] * 101, [1048, *([10] * 100)]
    for padded in (True, False):
        steps = list(_plan_steps(starts, stops, 2048, [0] * 101, padded))
        assert [piece for step in steps for piece in step] == [(i, 0, stop) for i, stop in enumerate(stops)]
        largest = max(len(step) * max(stop - first for _, first, stop in step) for step in steps)
        assert largest <= 2 * 2048 or not padded
        assert len(steps) == (2 if padded else 1)
