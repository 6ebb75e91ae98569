"""Gradients compared with transformers."""

from __future__ import annotations

import torch

from engine import LLM
from engine.cache.state import Step
from engine.checkpoints.mapping import parameter_sources


def test_gradients_equal_those_of_transformers(tiny_llama, prompt):
    from transformers import AutoModelForCausalLM

    ids = prompt(24)
    reference = AutoModelForCausalLM.from_pretrained(
        tiny_llama.folder, dtype=torch.float64, attn_implementation="eager"
    )
    reference(torch.tensor([ids]), labels=torch.tensor([ids])).loss.backward()
    expected = {name: parameter.grad for name, parameter in reference.named_parameters()}

    llm = LLM.load(tiny_llama.folder, "cpu", "float32")
    llm.model.requires_grad_(True)
    logits = llm.model.logits(llm.model.forward(Step.pack([ids])))
    torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:])).backward()
    for name, group in parameter_sources(llm.model, llm.family).items():
        gradient = llm.model.get_parameter(name).grad
        assert gradient is not None
        for source in group:
            ours, theirs = gradient[source.rows].double(), expected[source.name]
            assert (ours - theirs).abs().max() <= 2e-5 * max(1.0, float(theirs.abs().max())), source.name
