"""Checkpoints as they are on the hub: other tensor names, older config keys, and parts that are not used."""

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


def rewrite(
    source: Path,
    target: Path,
    rename: Callable[[str], str],
    change_config: Callable[[dict[str, Any]], dict[str, Any]],
    **extra_tensors: Any,
) -> Path:
    """Copy a checkpoint with other tensor names and config keys, and more tensors. Return its folder."""
    target.mkdir()
    tensors = {rename(name): tensor for name, tensor in load_file(source / "model.safetensors").items()}
    save_file(tensors | extra_tensors, target / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(change_config(config)))
    return target


def with_rope_keys(*keys: tuple[str, str]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Move keys out of `rope_parameters`, to where transformers 4 wrote them. `keys`: (new name, old name)."""

    def change(config: dict[str, Any]) -> dict[str, Any]:
        inner = config.pop("rope_parameters")
        return config | {old: inner[new] for new, old in keys}

    return change


VISION = {"vision_tower.patch.weight": torch.ones(3), "multi_modal_projector.norm.weight": torch.ones(2)}
MASKS = {f"h.{layer}.attn.bias": torch.ones(1, 1, 4, 4) for layer in range(3)}
# (variant, new name of a tensor, new config, extra tensors)
LAYOUTS: dict[str, tuple[str, Callable[[str], str], Any, Tensors]] = {
    "gpt2 without a prefix": ("gpt2", lambda name: name.removeprefix("transformer."), dict, MASKS),
    "first mamba checkpoints": (
        "mamba",
        lambda name: name.replace("backbone.embeddings.", "backbone.embedding."),
        dict,
        {},
    ),
    "keys of pythia": (
        "gpt_neox",
        str,
        with_rope_keys(("partial_rotary_factor", "rotary_pct"), ("rope_theta", "rotary_emb_base")),
        {"gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 4, 4)},
    ),
    "keys of phi-2": ("phi", str, with_rope_keys(("partial_rotary_factor",) * 2, ("rope_theta",) * 2), {}),
    "first gemma checkpoints": (
        "gemma",
        str,
        lambda config: config | {"hidden_act": "gelu", "hidden_activation": None},
        {},
    ),
    "gemma 3 with images": (
        "gemma3_text",
        lambda name: f"language_model.{name}",
        lambda config: {"model_type": "gemma3", "text_config": config, "vision_config": {"hidden_size": 3}},
        VISION,
    ),
    "gemma 3 with images, transformers 5": (
        "gemma3_text",
        lambda name: name.replace("model.", "model.language_model.", 1),
        lambda config: {"model_type": "gemma3", "text_config": config, "dtype": "float32"},
        {f"model.{name}": tensor for name, tensor in VISION.items()},
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_names_and_keys_give_the_same_model(draw_tiny, tmp_path, prompt, layout):
    variant, rename, change_config, extra_tensors = LAYOUTS[layout]
    tiny = draw_tiny(variant)
    folder = rewrite(tiny.folder, tmp_path / "other", rename, change_config, **extra_tensors)
    ids = prompt(30)
    assert torch.equal(LLM.load(folder, dtype="float32").logits(ids), LLM.load(tiny.folder).logits(ids))


def test_a_gemma_3_with_images_is_saved_as_a_text_model(draw_tiny, tmp_path, prompt):
    from transformers import AutoModelForCausalLM

    variant, rename, change_config, extra_tensors = LAYOUTS["gemma 3 with images"]
    tiny = draw_tiny(variant)
    folder = rewrite(tiny.folder, tmp_path / "other", rename, change_config, **extra_tensors)
    llm = LLM.load(folder, dtype="float32")
    llm.save(tmp_path / "saved")
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float64)
    ids = prompt(20)
    with torch.no_grad():
        expected = reference(torch.tensor([ids])).logits[0]
    assert (llm.logits(ids) - expected).abs().max() < 2e-5 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize(
    ("keys", "message"),
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
def test_an_invalid_config_is_refused_in_one_line(keys, message):
    shape = {
        "vocab_size": 32,
        "hidden_size": 40,
        "intermediate_size": 40,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    }
    with pytest.raises(BareloopError, match=message):
        configure(shape | keys)


def test_a_minimal_text_config_of_gemma_3_has_the_defaults_of_transformers():
    text = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024}
    _, config = configure({"model_type": "gemma3", "text_config": text | {"model_type": "gemma3_text"}})
    assert (config.vocab_size, config.num_heads, config.num_kv_heads, config.head_dim) == (262_208, 8, 4, 256)
    assert config.windows[:6] == (1024,) * 5 + (None,)


def test_old_and_new_names_of_a_key_must_agree():
    raw = {"model_type": "gpt_neox", "vocab_size": 32, "hidden_size": 64, "intermediate_size": 64}
    raw |= {"num_hidden_layers": 2, "num_attention_heads": 2, "rotary_pct": 0.25, "rotary_emb_base": 10000}
    assert configure(raw | {"partial_rotary_factor": 0.25, "rope_theta": 10000})[1].rotary_size == 8
    with pytest.raises(BareloopError, match=r"rotary_pct = 0.25 and partial_rotary_factor = 0.5; remove one"):
        configure(raw | {"partial_rotary_factor": 0.5})


def test_every_family_lists_its_checkpoints():
    assert all(family.checkpoints for family in FAMILIES.values())
