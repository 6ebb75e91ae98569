"""Saving a model: folders that load here and in transformers, no overwriting, no partial folders."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from engine import LLM
from engine.runtime.errors import BareloopError


def test_a_saved_model_has_the_tensors_of_its_checkpoint_in_every_family(tiny, tmp_path, prompt):
    from transformers import AutoModelForCausalLM

    llm = LLM.load(tiny.folder, "cpu", "float32")
    llm.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "model.safetensors").stat().st_mode & 0o777 == 0o644
    before = load_file(tiny.folder / "model.safetensors")
    after = load_file(tmp_path / "saved" / "model.safetensors")
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float64)
    with torch.no_grad():
        logits = again(torch.tensor([prompt(20)])).logits[0]
    assert torch.allclose(logits, tiny.logits(prompt(20)), rtol=0, atol=1e-6)  # eager softmax is float32


def test_a_random_model_saves_as_a_folder_that_transformers_loads_with_the_same_logits(tmp_path, prompt):
    from transformers import AutoModelForCausalLM

    config = {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "initializer_range": 0.1,
    }
    llm = LLM.from_config(config, seed=7, device="cpu")
    assert torch.equal(llm.model.embed.weight, LLM.from_config(config, seed=7, device="cpu").model.embed.weight)
    assert not torch.equal(llm.model.embed.weight, LLM.from_config(config, seed=8, device="cpu").model.embed.weight)
    llm.save(tmp_path / "made")
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "made", dtype=torch.float64)
    with torch.no_grad():
        expected = reference(torch.tensor([prompt(20)])).logits[0]
    assert (llm.logits(prompt(20)).double() - expected).abs().max() < 2e-5


def test_a_model_saved_in_shards_loads_here_and_in_transformers(tiny_llama, tmp_path, monkeypatch, prompt):
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr("engine.checkpoints.safetensors.MAX_SHARD", 40_000)
    llm = LLM.load(tiny_llama.folder, "cpu", "float32")
    llm.save(tmp_path / "sharded")
    assert len(list((tmp_path / "sharded").glob("model-*-of-*.safetensors"))) > 2
    assert torch.equal(LLM.load(tmp_path / "sharded", "cpu", "float32").logits(prompt(9)), llm.logits(prompt(9)))
    AutoModelForCausalLM.from_pretrained(tmp_path / "sharded")


def test_save_never_overwrites(tiny_llama, tmp_path):
    llm = LLM.load(tiny_llama.folder, "cpu", "float32")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(BareloopError, match="not empty"):
        llm.save(tmp_path / "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_a_failed_save_leaves_no_file(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "engine.checkpoints.saving.write_tensors", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with pytest.raises(OSError, match="No space"):
        LLM.load(tiny_llama.folder, "cpu", "float32").save(tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []
