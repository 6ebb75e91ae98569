"""Training adapters beside peft, on the same weights with the same A and B: loss, gradients, 20 steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine import LLM
from engine.checkpoints.adapters.config import LoraConfig
from engine.checkpoints.adapters.files import adapter_tensors, add_adapters
from engine.finetune.data import Example
from engine.finetune.loss import add_gradients, count_learned
from engine.finetune.optimizer import adamw, update

CASES: dict[str, tuple[str, ...] | str] = {  # variant of the tiny models -> targets
    "llama": "all-linear",
    "qwen2": ("q_proj", "v_proj", "gate_proj", "down_proj"),
    "gpt2": "all-linear",
    "gpt_neo": ("q_proj", "v_proj"),
    "gemma2": ("q_proj", "k_proj", "o_proj", "up_proj"),
    "mamba": ("in_proj", "x_proj"),
    "rwkv": ("key", "value", "receptance", "output"),
}
SCALE = 2.0


class Pair:
    """Our model and peft's, with the same weights and adapters."""

    def __init__(self, folder: Path, targets: tuple[str, ...] | str) -> None:
        import peft
        from transformers import AutoModelForCausalLM

        self.llm = LLM.load(folder, "cpu", "float32")
        add_adapters(self.llm.model, self.llm.family, LoraConfig(rank=3, alpha=3 * SCALE, targets=targets))
        ours = self.our_tensors()
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        named = targets if isinstance(targets, str) else list(targets)
        config = peft.LoraConfig(r=3, lora_alpha=3 * SCALE, target_modules=named, task_type="CAUSAL_LM")
        self.peft = peft.get_peft_model(base, config).train()
        for module in self.peft.modules():  # GPT-2's own; evaluation mode would scale RWKV's weights
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        parameters = dict(self.peft.named_parameters())
        self.theirs = {name: parameters[name.replace(".weight", ".default.weight")] for name in ours}
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for name, tensor in ours.items():  # B is not zero, so that A has gradients
                values = torch.empty(tensor.shape).uniform_(-0.1, 0.1, generator=generator)
                tensor.copy_(values)
                self.theirs[name].copy_(values)
        assert {id(parameter) for parameter in self.trained_by_peft()} == {id(t) for t in self.theirs.values()}

    def trained_by_peft(self) -> list[Tensor]:
        return [parameter for parameter in self.peft.parameters() if parameter.requires_grad]

    def our_gradients(self) -> dict[str, Tensor]:
        """By peft's names: the adapters as they are while the gradients stand in the parameters' place."""
        trained = [parameter for parameter in self.llm.model.parameters() if parameter.requires_grad]
        values = [parameter.data for parameter in trained]
        for parameter in trained:
            assert parameter.grad is not None
            parameter.data = parameter.grad
        gradients = {name: tensor.detach().clone() for name, tensor in self.our_tensors().items()}
        for parameter, value in zip(trained, values, strict=True):
            parameter.data = value
        return gradients

    def our_tensors(self) -> dict[str, Tensor]:
        return adapter_tensors(self.llm.model, self.llm.family)

    def our_step(self, examples: list[Example]) -> float:
        return add_gradients(self.llm.model, examples, count_learned(examples))

    def their_step(self, examples: list[Example]) -> float:
        """Padded on the right, which no token sees; labels as transformers takes them."""
        longest = max(len(example.ids) for example in examples)
        ids = torch.zeros(len(examples), longest, dtype=torch.long)
        labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
        for row, example in enumerate(examples):
            count = len(example.ids)
            ids[row, :count] = torch.tensor(example.ids)
            mask[row, :count] = 1
            labels[row, :count] = torch.tensor(example.ids).masked_fill(~torch.tensor(example.learned), -100)
        loss = self.peft(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        return float(loss.detach())


def examples(prompt: Callable[..., list[int]], seed: int = 0) -> list[Example]:
    """Three of different lengths; of the last two the first tokens are not learned."""
    rows = [prompt(length, 10 * seed + length) for length in (21, 9, 14)]
    return [Example(ids, [index >= max(1, 4 * row) for index in range(len(ids))]) for row, ids in enumerate(rows)]


@pytest.fixture(scope="module", params=list(CASES))
def folder(request: Any, draw_tiny: Any) -> tuple[Path, tuple[str, ...] | str]:
    return draw_tiny(request.param).folder, CASES[request.param]


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest, relative to the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def test_loss_and_gradients_equal_those_of_peft(folder, prompt):
    pair = Pair(*folder)
    batch = examples(prompt)
    ours, theirs = pair.our_step(batch), pair.their_step(batch)
    assert abs(ours - theirs) <= 1e-5 * max(1.0, theirs)
    for name, gradient in pair.our_gradients().items():
        assert difference(gradient, pair.theirs[name].grad) <= 1e-4, name


def test_adapters_after_twenty_steps_equal_those_of_peft(folder, prompt):
    pair = Pair(*folder)
    trained = [parameter for parameter in pair.llm.model.parameters() if parameter.requires_grad]
    optimizer = adamw(trained)
    reference = torch.optim.AdamW(pair.trained_by_peft(), lr=1e-3, weight_decay=0.0)
    before = {name: tensor.detach().clone() for name, tensor in pair.our_tensors().items()}
    for step in range(20):
        batch = examples(prompt, step)
        optimizer.zero_grad()
        pair.our_step(batch)
        update(optimizer, trained, 1e-3, clip=1.0)
        reference.zero_grad()
        pair.their_step(batch)
        torch.nn.utils.clip_grad_norm_(pair.trained_by_peft(), 1.0)
        reference.step()
    for name, tensor in pair.our_tensors().items():
        assert (tensor - before[name]).abs().max() > 5e-3, name  # they have moved
        assert (tensor - pair.theirs[name]).abs().max() <= 1e-4, name
