"""Keys and values in blocks and captured steps give the same tokens as the CPU's own way, and nothing leaks."""

from __future__ import annotations

import random

import pytest
import torch

from engine import LLM, SamplingParams
from engine.cache.paged import PagedState
from engine.decoding import capture
from engine.decoding.capture import CapturedSteps
from engine.decoding.scheduling import states
from engine.decoding.scheduling.scheduler import Scheduler
from engine.runtime.errors import BareloopError

VARIANTS = ("llama", "mistral-window", "qwen2-window", "gemma2", "olmo2", "gpt2", "phi")


def prompts_and_params(count: int) -> list[tuple[list[int], SamplingParams]]:
    """Prompts of random lengths that begin alike in part, greedy and sampled."""
    chooser = random.Random(11)
    beginning = [chooser.randrange(2, 120) for _ in range(40)]
    requests = []
    for number in range(count):
        ids = [*beginning[: chooser.choice((0, 16, 33))], *(chooser.randrange(2, 120) for _ in range(1 + number * 3))]
        sampled = {"temperature": 0.8, "top_p": 0.9, "seed": number} if number % 3 == 1 else {}
        penalty = {"repetition_penalty": 1.2} if number % 3 == 2 else {}
        params = SamplingParams(max_new_tokens=5 + 3 * number, ignore_eos=True, **sampled, **penalty)
        requests.append((ids, params))
    return requests


def run(llm: LLM, requests: list[tuple[list[int], SamplingParams]], **options) -> list[list[int]]:
    """The tokens of all requests; half of them arrive later."""
    with Scheduler(llm, prefill_chunk=16, **options) as scheduler:
        submitted = []
        for ids, params in requests:
            submitted.append(scheduler.submit(ids, params))
            if len(submitted) > len(requests) // 2:
                scheduler.step()
        tokens = [[event.token_id for event in request] for request in submitted]
        scheduler.cache.clear()
        assert scheduler.state.nbytes == 0
    return tokens


@pytest.mark.parametrize("variant", VARIANTS)
def test_blocks_and_captured_steps_give_the_tokens_of_the_cpu(draw_tiny, variant, request):
    llm = LLM.load(draw_tiny(variant).folder, device="cpu", dtype="float32")
    requests = prompts_and_params(7)
    expected = run(llm, requests)
    request.getfixturevalue("as_on_a_gpu")
    assert run(llm, requests) == expected  # with graphs
    state, captured = llm.states._idle[0]
    assert isinstance(state, PagedState) and captured is not None
    assert {1, 2, 4} <= captured._graphs.keys() <= {*capture.ROWS}
    again = run(llm, requests)  # in the same blocks, with the same graphs
    assert again == expected and llm.states._idle[0][0] is state
    llm.states.cuda_graphs = False
    llm.states._idle.clear()
    assert run(llm, requests) == expected
    assert llm.states._idle[0][1] is None


@pytest.mark.parametrize("variant", ["llama", "gemma2"])
def test_scores_over_blocks_equal_those_of_the_cpu(draw_tiny, prompt, variant, request):
    llm = LLM.load(draw_tiny(variant).folder, device="cpu", dtype="float32")
    shots = prompt(60)
    contexts = [[*shots, *prompt(3 + 5 * number, number)] for number in range(9)]
    requests = [(context, [token, *[9] * (token % 3)]) for context in contexts for token in (5, 6, 7, 8)]
    expected = llm.score(requests)
    request.getfixturevalue("as_on_a_gpu")
    for score, known in zip(llm.score(requests, batch_tokens=16_384), expected, strict=True):
        assert score.loglikelihood == pytest.approx(known.loglikelihood, abs=1e-4)
        assert score.is_greedy == known.is_greedy


def test_captured_steps_read_tokens_on_the_device(as_on_a_gpu, tiny_llama, prompt):
    llm = LLM.load(tiny_llama.folder, device="cpu", dtype="float32")
    state = llm.model.new_state()
    captured = CapturedSteps.of(llm.model, state)
    sequences = [llm.sequence(state) for _ in range(3)]
    for number, sequence in enumerate(sequences):
        sequence.feed(prompt(5 + 20 * number))
    rows = [sequence.row for sequence in sequences]
    for step in range(40):  # over the ends of blocks, and a table that grows
        tokens = [(7 * step + row) % 100 + 2 for row in range(3)]
        logits = captured.run(rows, torch.tensor(tokens) if step % 2 else tokens)
        for number, sequence in enumerate(sequences):
            sequence.ids.append(tokens[number])
            assert state.length(rows[number]) == len(sequence.ids)
    for sequence, row in zip(sequences, logits, strict=True):
        assert torch.allclose(row, llm.logits(sequence.ids)[-1], atol=1e-4)
    assert captured.run(list(range(33)), [0] * 33) is None


def test_a_failed_capture_falls_back_with_one_warning(as_on_a_gpu, tiny_llama, prompt, monkeypatch, caplog):
    llm = LLM.load(tiny_llama.folder, device="cpu", dtype="float32")
    expected = llm.generate([prompt(9)])[0].token_ids
    llm.states._idle.clear()

    def fail(work, device):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(capture, "record", fail)
    assert llm.generate([prompt(9)])[0].token_ids == expected
    assert [record.message for record in caplog.records] == [
        "decoding without CUDA graphs, which is slower (CUDA error: operation not permitted when stream is capturing)"
    ]


def test_rows_with_windows_never_lack_the_blocks_that_they_reserved(draw_tiny, request):
    """Long rows leave their windows behind, in memory for two of them, with prefixes of running and kept rows."""
    llm = LLM.load(draw_tiny("mistral-window", max_position_embeddings=512).folder, device="cpu", dtype="float32")
    chooser = random.Random(0)
    beginning = [chooser.randrange(2, 120) for _ in range(200)]
    requests = []
    for _ in range(12):
        ids = [*beginning[: chooser.choice((0, 33, 200))], *(chooser.randrange(2, 120) for _ in range(40))]
        requests.append((ids, SamplingParams(max_new_tokens=chooser.choice((5, 90, 150)), ignore_eos=True)))
    expected = run(llm, requests)
    request.getfixturevalue("as_on_a_gpu")
    for exact in (True, False):
        room = 2 * PagedState(3, 2, 8, torch.float32, "cpu", (7, 7, 7)).row_bytes(512)
        assert run(llm, requests, cache_bytes=room, exact=exact) == expected


def test_a_conversation_with_windows_goes_on_in_its_row(draw_tiny, prompt, request):
    llm = LLM.load(draw_tiny("gemma2", max_position_embeddings=4096).folder, device="cpu", dtype="float32")
    request.getfixturevalue("as_on_a_gpu")
    conversation: list[int] = []
    with Scheduler(llm, 1, 512, 2 * llm.model.new_state().row_bytes(600), exact=False) as scheduler:
        for turn in range(6):
            conversation += prompt(60, turn)
            reply = scheduler.submit(conversation, SamplingParams(max_new_tokens=20, ignore_eos=True))
            cached = len(conversation) - 60 - 1 if turn else 0
            conversation += [event.token_id for event in reply]
            assert reply.cached_tokens == cached


def test_a_scheduler_gets_the_state_that_it_needs(as_on_a_gpu, tiny_llama, monkeypatch):
    free = 2**24
    monkeypatch.setattr(states, "free_memory", lambda device: free)
    llm = LLM.load(tiny_llama.folder, device="cpu", dtype="float32")
    with Scheduler(llm) as scheduler:
        large = scheduler.state
        assert 0.85 * 2**24 < large.capacity_bytes <= 0.9 * 2**24
    free = 2**24 - large.allocated_bytes
    with Scheduler(llm) as scheduler:
        assert scheduler.state is large
    with Scheduler(llm, cache_bytes=2**20) as scheduler:
        assert scheduler.state.capacity_bytes <= 2**20
        free = 2**24 - 2**20  # the large one was released
    with Scheduler(llm) as scheduler:
        assert scheduler.state.capacity_bytes == large.capacity_bytes
        with pytest.raises(BareloopError, match=r"and there are .* GB for all requests, enough for \d+ tokens; use"):
            Scheduler(llm, cache_bytes=2**13).submit([5] * 200)
