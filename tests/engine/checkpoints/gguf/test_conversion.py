"""A GGUF file has the logits of the Hugging Face model that it was converted from: every change is undone."""

from __future__ import annotations

import numpy
import pytest

from engine import LLM
from engine.runtime.errors import BareloopError

pytest.importorskip("gguf")
from tests.engine.checkpoints.gguf import converter
from tests.engine.checkpoints.gguf.converter import ARCHITECTURES, convert

# What a GGUF file cannot say is left out of these variants: GPT-2's scaling by layer, windows of llama and qwen2.
VARIANTS = {
    "llama": {},
    "llama-tied-bias": {},
    "llama-3.2": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {},
    "olmo2": {},
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 12},
    "gemma3_text": {"query_pre_attn_scalar": 12, "num_hidden_layers": 7, "sliding_window_pattern": 6},
    "phi": {},
    "gpt_neox": {},
    "gpt_neox-serial": {},
    "gpt2": {},
    "mamba": {},
    "mamba-biased": {},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_those_of_the_original(draw_tiny, tmp_path, prompt, cache, variant):
    tiny = draw_tiny(variant, **VARIANTS[variant])
    llm = LLM.load(convert(tiny.folder, tmp_path / "model.gguf"), "cpu", "float32")
    expected = LLM.load(tiny.folder, "cpu", "float32").logits(prompt(40))
    assert (llm.logits(prompt(40)) - expected).abs().max() <= 2e-6 * max(1.0, float(expected.abs().max()))


def test_every_architecture_is_converted():
    from engine.checkpoints.gguf import config, tensors

    assert set(config.ARCHITECTURES) == set(tensors.NAMES) == set(ARCHITECTURES.values())


@pytest.mark.parametrize("factor", [0.0, float("nan"), 0.5])
def test_invalid_rope_factors_are_one_line(draw_tiny, tmp_path, cache, factor, monkeypatch):
    tiny = draw_tiny("llama-3.2")
    monkeypatch.setattr(converter, "rope_factors", lambda config: numpy.full(4, factor, dtype=numpy.float32))
    with pytest.raises(BareloopError, match="does not have 4 divisors of 1 or more"):
        LLM.load(convert(tiny.folder, tmp_path / "model.gguf"), "cpu")
