"""Several rows through the C++ kernels: each has the bits that it has alone, however its keys are shared and cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine import LLM, SamplingParams, kernels
from engine.cache.state import Step
from engine.decoding.loop import decode

LLAMA = {
    "model_type": "llama",
    "vocab_size": 101,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "max_position_embeddings": 4096,
    "initializer_range": 0.2,
}
MODELS = {
    "llama": LLAMA,
    "window": {**LLAMA, "model_type": "mistral", "sliding_window": 100},
    "mamba": {
        "model_type": "mamba",
        "vocab_size": 101,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "state_size": 8,
        "initializer_range": 0.2,
    },
    "rwkv": {"model_type": "rwkv", "vocab_size": 101, "hidden_size": 64, "num_hidden_layers": 2, "context_length": 999},
}


@pytest.fixture
def active(ops: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Every instruction set in turn is in use."""
    monkeypatch.setattr(kernels, "_loaded_ops", ops)
    monkeypatch.setattr(kernels, "_active_ops", ops)
    return ops


def model(name: str, dtype: str = "bfloat16") -> LLM:
    return LLM.from_config(MODELS[name], seed=1, device="cpu", dtype=dtype)


def draw(count: int, seed: int) -> list[int]:
    return torch.randint(0, 101, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.inference_mode()
def next_logits(llm: LLM, sequences: list[Any], chunks: list[list[int]]) -> list[torch.Tensor]:
    """Feed a chunk to each sequence in one step -> the logits of all its tokens, for each."""
    rows, starts = [s.row for s in sequences], [len(s.ids) for s in sequences]
    hidden = llm.model(Step.pack(chunks, rows, starts), sequences[0].state)
    for sequence, chunk in zip(sequences, chunks, strict=True):
        sequence.ids += chunk
    return list(llm.model.logits(hidden).split([len(chunk) for chunk in chunks]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["llama", "window"])
@pytest.mark.parametrize("length", [3, 63, 130, 700])
def test_forks_have_the_bits_of_separate_rows(active, name, dtype, length):
    llm, count = model(name, dtype), 11
    root = llm.sequence()
    root.feed(draw(length, seed=0))
    forks = root.fork(count)
    separate = [llm.sequence(), llm.sequence()]  # one for the even rows, one for the odd ones
    for sequence in separate:
        sequence.feed(root.ids)
    next_logits(llm, separate[1:], [draw(70, seed=1)])
    for row in range(1, count, 2):  # two levels of forks
        next_logits(llm, [forks[row]], [draw(70, seed=1)])
        forks[row] = forks[row].fork(1)[0]
    together = [next_logits(llm, forks, [[row + step] for row in range(count)]) for step in range(3)]
    for row in range(count):
        sequence = separate[row % 2]
        before = len(sequence.ids)
        for step in range(3):
            assert torch.equal(together[step][row], next_logits(llm, [sequence], [[row + step]])[0]), row
        assert sequence.state.rewind(sequence.row, before) == before
        del sequence.ids[before:]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["llama", "window"])
def test_several_tokens_of_a_row_have_the_bits_of_one_at_a_time(active, name, dtype):
    llm = model(name, dtype)
    for length in (1, 60, 511):
        rows = llm.prefilled_sequences([draw(length, seed=row % 3) for row in range(6)])
        chunks = [draw(count, seed=count) for count in (8, 1, 5)]
        together = next_logits(llm, rows[:3], chunks)
        for sequence, chunk, logits in zip(rows[3:], chunks, together, strict=True):
            one_by_one = [next_logits(llm, [sequence], [[token]])[0] for token in chunk]
            assert torch.equal(logits, torch.cat(one_by_one))


@pytest.mark.parametrize(
    ("name", "quant"), [(name, "none") for name in MODELS] + [("llama", "int8"), ("llama", "int4"), ("mamba", "int4")]
)
def test_many_prompts_together_give_the_text_of_each_alone(name, quant, tmp_path):
    if not kernels.available():
        pytest.skip("no C++ kernels")
    llm = model(name)
    if quant != "none":
        llm.save(tmp_path / "model")
        llm = LLM.load(tmp_path / "model", device="cpu", quant=quant)
    prompts = [draw(3 + 7 * row % 40, seed=row) for row in range(32)]
    for temperature in (0.0, 1.0):
        params = SamplingParams(temperature, seed=5, max_new_tokens=5, ignore_eos=True)
        alone = [llm.generate([prompt], params)[0].token_ids for prompt in prompts]
        for count in (16, 32):
            assert [completion.token_ids for completion in llm.generate(prompts[:count], params)] == alone[:count]


def test_a_step_of_32_rows_is_one_call(active, monkeypatch):
    llm = model("llama")
    root = llm.sequence()
    root.feed(draw(20, seed=0))
    sequences = root.fork(kernels.MAX_ROWS)
    monkeypatch.setattr(llm.model.layers[0], "forward", None)  # it would be called without the kernel for blocks
    assert len(list(decode(sequences, SamplingParams(max_new_tokens=2, ignore_eos=True)))) == 2 * kernels.MAX_ROWS
