"""Checkpoints with only pickles: their code is never run, and they are converted once, exactly."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine import LLM
from engine.checkpoints import pickles
from engine.checkpoints.hub import find_model
from engine.runtime.errors import BareloopError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache."""
    monkeypatch.setattr(pickles, "_cache", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def as_pickle(folder: Path, into: Path, shards: int = 1) -> Path:
    """Copy a model folder with its weights in pytorch_model.bin, or in shards with an index."""
    shutil.copytree(folder, into)
    tensors = load_file(into / "model.safetensors")
    (into / "model.safetensors").unlink()
    if shards == 1:
        torch.save(tensors, into / "pytorch_model.bin")
        return into
    names = list(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"pytorch_model-{shard + 1:05}-of-{shards:05}.bin"
        names_of_shard = names[shard::shards]
        torch.save({name: tensors[name] for name in names_of_shard}, into / file)
        weight_map |= dict.fromkeys(names_of_shard, file)
    (into / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return into


@pytest.mark.parametrize("shards", [1, 3])
def test_a_pickle_is_converted_if_allowed_and_then_read_without_permission(tiny_llama, tmp_path, prompt, shards, cache):
    folder = as_pickle(tiny_llama.folder, tmp_path / "model", shards)
    with pytest.raises(BareloopError, match=r"has only pytorch_model.*; add --allow-pickle"):
        LLM.load(folder)
    expected = LLM.load(tiny_llama.folder).logits(prompt(12))
    assert torch.equal(LLM.load(folder, allow_pickle=True).logits(prompt(12)), expected)
    assert torch.equal(LLM.load(folder).logits(prompt(12)), expected)  # already converted
    assert len(list(cache.iterdir())) == 1
    assert not list(folder.glob("*.safetensors"))


def test_tensors_that_share_storage_are_converted(tiny_llama, tmp_path, prompt):
    folder = as_pickle(tiny_llama.folder, tmp_path / "model")
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    storage = torch.stack([tensors["model.norm.weight"], tensors["model.norm.weight"]])
    tensors["model.norm.weight"], tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = storage
    torch.save(tensors, folder / "pytorch_model.bin")
    assert LLM.load(folder, allow_pickle=True).logits(prompt(5)).isfinite().all()


class Attack:
    """A pickle that creates a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_pickle_is_not_run(tiny_llama, tmp_path):
    folder = as_pickle(tiny_llama.folder, tmp_path / "model")
    torch.save({"a": Attack(tmp_path / "attack")}, folder / "pytorch_model.bin")
    with pytest.raises(BareloopError, match="damaged, or has more than tensors"):
        LLM.load(folder, allow_pickle=True)
    assert not (tmp_path / "attack").exists()


INVALID = {
    "names that are not strings": lambda: {1: torch.ones(2)},
    "values that are not tensors": lambda: {"a": 5},
    "sparse": lambda: {"a": torch.eye(3).to_sparse()},
    "meta": lambda: {"a": torch.ones(3, device="meta")},
    "larger than its storage": lambda: {"a": torch.ones(1).expand(10**13)},
    "a list": lambda: [torch.ones(2)],
}


@pytest.mark.parametrize("content", INVALID)
def test_anything_but_a_dictionary_of_plain_tensors_raises_a_one_line_error(tiny_llama, tmp_path, content):
    folder = as_pickle(tiny_llama.folder, tmp_path / "model")
    torch.save(INVALID[content](), folder / "pytorch_model.bin")
    with pytest.raises(BareloopError, match="damaged, or has more than tensors"):
        LLM.load(folder, allow_pickle=True)


def test_the_file_format_before_torch_1_6_is_read(tiny_llama, tmp_path, prompt):
    folder = as_pickle(tiny_llama.folder, tmp_path / "model")
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(
        LLM.load(folder, allow_pickle=True).logits(prompt(5)), LLM.load(tiny_llama.folder).logits(prompt(5))
    )


@pytest.mark.parametrize("name", ["..", "", "/etc/passwd", 3])
def test_an_index_may_only_name_files_in_the_same_folder(tiny_llama, tmp_path, name):
    folder = as_pickle(tiny_llama.folder, tmp_path / "model")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(BareloopError, match="to files in the same folder"):
        LLM.load(folder, allow_pickle=True)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04 cut off"])
def test_a_damaged_pickle_raises_a_one_line_error_and_leaves_no_file(tiny_llama, tmp_path, content, cache):
    folder = as_pickle(tiny_llama.folder, tmp_path / "model")
    (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(BareloopError, match="damaged, or has more than tensors"):
        LLM.load(folder, allow_pickle=True)
    assert not cache.exists() or not list(cache.iterdir())


def test_original_rwkv_files_are_refused_with_the_name_of_a_converted_repository(tiny_llama, tmp_path):
    folder = as_pickle(tiny_llama.folder, tmp_path / "model")
    torch.save({"emb.weight": torch.ones(2), pickles.RWKV_ORIGINAL: torch.ones(2)}, folder / "pytorch_model.bin")
    with pytest.raises(BareloopError, match=r"RWKV/rwkv-4-169m-pile"):
        LLM.load(folder, allow_pickle=True)
    (tmp_path / "rwkv").mkdir()
    (tmp_path / "rwkv" / "RWKV-4-Pile-169M.pth").write_bytes(b"")
    with pytest.raises(BareloopError, match=r"no config.json.*RWKV/rwkv-4-169m-pile"):
        find_model(tmp_path / "rwkv")


def test_the_error_about_missing_weights_names_the_files_of_the_folder(tmp_path):
    with pytest.raises(BareloopError, match=r"no model.safetensors.*add --allow-pickle"):
        pickles.find_tensors(tmp_path)
    (tmp_path / "model.gguf").touch()
    with pytest.raises(BareloopError, match=r"it has model.gguf, which cannot be read"):
        pickles.find_tensors(tmp_path)
