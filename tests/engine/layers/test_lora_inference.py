"""Adapters without gradients: in the kernels for whole blocks, module by module, with and without captured steps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from engine import LLM, SamplingParams, kernels
from engine.cache.state import Step
from engine.decoding.capture import CapturedSteps
from engine.layers.linear import Linear
from engine.layers.lora import Adapter, Pair

CPU = torch.device("cpu")
SIZES = {"vocab_size": 101, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
LLAMA = {"model_type": "llama", **SIZES, "num_attention_heads": 4, "num_key_value_heads": 2}
MODELS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "gpt2": {"model_type": "gpt2", "vocab_size": 101, "n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 128},
    "mamba": {"model_type": "mamba", **SIZES, "intermediate_size": 128, "state_size": 16},
    "rwkv": {"model_type": "rwkv", **SIZES, "intermediate_size": 128},
}
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


def new(name: str, dtype: str = "float32") -> LLM:
    return LLM.from_config(MODELS[name] | {"initializer_range": 0.1}, seed=1, device="cpu", dtype=dtype)


def attach(module: nn.Module, rank: int = 4, trained: bool = False, seed: int = 5) -> list[Linear]:
    """Random adapters for all matrices but the head, one pair for each projection -> those matrices."""
    linears = [linear for name, linear in module.named_modules() if isinstance(linear, Linear) and name != "head"]
    generator = torch.Generator().manual_seed(seed)
    for linear in linears:
        pairs, first = [], 0
        for height in linear.splits:
            pairs.append(Pair(slice(first, first + height), rank, 2.0))
            first += height
        adapter = Adapter(linear.columns, pairs, 0.0, CPU)
        adapter.initialize(generator)
        with torch.no_grad():
            for b in adapter.b:
                b.copy_(0.1 * torch.randn(b.shape, generator=generator))
        linear.adapter = adapter.requires_grad_(trained)
    return linears


def merge(linears: list[Linear]) -> None:
    """W += s B A in place of each adapter."""
    for linear in linears:
        assert linear.adapter is not None
        linear.merge_adapter()


@torch.inference_mode()
def decoded(llm: LLM, count: int = 4) -> torch.Tensor:
    """The logits of steps of one token after a prompt [count, vocab], in float64."""
    sequence = llm.sequence()
    sequence.feed(PROMPT)
    steps = []
    for index in range(count):
        step = Step.pack([[7 + index]], [sequence.row], [len(PROMPT) + index])
        steps.append(llm.model.logits(llm.model(step, sequence.state))[0].double())
    return torch.stack(steps)


def spread(logits: torch.Tensor) -> float:
    return float(logits.abs().max())


@pytest.fixture
def calls(ops: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Every instruction set in turn is in use; the number of calls of each operator."""
    made: dict[str, int] = {}

    class Counting:
        def __getattr__(self, name: str) -> Callable[..., Any]:
            made[name] = made.get(name, 0) + 1
            return getattr(ops, name)

    monkeypatch.setattr(kernels, "_loaded_ops", Counting())
    monkeypatch.setattr(kernels, "_active_ops", Counting())
    return made


@pytest.mark.parametrize("name", MODELS)
def test_the_kernels_for_blocks_compute_what_merged_weights_do(calls, name, monkeypatch):
    adapted, merged = new(name), new(name)
    plain = decoded(merged)
    attach(adapted.model)
    merge(attach(merged.model))
    expected = decoded(merged)
    assert (plain - expected).abs().max() > 0.05 * spread(expected)  # the adapters change something
    calls.clear()
    found = decoded(adapted)
    assert (found - expected).abs().max() <= 2e-5 * spread(expected)
    assert calls[name if name in ("mamba", "rwkv") else "blocks"] > 0
    monkeypatch.setattr(kernels, "_active_ops", None)  # module by module, by PyTorch's operators
    assert (decoded(adapted) - expected).abs().max() <= 2e-5 * spread(expected)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("quant", ["none", "int8", "int4"])
def test_the_kernels_for_blocks_compute_what_the_modules_do(calls, name, quant, tmp_path):
    new(name).save(tmp_path / "model")
    llm = LLM.load(tmp_path / "model", device="cpu", dtype="bfloat16", quant=quant)
    attach(llm.model)
    found = decoded(llm)
    assert calls[name if name in ("mamba", "rwkv") else "blocks"] > 0
    for module in llm.model.modules():
        if "fused" in vars(module):
            module.fused = False
    calls.clear()
    expected = decoded(llm)
    assert not calls.keys() & {"blocks", "mamba", "rwkv"} and calls["linear"] > 0
    assert (found - expected).abs().max() <= 0.03 * spread(expected)  # the paths round different results


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_a_batch_gives_the_text_of_each_prompt_alone(calls, name, dtype):
    llm = new(name, dtype)
    attach(llm.model)
    prompts = [[*PROMPT[: 1 + index % 7], index] for index in range(20)]
    params = SamplingParams(1.0, seed=5, max_new_tokens=3, ignore_eos=True)
    alone = [llm.generate([prompt], params)[0].token_ids for prompt in prompts]
    assert [each.token_ids for each in llm.generate(prompts, params)] == alone


@pytest.mark.parametrize("name", MODELS)
def test_attached_changed_and_removed_adapters_are_seen_by_the_next_token(calls, name):
    llm = new(name)
    before = decoded(llm)
    linears = attach(llm.model)
    first = decoded(llm)
    assert (first - before).abs().max() > 0.01 * spread(before)
    attach(llm.model, seed=6)
    assert (decoded(llm) - first).abs().max() > 0.01 * spread(before)  # others
    attach(llm.model)
    assert torch.equal(decoded(llm), first)
    for linear in linears:
        adapter = linear.adapter
        assert adapter is not None
        with torch.no_grad():
            adapter.a.zero_()
        adapter.forget_packed()
    assert torch.equal(decoded(llm), before)
    for linear in linears:
        linear.adapter = None
    assert torch.equal(decoded(llm), before)


@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_adapters_in_training_are_used_as_they_are_at_the_moment(calls, name):
    """A fused optimizer changes parameters without a trace."""
    llm = new(name)
    attach(llm.model)
    decoded(llm)  # packed while frozen
    for linear in attach(llm.model):
        assert linear.adapter is not None
        linear.adapter.requires_grad_(True)
    adapters = [linear.adapter for linear in llm.model.modules() if isinstance(linear, Linear) and linear.adapter]
    parameters = [parameter for adapter in adapters for parameter in adapter.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=0.05, fused=True)
    seen = [decoded(llm)]
    for _ in range(2):
        with torch.enable_grad():
            llm.model.logits(llm.model(Step.pack([PROMPT]))).square().mean().backward()
        between = decoded(llm)  # after the gradients, before the update
        assert torch.equal(between, seen[-1])
        optimizer.step()
        seen.append(decoded(llm))
        merged = copy.deepcopy(llm.model)
        merge([linear for linear in merged.modules() if isinstance(linear, Linear) and linear.adapter is not None])
        with torch.no_grad():
            ids = [*PROMPT, 7, 8, 9, 10]
            expected = merged.logits(merged(Step.pack([ids])))[-4:].double()
        assert (seen[-1] - expected).abs().max() <= 1e-4 * spread(expected)
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])
    for adapter in adapters:
        adapter.requires_grad_(False)
    assert torch.equal(decoded(llm), seen[-1])
    assert adapters[0].packed(torch.float32) is adapters[0].packed(torch.float32)  # kept again


def test_float16_and_formats_without_kernels_have_the_branch_too(monkeypatch, tmp_path):
    new("llama").save(tmp_path / "model")
    for dtype, quant in (("float16", "none"), ("float16", "int8"), ("float32", "int8")):
        monkeypatch.setattr(kernels, "_active_ops", None)
        llm = LLM.load(tmp_path / "model", device="cpu", dtype=dtype, quant=quant)
        reference = new("llama")
        merge(attach(reference.model))
        attach(llm.model)
        expected = decoded(reference)
        assert (decoded(llm) - expected).abs().max() <= 0.05 * spread(expected)


def test_captured_steps_follow_their_adapters(as_on_a_gpu, monkeypatch):
    """A graph has the addresses of the adapters, so others need another graph; those that train are not captured."""
    llm = new("llama")
    model = llm.model
    linears = attach(model)
    state: Any = model.new_state()
    captured = CapturedSteps(model, state)
    row = state.acquire()
    with torch.inference_mode():
        model(Step.pack([PROMPT], [row]), state)

    def step() -> torch.Tensor | None:
        state.rewind(row, len(PROMPT))
        logits = captured.run([row], [7])
        return None if logits is None else logits.clone()

    def exact() -> torch.Tensor:
        state.rewind(row, len(PROMPT))
        with torch.inference_mode():
            return model.logits(model(Step.pack([[7]], [row], [len(PROMPT)]), state))

    first = step()
    assert first is not None and torch.equal(first, exact())
    graph = captured._graphs[1]
    assert step() is not None and captured._graphs[1] is graph
    attach(model, seed=6)
    second = step()
    assert second is not None and captured._graphs[1] is not graph and torch.equal(second, exact())
    assert not torch.equal(first, second)
    for linear in linears:
        assert linear.adapter is not None
        linear.adapter.requires_grad_(True)
        linear.adapter.forget_packed()
    assert step() is None
    for linear in linears:
        linear.adapter = None
    plain = step()
    assert plain is not None and torch.equal(plain, exact())
