"""The float32 logits of every family against transformers' float64, for every way of computing them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from engine import LLM, kernels
from engine.cache.state import Step
from engine.models import FAMILIES, configure
from engine.models.config_reader import Keys
from engine.runtime.errors import BareloopError

Prompt = Callable[..., list[int]]


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, in units of max(1, largest |logit|)."""
    return float((actual.double() - expected).abs().max() / max(1.0, float(expected.abs().max())))


@pytest.fixture(scope="session")
def llm(tiny) -> LLM:  # type: ignore[no-untyped-def]
    return LLM.load(tiny.folder, device="cpu", dtype="float32")


def run(llm: LLM, chunks: list[list[int]], rows: list[int], starts: list[int], state) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """The logits of one step. `starts`: the positions of the chunks in their rows."""
    with torch.inference_mode():
        return llm.model.logits(llm.model.forward(Step.pack(chunks, rows, starts), state))


def test_logits_of_a_whole_prompt(tiny, llm, prompt):
    ids = prompt(40)
    step = Step.pack([ids])
    assert error(llm.model.logits(llm.model.forward(step)).detach(), tiny.logits(ids)) <= tiny.tolerance
    assert error(llm.logits(ids), tiny.logits(ids)) <= tiny.tolerance


def test_rows_of_different_lengths_without_a_state(tiny, llm, prompt):
    rows = [prompt(length, length) for length in (5, 23, 40)]
    logits = llm.model.logits(llm.model.forward(Step.pack(rows))).detach()
    assert error(logits, torch.cat([tiny.logits(row) for row in rows])) <= tiny.tolerance


def test_prefill_in_chunks(tiny, llm, prompt):
    ids, state = prompt(40), llm.model.new_state()
    row = state.acquire()
    pieces = [run(llm, [ids[a:b]], [row], [a], state) for a, b in ((0, 13), (13, 14), (14, 31), (31, 40))]
    assert error(torch.cat(pieces), tiny.logits(ids)) <= tiny.tolerance


def test_prefill_token_by_token(tiny, llm, prompt):
    ids, state = prompt(40), llm.model.new_state()
    row = state.acquire()
    pieces = [run(llm, [[token]], [row], [position], state) for position, token in enumerate(ids)]
    assert error(torch.cat(pieces), tiny.logits(ids)) <= tiny.tolerance


def test_rows_of_different_lengths_continue_in_another_order(tiny, llm, prompt):
    first = [prompt(length, length) for length in (5, 23, 40)]
    then = [prompt(length, 100 + length) for length in (17, 1, 6)]
    state = llm.model.new_state()
    rows = [state.acquire() for _ in first]
    starts = [len(ids) for ids in first]
    first_logits = run(llm, first, rows, [0, 0, 0], state)
    order = [2, 0, 1]  # not the order in which the rows were acquired
    then_logits = run(llm, [then[i] for i in order], [rows[i] for i in order], [starts[i] for i in order], state)
    expected = [tiny.logits(a + b) for a, b in zip(first, then, strict=True)]
    assert error(first_logits, torch.cat([e[:n] for e, n in zip(expected, starts, strict=True)])) <= tiny.tolerance
    assert error(then_logits, torch.cat([expected[i][starts[i] :] for i in order])) <= tiny.tolerance


def test_rewind_then_continue_equals_a_fresh_prefill(tiny, llm, prompt):
    ids, other, state = prompt(40), prompt(20, 9), llm.model.new_state()
    row = state.acquire()
    run(llm, [ids[:17]], [row], [0], state)
    state.checkpoint(row)
    run(llm, [ids[17:30]], [row], [17], state)
    run(llm, [ids[30:]], [row], [30], state)
    for length in (19, 17):
        start = state.rewind(row, length)
        assert start == (length if state.rewinds_anywhere else 17)
        logits = run(llm, [other], [row], [start], state)
        assert error(logits, tiny.logits(ids[:start] + other)[start:]) <= tiny.tolerance
    assert state.rewind(row, 3) == (3 if state.rewinds_anywhere else 0)


def test_forks_are_independent(tiny, llm, prompt):
    shared, state = prompt(30), llm.model.new_state()
    source = state.acquire()
    run(llm, [shared[:12]], [source], [0], state)
    state.checkpoint(source)
    run(llm, [shared[12:]], [source], [12], state)
    forks = [state.acquire() for _ in range(3)]
    state.fork(source, forks)
    rows = [source, *forks]
    suffixes = [prompt(length, 50 + length) for length in (4, 1, 9, 2)]
    logits = run(llm, suffixes, rows, [30] * 4, state)
    expected = [tiny.logits(shared + suffix)[30:] for suffix in suffixes]
    assert error(logits, torch.cat(expected)) <= tiny.tolerance
    # Then one more token for each, after the source was rewound into the shared part.
    state.rewind(source, 12)
    starts = [12, *(30 + len(suffix) for suffix in suffixes[1:])]
    prefixes = [shared[:12], *(shared + suffix for suffix in suffixes[1:])]
    logits = run(llm, [[7], [8], [9], [10]], rows, starts, state)
    expected = [tiny.logits([*ids, 7 + i])[-1] for i, ids in enumerate(prefixes)]
    assert error(logits, torch.stack(expected)) <= tiny.tolerance


@pytest.mark.parametrize("last", [[0, 0, 0], [1, 1, 1], [6, 0, 17], [17, 1, 6]])
def test_only_the_requested_trailing_positions_are_returned(tiny, llm, prompt, last):
    first = [prompt(length, length) for length in (5, 23, 40)]
    then = [prompt(length, 100 + length) for length in (17, 1, 6)]
    last = [min(count, len(ids)) for count, ids in zip(last, then, strict=True)]
    for before in (first, [[], [], []]):  # after cached tokens, and from the start
        state = llm.model.new_state()
        rows = [state.acquire() for _ in before]
        if any(before):
            run(llm, before, rows, [0, 0, 0], state)
        with torch.inference_mode():
            hidden = llm.model.forward(Step.pack(then, rows, [len(ids) for ids in before]), state, last)
            logits = llm.model.logits(hidden)
        next_tokens = [[7], [8], [9]]
        next_logits = run(llm, next_tokens, rows, [state.length(row) for row in rows], state)
        expected = [tiny.logits(a + b + c) for a, b, c in zip(before, then, next_tokens, strict=True)]
        requested = torch.cat([e[len(e) - 1 - count : -1] for e, count in zip(expected, last, strict=True)])
        assert len(logits) == sum(last)
        assert len(logits) == 0 or error(logits, requested) <= tiny.tolerance
        assert error(next_logits, torch.stack([e[-1] for e in expected])) <= tiny.tolerance


def test_gathered_attention_as_on_gpus_equals_the_kernel(tiny, llm, prompt, monkeypatch):
    """Without the C++ kernels, all keys of a row are gathered, and attended to with a mask."""
    monkeypatch.setattr(kernels, "_active_ops", None)
    test_prefill_in_chunks(tiny, llm, prompt)
    test_forks_are_independent(tiny, llm, prompt)
    test_rows_of_different_lengths_continue_in_another_order(tiny, llm, prompt)


@pytest.mark.parametrize("window", [None, 150])
def test_prompts_longer_than_a_block_of_queries(draw_tiny, prompt, window):
    tiny = draw_tiny("mistral", sliding_window=window, max_position_embeddings=1024)
    llm = LLM.load(tiny.folder, device="cpu", dtype="float32")
    ids = prompt(400)
    expected = tiny.logits(ids)
    assert error(llm.logits(ids), expected) <= tiny.tolerance
    assert error(llm.model.logits(llm.model.forward(Step.pack([ids]))).detach(), expected) <= tiny.tolerance
    sequence = llm.sequence()
    sequence.feed(ids[:133])
    assert error(sequence.feed_with_logits(ids[:399], last=266), expected[133:399]) <= tiny.tolerance
    assert error(sequence.feed_with_logits(ids, last=1), expected[399:]) <= tiny.tolerance


# Rounding to 8 and 11 bits of mantissa, through three layers whose weights are scaled by 4. The error grows in Mamba's
# repeated products: the largest differences of transformers from its own float64 are 0.30 (bfloat16), 0.043 (float16).
@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 4e-2), ("float16", 6e-3)])
def test_half_precision_is_close_to_float64(tiny, prompt, dtype, tolerance):
    ids = prompt(40)
    llm = LLM.load(tiny.folder, device="cpu", dtype=dtype)
    if llm.family.model_type == "mamba":
        tolerance *= 7
    assert error(llm.logits(ids), tiny.logits(ids)) <= tolerance
    sequence = llm.sequence()
    sequence.feed(ids[:20])
    assert error(sequence.feed_with_logits(ids, last=15).float(), tiny.logits(ids)[25:]) <= tolerance


def test_gradients_flow_to_every_parameter(tiny, prompt):
    llm = LLM.load(tiny.folder, device="cpu", dtype="float32")
    llm.model.requires_grad_(True)
    llm.model.logits(llm.model.forward(Step.pack([prompt(12)]))).logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in llm.model.parameters())


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "mscale": 1.0,
            "mscale_all_dim": 0.5,
        },
        {
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 16,
            "attention_factor": 1.3,
            "truncate": False,
        },
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ],
    ids=lambda rope: rope["rope_type"],
)
@pytest.mark.parametrize("length", [10, 50])
def test_rope_scalings_equal_transformers(draw_tiny, prompt, rope, length):
    """50 tokens are more than the trained window of 32, beyond which `dynamic` changes its frequencies."""
    tiny = draw_tiny("llama", max_position_embeddings=32, rope_parameters={"rope_theta": 10000.0, **rope})
    llm = LLM.load(tiny.folder, device="cpu", dtype="float32")
    rows = [prompt(length), prompt(3, 1)]  # the length of the first row must not affect the second
    logits = llm.model.logits(llm.model.forward(Step.pack(rows))).detach()
    assert error(logits, torch.cat([tiny.logits(row) for row in rows])) <= tiny.tolerance


def test_an_unknown_family_is_refused_with_the_known_ones():
    with pytest.raises(BareloopError, match=r"'gpt_oss'.*known: llama, mistral, qwen2, qwen3, olmo"):
        configure({"model_type": "gpt_oss"})
    with pytest.raises(BareloopError, match="no model_type"):
        configure({})


def test_families_are_registered_by_their_model_type():
    assert all(family.model_type == name for name, family in FAMILIES.items())


@pytest.mark.parametrize(
    ("key", "value"), [("attn_logit_softcapping", 50.0), ("sliding_window", 64), ("clip_qkv", 8.0)]
)
def test_a_key_that_is_not_implemented_is_refused_by_name(key, value):
    raw = {
        "model_type": "llama",
        "vocab_size": 8,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    configure(raw | {key: None})
    with pytest.raises(BareloopError, match=key):
        configure(raw | {key: value})
    assert Keys(raw).get(key) is None
