"""Checkpoints as they are on the hub: other names of tensors, older keys, parts that are not used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import LLM
from engine.models import FAMILIES, configure
from engine.runtime.errors import BareloopError

Tensors = dict[str, torch.Tensor]


def rewritten(
    folder: Path,
    into: Path,
    rename: Callable[[str], str],
    config: Callable[[dict[str, Any]], dict[str, Any]],
    **more: Any,
) -> Path:
    """A folder with other names and keys, and more tensors."""
    into.mkdir()
    tensors = {rename(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors | more, into / "model.safetensors", {"format": "pt"})
    raw = json.loads((folder / "config.json").read_text())
    (into / "config.json").write_text(json.dumps(config(raw)))
    return into


def moved(*keys: tuple[str, str]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Keys of `rope_parameters` as transformers 4 wrote them."""

    def change(raw: dict[str, Any]) -> dict[str, Any]:
        inner = raw.pop("rope_parameters")
        return raw | {old: inner[new] for new, old in keys}

    return change


VISION = {"vision_tower.patch.weight": torch.ones(3), "multi_modal_projector.norm.weight": torch.ones(2)}
MASKS = {f"h.{layer}.attn.bias": torch.ones(1, 1, 4, 4) for layer in range(3)}
DIALECTS: dict[str, tuple[str, Callable[[str], str], Any, Tensors]] = {
    "gpt2 without its prefix": ("gpt2", lambda name: name.removeprefix("transformer."), dict, MASKS),
    "mamba's first": ("mamba", lambda name: name.replace("backbone.embeddings.", "backbone.embedding."), dict, {}),
    "pythia's keys": (
        "gpt_neox",
        str,
        moved(("partial_rotary_factor", "rotary_pct"), ("rope_theta", "rotary_emb_base")),
        {"gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 4, 4)},
    ),
    "phi-2's keys": ("phi", str, moved(("partial_rotary_factor",) * 2, ("rope_theta",) * 2), {}),
    "gemma's first": ("gemma", str, lambda raw: raw | {"hidden_act": "gelu", "hidden_activation": None}, {}),
    "gemma 3 with images": (
        "gemma3_text",
        lambda name: f"language_model.{name}",
        lambda raw: {"model_type": "gemma3", "text_config": raw, "vision_config": {"hidden_size": 3}},
        VISION,
    ),
    "gemma 3 with images, version 5": (
        "gemma3_text",
        lambda name: name.replace("model.", "model.language_model.", 1),
        lambda raw: {"model_type": "gemma3", "text_config": raw, "dtype": "float32"},
        {f"model.{name}": tensor for name, tensor in VISION.items()},
    ),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_same_model_in_another_dialect(draw_tiny, tmp_path, prompt, dialect):
    variant, rename, config, more = DIALECTS[dialect]
    tiny = draw_tiny(variant)
    folder = rewritten(tiny.folder, tmp_path / "other", rename, config, **more)
    ids = prompt(30)
    assert torch.equal(LLM.load(folder, dtype="float32").logits(ids), LLM.load(tiny.folder).logits(ids))


def test_the_text_part_of_gemma_3_is_saved_as_a_model_of_text(draw_tiny, tmp_path, prompt):
    from transformers import AutoModelForCausalLM

    variant, rename, config, more = DIALECTS["gemma 3 with images"]
    tiny = draw_tiny(variant)
    llm = LLM.load(rewritten(tiny.folder, tmp_path / "other", rename, config, **more), dtype="float32")
    llm.save(tmp_path / "saved")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float64)
    ids = prompt(20)
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0]
    assert (llm.logits(ids) - expected).abs().max() < 2e-5 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ({"model_type": "gemma3"}, "no text_config"),
        ({"model_type": "gpt_neo", "num_layers": 3, "num_heads": 2, "hidden_size": 8}, "must name 3 layers"),
        ({"model_type": "gpt2", "n_layer": 2, "n_head": 2}, "config.json has no n_embd"),
        (
            {"model_type": "phi", "partial_rotary_factor": 0.4, "qk_layernorm": True},
            "qk_layernorm = True is not implemented",
        ),
        ({"model_type": "phi", "partial_rotary_factor": 1.5}, "partial_rotary_factor = 1.5 exceeds 1"),
        ({"model_type": "gpt_neox", "rotary_pct": 0.3}, "dimensions are rotated, which must be an even number"),
        ({"model_type": "gemma2", "layer_types": ["full_attention"]}, "layer_types must name 4 layers"),
        ({"model_type": "phi", "partial_rotary_factor": 0.05}, "0 of a head's 10 dimensions are rotated"),
        ({"model_type": "gemma2", "hidden_activation": "laplace"}, "hidden_activation = 'laplace' is not implemented"),
        ({"model_type": "mamba", "hidden_act": "relu"}, "hidden_act = 'relu' is not implemented"),
    ],
)
def test_what_a_config_cannot_mean_is_one_line(raw, told):
    shape = {
        "vocab_size": 32,
        "hidden_size": 40,
        "intermediate_size": 40,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    }
    with pytest.raises(BareloopError, match=told):
        configure(shape | raw)


def test_a_gemma_3_that_says_little_of_its_text_part():
    text = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024}
    _, config = configure({"model_type": "gemma3", "text_config": text | {"model_type": "gemma3_text"}})
    assert (config.vocab_size, config.num_heads, config.num_kv_heads, config.head_dim) == (262_208, 8, 4, 256)
    assert config.windows[:6] == (1024,) * 5 + (None,)


def test_both_spellings_of_a_key_must_agree():
    raw = {"model_type": "gpt_neox", "vocab_size": 32, "hidden_size": 64, "intermediate_size": 64}
    raw |= {"num_hidden_layers": 2, "num_attention_heads": 2, "rotary_pct": 0.25, "rotary_emb_base": 10000}
    assert configure(raw | {"partial_rotary_factor": 0.25, "rope_theta": 10000})[1].rotary_size == 8
    with pytest.raises(BareloopError, match=r"rotary_pct = 0.25 and partial_rotary_factor = 0.5; remove one"):
        configure(raw | {"partial_rotary_factor": 0.5})


def test_every_family_names_what_it_was_written_for():
    assert all(family.checkpoints for family in FAMILIES.values())
