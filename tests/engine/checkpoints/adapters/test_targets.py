"""Targets of adapters: matrices that peft adapts, by transformers' names of modules."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file, save_file

from engine import LLM
from engine.checkpoints.adapters.config import WEIGHTS, LoraConfig
from engine.checkpoints.adapters.files import add_adapters, load_adapter, save_adapter
from engine.runtime.errors import BareloopError


@pytest.mark.parametrize(
    ("variant", "targets", "line"),
    [
        ("qwen2", ("lm_head",), "lm_head is a head whose weight is the embedding's"),
        ("llama", ("q_proj", "nothing"), "'nothing' is no linear layer"),
        ("mamba", ("conv1d",), "conv1d is of type Convolution"),
        ("mamba", ("out_proj",), "without that adapter; leave it out; targets can be in_proj, x_proj"),
    ],
)
def test_targets_that_cannot_be_adapted_are_refused(variant, targets, line, draw_tiny):
    llm = LLM.load(draw_tiny(variant).folder, "cpu")
    with pytest.raises(BareloopError, match=line):
        add_adapters(llm.model, llm.family, LoraConfig(targets=targets))


@pytest.mark.filterwarnings("ignore")
def test_names_of_the_checkpoint_mean_the_same_modules_as_those_of_transformers(with_images, dense, tmp_path):
    peft = pytest.importorskip("peft")
    llm = LLM.load(with_images.folder, "cpu", "float32")
    end = "layers.1.self_attn.q_proj"
    targets = (f"model.{end}", "model.language_model.layers.0.mlp.up_proj")
    config = LoraConfig(2, 5.0, targets=targets, rank_pattern={f"model.{end}": 4}, alpha_pattern={f"model.{end}": 3})
    add_adapters(llm.model, llm.family, config)
    save_adapter(llm.model, llm.family, config, tmp_path / "ours")
    inner = peft.PeftModel.from_pretrained(dense(with_images.folder), tmp_path / "ours").get_submodule(
        f"base_model.model.model.language_model.{end}"
    )
    assert (inner.r["default"], inner.scaling["default"]) == (4, 0.75)
    tensors = load_file(tmp_path / "ours" / WEIGHTS)
    save_file(
        {name.replace("language_model.", ""): each for name, each in tensors.items()}, tmp_path / "ours" / WEIGHTS
    )
    again = LLM.load(with_images.folder, "cpu", "float32")
    load_adapter(again.model, again.family, tmp_path / "ours")  # as it was written before


def test_an_adapter_of_the_vision_tower_alone_is_refused(with_images, make_peft, tmp_path):
    make_peft(with_images.folder, tmp_path / "tuned", r".*vision_tower.*\.q_proj")
    with pytest.raises(BareloopError, match="is no linear layer of this gemma3 model"):
        LLM.load(with_images.folder, "cpu", adapter=tmp_path / "tuned")
