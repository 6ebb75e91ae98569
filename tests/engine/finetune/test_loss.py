"""The loss and its gradients, compared with float64 logits of the whole step; learning rates and updates."""

from __future__ import annotations

import math

import pytest
import torch

from engine import LLM
from engine.cache.state import Step
from engine.checkpoints.adapters.config import LoraConfig
from engine.checkpoints.adapters.files import add_adapters
from engine.finetune.data import Example
from engine.finetune.loss import add_gradients, count_learned, mean_loss
from engine.finetune.optimizer import NonFiniteError, StepLoss, adamw, rate_share, train_steps


def examples(vocab: int, seed: int = 0) -> list[Example]:
    """Examples of different lengths, of whose tokens a third is learned; of one none."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for length in (5, 23, 2, 40, 11):
        ids = torch.randint(0, vocab, (length,), generator=generator).tolist()
        learned = (torch.rand(length, generator=generator) < 0.35).tolist()
        result.append(Example(ids, [False, *learned[1:]] if length != 11 else [False] * 11))
    result[2].learned[1] = True
    return result


def test_an_adapter_of_the_head_alone_gets_its_gradients(draw_tiny):
    llm = LLM.load(draw_tiny("phi").folder, device="cpu")
    add_adapters(llm.model, llm.family, LoraConfig(targets=("lm_head",)))
    loss = add_gradients(llm.model, examples(llm.config.vocab_size), 10)
    gradients = [p.grad is not None for p in llm.model.parameters() if p.requires_grad]
    assert loss > 0 and gradients == [True, True]


@pytest.fixture(params=["llama", "gemma2", "phi", "mamba", "full", "int8"])
def model(request, draw_tiny):
    """Tied, soft-capped and biased heads, adapters on the head, a trained and a quantized base."""
    family = {"full": "llama", "int8": "qwen2"}.get(request.param, request.param)
    folder = draw_tiny(family).folder
    llm = LLM.load(folder, device="cpu", quant="int8" if request.param == "int8" else "none")
    if request.param == "full":
        llm.model.requires_grad_(True)
        return llm.model
    targets = {"llama": ("q_proj", "lm_head"), "phi": ("q_proj", "fc1", "lm_head"), "mamba": ("x_proj", "in_proj")}
    add_adapters(llm.model, llm.family, LoraConfig(rank=3, targets=targets.get(family, "all-linear")))
    with torch.no_grad():
        for name, parameter in llm.model.named_parameters():
            if ".adapter.b." in name:
                parameter.normal_(0, 0.05, generator=torch.Generator().manual_seed(len(name)))
    return llm.model


def expected(model, batch):
    """The loss and the gradients from float64 losses of all logits of each example alone."""
    total, count = 0.0, 0
    for example in batch:
        logits = model.logits(model(Step.pack([example.ids])))
        for index, learned in enumerate(example.learned):
            if learned:
                total = total - logits[index - 1].double().log_softmax(-1)[example.ids[index]]
                count += 1
    loss = total / count
    loss.backward()
    return float(loss.detach()), take_gradients(model)


def take_gradients(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def assert_close(actual, wanted):
    assert actual.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert (actual[name] - gradient).norm() <= 3e-4 * gradient.norm() + 1e-7, name


def test_chunks_and_accumulation_give_the_loss_and_gradients_of_all_logits_at_once(model):
    batch = examples(model.config.vocab_size)
    loss, gradients = expected(model, batch)
    count = count_learned(batch)
    one_row = 4 * model.config.vocab_size
    for chunk in (one_row, 3 * one_row, 2**26):
        assert add_gradients(model, batch, count, logits_bytes=chunk) == pytest.approx(loss, rel=1e-5)
        assert_close(take_gradients(model), gradients)
    parts = (batch[:1], batch[1:4], batch[4:])
    assert sum(add_gradients(model, part, count) for part in parts) == pytest.approx(loss, rel=1e-5)
    assert_close(take_gradients(model), gradients)
    assert mean_loss(model, parts, logits_bytes=3 * one_row) == pytest.approx(loss, rel=1e-4)


def test_blocks_that_are_computed_again_give_the_same_bits(model):
    batch = examples(model.config.vocab_size)
    for module in model.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.3
    results = []
    for model.recompute in (False, True):
        torch.manual_seed(4)
        results.append((add_gradients(model, batch, count_learned(batch)), take_gradients(model)))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(results[0][1][name], results[1][1][name]) for name in results[0][1])


def test_bfloat16_products_of_float32_weights_have_nearly_the_same_loss(draw_tiny):
    llm = LLM.load(draw_tiny("qwen3").folder, device="cpu")
    llm.model.requires_grad_(True)
    batch = examples(llm.config.vocab_size)
    exact = add_gradients(llm.model, batch, count_learned(batch))
    wanted = take_gradients(llm.model)
    assert add_gradients(llm.model, batch, count_learned(batch), torch.bfloat16) == pytest.approx(exact, rel=0.05)
    for name, gradient in take_gradients(llm.model).items():
        assert gradient.dtype == torch.float32
        similarity = torch.nn.functional.cosine_similarity(gradient.flatten(), wanted[name].flatten(), dim=0)
        assert similarity > 0.9, name


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_learning_rate_rises_during_the_warmup_and_then_follows_its_schedule(schedule):
    shares = [rate_share(step, 100, schedule, 0.1) for step in range(100)]
    assert shares[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert shares[10] == 1.0
    assert shares[:10] == [rate_share(step, 100, schedule, 10) for step in range(10)]
    rest = {
        "constant": [1.0] * 90,
        "linear": [1 - step / 90 for step in range(90)],
        "cosine": [math.cos(math.pi * step / 180) ** 2 for step in range(90)],
    }
    assert shares[10:] == pytest.approx(rest[schedule])
    assert rate_share(0, 1, schedule, 0) == 1.0
    assert rate_share(7, 100, schedule, 0.07) == 1.0  # 0.07 * 100 is 7.000000000000001
    assert rate_share(9, 10, schedule, 0.99) == 1.0  # the peak is reached
    assert rate_share(0, 1, schedule, 0.03) == 1.0


def test_an_update_is_clipped_adamw_as_torch_does_it():
    start = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    ours, reference = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizer = adamw([ours], weight_decay=0.1)
    other = torch.optim.AdamW([reference], weight_decay=0.1)

    def gradient(step: int) -> StepLoss:
        loss = (ours**3).sum() * (step + 1)
        loss.backward()
        return StepLoss(float(loss.detach()), 7, 3)

    results = train_steps(optimizer, [ours], range(5), gradient, lambda step: 0.1 / (step + 1), clip=1.0)
    for step, result in enumerate(results):
        loss = (reference**3).sum() * (step + 1)
        other.zero_grad()
        loss.backward()
        norm = float(reference.grad.norm())
        reference.grad.mul_(min(1.0, 1.0 / norm))
        other.param_groups[0]["lr"] = 0.1 / (step + 1)
        other.step()
        torch.testing.assert_close(ours, reference)
        assert (result.step, result.tokens, result.learned_tokens) == (step + 1, 7, 3)
        assert result.gradient_norm == pytest.approx(norm, rel=1e-5)
        assert result.learning_rate == 0.1 / (step + 1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_stay_as_they_are_if_a_loss_or_a_gradient_is_not_finite(value):
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = adamw([parameter])

    def bad_gradient(_: int) -> StepLoss:
        parameter.grad = torch.tensor([value, 1.0])
        return StepLoss(1.0)

    for gradient in (bad_gradient, lambda _: StepLoss(value)):
        with pytest.raises(NonFiniteError, match="step 3: the"):
            next(train_steps(optimizer, [parameter], range(2, 5), gradient, lambda _: 0.1, 1.0))
        assert torch.equal(parameter, torch.ones(2))
