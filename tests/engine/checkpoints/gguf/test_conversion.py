"""A GGUF file has the logits of the Hugging Face model that it was converted from: every change is undone."""

from __future__ import annotations

from typing import Any

import numpy
import pytest

from engine import LLM
from engine.checkpoints.gguf.config import config_json
from engine.checkpoints.gguf.metadata import Metadata
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


LLAMA = {
    "general.architecture": "llama",
    "llama.embedding_length": 64,
    "llama.block_count": 2,
    "llama.context_length": 128,
    "llama.feed_forward_length": 96,
    "llama.attention.head_count": 4,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}


def read_config(architecture: str = "llama", **changes) -> dict[str, Any]:
    """The config.json of metadata with changes; _ stands for a dot in their names, __ for an underscore."""
    entries = {key.replace("llama", architecture): value for key, value in LLAMA.items()}
    entries["general.architecture"] = architecture
    for key, value in changes.items():
        entries[f"{architecture}.{key.replace('__', '~').replace('_', '.').replace('~', '_')}"] = value
    return config_json(Metadata(entries, "x.gguf"), {"token_embd.weight": (100, 64)}, [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_scale": 0.5}, "llama.attention.scale = 0.5 is not implemented for this architecture"),
        ({"expert__count": 8}, "llama.expert_count = 8 is not implemented"),
        ({"rope_dimension__count": 8}, "llama.rope.dimension_count = 8 is not the size of a head, 16"),
        ({"rope_scaling_attn__factor": 1.2}, "llama.rope.scaling.attn_factor = 1.2 is not implemented"),
        ({"rope_freq__base": -5.0}, "llama.rope.freq_base = -5.0 is not a positive number"),
        ({"rope_freq__base": 1e300}, "llama.rope.freq_base = 1e.300 is not a positive number"),
        ({"rope_freq__base": 0.5}, "llama.rope.freq_base = 0.5 is not above 1"),
        ({"block__count": 20_000_000}, "llama.block_count = 20000000 is not an integer from 1 to 1,000"),
    ],
)
def test_what_would_change_the_mathematics_is_refused_by_name(changes, message):
    with pytest.raises(BareloopError, match=message):
        read_config(**changes)


def test_olmo_3_and_falcon_mamba_are_refused():
    with pytest.raises(BareloopError, match=r"olmo2.attention.sliding_window = 4096 \(OLMo 3\) is not implemented"):
        read_config("olmo2", attention_sliding__window=4096)
    mamba = {f"ssm_{key}": 4 for key in ("conv__kernel", "inner__size", "state__size", "time__step__rank")}
    with pytest.raises(BareloopError, match=r"mamba.ssm.dt_b_c_rms = True is not implemented"):
        read_config("mamba", **{**mamba, "ssm_inner__size": 128}, ssm_dt__b__c__rms=True)


@pytest.mark.parametrize("changes", [{"rope_scaling_factor": 4.0}, {"rope_scale__linear": 4.0}])
def test_a_scaling_without_a_type_is_linear(changes):
    assert read_config(**changes)["rope_parameters"] == {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}


def test_gemma_3_of_ollama_has_its_own_keys():
    changes = {"rope_global_freq__base": 1e6, "rope_local_freq__base": 1e4, "attention_sliding__window": 512}
    changes |= {"final__logit__softcapping": 30.0, "context__length": 131_072, "attention_key__length": 16}
    config = read_config("gemma3", **changes)
    assert "final_logit_softcapping" not in config
    assert config["rope_parameters"] == {
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    assert config["layer_types"] == ["sliding_attention"] * 2
    changes["attention_sliding__window__pattern"] = [False, True]
    assert read_config("gemma3", **changes)["layer_types"] == ["full_attention", "sliding_attention"]
    del changes["attention_sliding__window"]
    assert read_config("gemma3", **changes)["layer_types"] == ["full_attention"] * 2


def test_every_architecture_is_converted():
    from engine.checkpoints.gguf import config, tensors

    assert set(config.ARCHITECTURES) == set(tensors.NAMES) == set(ARCHITECTURES.values())


@pytest.mark.parametrize("factor", [0.0, float("nan"), 0.5])
def test_invalid_rope_factors_are_one_line(draw_tiny, tmp_path, cache, factor, monkeypatch):
    tiny = draw_tiny("llama-3.2")
    monkeypatch.setattr(converter, "rope_factors", lambda config: numpy.full(4, factor, dtype=numpy.float32))
    with pytest.raises(BareloopError, match="does not have 4 divisors of 1 or more"):
        LLM.load(convert(tiny.folder, tmp_path / "model.gguf"), "cpu")


def test_more_rope_factors_than_a_head_can_have_are_refused_before_they_are_read(
    draw_tiny, tmp_path, cache, monkeypatch
):
    monkeypatch.setattr(converter, "rope_factors", lambda config: numpy.ones(10_000, dtype=numpy.float32))
    with pytest.raises(BareloopError, match=r"rope_freqs.weight has the shape \[10000\]"):
        LLM.load(convert(draw_tiny("llama-3.2").folder, tmp_path / "model.gguf"), "cpu")


def test_the_image_tower_in_the_same_file_is_left_out(draw_tiny, tmp_path, cache, prompt):
    path = convert(draw_tiny("llama-3.2").folder, tmp_path / "model.gguf")
    path.write_bytes(path.read_bytes().replace(b"rope_freqs.weight", b"mm.patches.weight"))
    assert LLM.load(path, "cpu", "float32").logits(prompt(5)).isfinite().all()
