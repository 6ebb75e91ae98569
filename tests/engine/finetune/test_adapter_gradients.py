"""Gradients of adapters over frozen weights in every format, with dropout, and with recomputed blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine import LLM
from engine.cache.state import Step
from engine.checkpoints.adapters.config import LoraConfig
from engine.checkpoints.adapters.files import add_adapters
from engine.finetune.data import Example
from engine.finetune.loss import add_gradients, count_learned
from engine.layers.linear import Linear

SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "head_dim": 16}  # int4 has groups of 32


def examples(prompt) -> list[Example]:  # type: ignore[no-untyped-def]
    return [Example(ids, [False] + [True] * (len(ids) - 1)) for ids in (prompt(17), prompt(6, 6), prompt(17, 7))]


def adapted(folder, quant: str = "none", dropout: float = 0.0, targets="all-linear") -> LLM:  # type: ignore[no-untyped-def]
    """A model with random A and B."""
    llm = LLM.load(folder, "cpu", "float32", quant)
    add_adapters(llm.model, llm.family, LoraConfig(4, 8.0, dropout, targets))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in trained(llm).values():
            parameter.copy_(torch.empty(parameter.shape).uniform_(-0.1, 0.1, generator=generator))
    return llm


def trained(llm: LLM) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in llm.model.named_parameters() if parameter.requires_grad}


def gradients(llm: LLM, batch: list[Example]) -> dict[str, Tensor]:
    llm.model.zero_grad()
    add_gradients(llm.model, batch, count_learned(batch))
    found = {name: parameter.grad for name, parameter in trained(llm).items()}
    assert all(gradient is not None for gradient in found.values())
    return {name: gradient for name, gradient in found.items() if gradient is not None}


@pytest.mark.parametrize("family", ["llama", "gpt2", "mamba"])
@pytest.mark.parametrize("quant", ["int8", "int4", "nf4"])
def test_gradients_over_quantized_weights_equal_those_over_the_dequantized_ones(draw_tiny, prompt, family, quant):
    shape = {"hidden_size": 64} if family == "mamba" else SHAPE if family == "llama" else {**SHAPE, "n_inner": 128}
    folder = draw_tiny(family, **shape).folder
    llm, dense = adapted(folder, quant), adapted(folder)
    quantized = 0
    for (_, module), (_, other) in zip(llm.model.named_modules(), dense.model.named_modules(), strict=True):
        if isinstance(module, Linear) and module.format is not None:
            weight = module.format.dense(module._parameters, 0, module.rows, torch.float32)
            other.weight.data = weight[: other.rows, : other.columns].clone()
            quantized += 1
        elif hasattr(module, "format") and module.format is not None:
            other.weight.data = module.format.dense(module._parameters, 0, module.rows, torch.float32).clone()
    assert quantized >= 3
    if dense.model.config.tie_word_embeddings:
        dense.model.head.share(dense.model.embed)
    batch = examples(prompt)
    ours, expected = gradients(llm, batch), gradients(dense, batch)
    for name, gradient in expected.items():
        assert (ours[name] - gradient).abs().max() <= 1e-5 * max(1.0, float(gradient.abs().max())), name


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mamba", "rwkv"])
def test_recomputed_blocks_give_the_same_gradient_bits(draw_tiny, prompt, family):
    llm, batch = adapted(draw_tiny(family).folder, dropout=0.3), examples(prompt)
    torch.manual_seed(11)
    expected = gradients(llm, batch)
    llm.model.recompute = True
    torch.manual_seed(11)
    for name, gradient in gradients(llm, batch).items():
        assert torch.equal(gradient, expected[name]), name


def test_gradients_with_dropout_equal_autograds_for_the_same_mask(draw_tiny):
    """Where the mask is that of `torch.dropout` with the same seed, on the branch's input alone."""
    llm = adapted(draw_tiny("llama").folder, dropout=0.4)
    linear = llm.model.layers[0].mlp.down
    x = torch.randn(9, linear.columns, generator=torch.Generator().manual_seed(1)).requires_grad_()
    torch.manual_seed(7)
    y = linear(x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
    ((pair, a, b),) = linear.adapter
    found = torch.autograd.grad((y * weights).sum(), (x, linear.adapter.a, linear.adapter.b[0]))
    torch.manual_seed(7)
    plain = x @ linear.weight.T + pair.scale * torch.dropout(x, 0.4, train=True) @ a.T @ b.T
    expected = torch.autograd.grad((plain * weights).sum(), (x, linear.adapter.a, linear.adapter.b[0]))
    torch.testing.assert_close(y, plain)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_dropout_keeps_the_expectation_and_is_absent_in_evaluation(draw_tiny, prompt):
    llm, plain = (adapted(draw_tiny("gpt2").folder, dropout=dropout) for dropout in (0.5, 0.0))
    linear, same = (each.model.layers[1].mlp.up for each in (llm, plain))
    x = torch.randn(4, linear.columns, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    drawn = torch.stack([linear(x).detach() for _ in range(2000)])
    spread = drawn.std(0) / 2000**0.5
    expected = same(x).detach()
    assert drawn.std(0).max() > 0
    assert ((drawn.mean(0) - expected).abs() <= 5 * spread + 1e-5).all()
    step = Step.pack([prompt(12)])
    with torch.no_grad():
        torch.testing.assert_close(llm.model(step), plain.model(step), rtol=0, atol=0)


@pytest.mark.parametrize("family", ["gpt_neo", "gemma2", "mamba", "rwkv"])
def test_gradients_equal_finite_differences_in_float64(draw_tiny, prompt, family):
    """Along a random direction of all A and B; windows, soft caps and scans are in these families."""
    llm, batch = adapted(draw_tiny(family).folder), examples(prompt)
    llm.model.double()
    found = gradients(llm, batch)
    generator = torch.Generator().manual_seed(4)
    directions = {name: torch.randn(g.shape, generator=generator, dtype=torch.float64) for name, g in found.items()}
    slope = sum(float((directions[name] * gradient).sum()) for name, gradient in found.items())

    def loss(distance: float) -> float:
        with torch.no_grad():
            for name, parameter in trained(llm).items():
                parameter.add_(distance * directions[name])
        return add_gradients(llm.model, batch, count_learned(batch))

    step = 1e-5
    after, before = loss(step), loss(-2 * step)
    assert abs((after - before) / (2 * step) - slope) <= 1e-6 * abs(slope)
