"""Checkpoints that are only pickles: never run, converted once, and the same numbers."""

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
    """A cache of the test's own."""
    monkeypatch.setattr(pickles, "_cache", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def as_pickle(folder: Path, into: Path, shards: int = 1) -> Path:
    """A folder's weights as pytorch_model.bin, or as several with their index."""
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
        own = names[shard::shards]
        torch.save({name: tensors[name] for name in own}, into / file)
        weight_map |= dict.fromkeys(own, file)
    (into / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return into


@pytest.mark.parametrize("shards", [1, 3])
def test_a_pickle_is_read_when_allowed_and_from_then_on(tiny_llama, tmp_path, prompt, shards, cache):
    folder = as_pickle(tiny_llama.folder, tmp_path / "model", shards)
    with pytest.raises(BareloopError, match=r"has only pytorch_model.*; add --allow-pickle"):
        LLM.load(folder)
    expected = LLM.load(tiny_llama.folder).logits(prompt(12))
    assert torch.equal(LLM.load(folder, allow_pickle=True).logits(prompt(12)), expected)
    assert torch.equal(LLM.load(folder).logits(prompt(12)), expected)  # it has been converted
    assert len(list(cache.iterdir())) == 1
    assert not list(folder.glob("*.safetensors"))


def test_tensors_that_share_storage_are_written_each(tiny_llama, tmp_path, prompt):
    folder = as_pickle(tiny_llama.folder, tmp_path / "model")
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    whole = torch.stack([tensors["model.norm.weight"], tensors["model.norm.weight"]])
    tensors["model.norm.weight"], tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = whole
    torch.save(tensors, folder / "pytorch_model.bin")
    assert LLM.load(folder, allow_pickle=True).logits(prompt(5)).isfinite().all()


class Harm:
    """What a pickle can do to whoever reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_pickle_is_not_run(tiny_llama, tmp_path):
    folder = as_pickle(tiny_llama.folder, tmp_path / "model")
    torch.save({"a": Harm(tmp_path / "harm")}, folder / "pytorch_model.bin")
    with pytest.raises(BareloopError, match="damaged, or has more than tensors"):
        LLM.load(folder, allow_pickle=True)
    assert not (tmp_path / "harm").exists()


ODD = {
    "no names": lambda: {1: torch.ones(2)},
    "no tensors": lambda: {"a": 5},
    "sparse": lambda: {"a": torch.eye(3).to_sparse()},
    "nowhere": lambda: {"a": torch.ones(3, device="meta")},
    "a claim": lambda: {"a": torch.ones(1).expand(10**13)},
    "a list": lambda: [torch.ones(2)],
}


@pytest.mark.parametrize("odd", ODD)
def test_what_is_no_dictionary_of_plain_tensors_is_one_line(tiny_llama, tmp_path, odd):
    folder = as_pickle(tiny_llama.folder, tmp_path / "model")
    torch.save(ODD[odd](), folder / "pytorch_model.bin")
    with pytest.raises(BareloopError, match="damaged, or has more than tensors"):
        LLM.load(folder, allow_pickle=True)


def test_the_form_before_torch_1_6_is_read(tiny_llama, tmp_path, prompt):
    folder = as_pickle(tiny_llama.folder, tmp_path / "model")
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(
        LLM.load(folder, allow_pickle=True).logits(prompt(5)), LLM.load(tiny_llama.folder).logits(prompt(5))
    )


@pytest.mark.parametrize("name", ["..", "", "/etc/passwd", 3])
def test_an_index_names_files_of_its_own_folder(tiny_llama, tmp_path, name):
    folder = as_pickle(tiny_llama.folder, tmp_path / "model")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(BareloopError, match="to files in the same folder"):
        LLM.load(folder, allow_pickle=True)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04 cut off"])
def test_a_damaged_pickle_is_one_line_and_leaves_nothing(tiny_llama, tmp_path, content, cache):
    folder = as_pickle(tiny_llama.folder, tmp_path / "model")
    (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(BareloopError, match="damaged, or has more than tensors"):
        LLM.load(folder, allow_pickle=True)
    assert not cache.exists() or not list(cache.iterdir())


def test_rwkv_s_own_files_are_refused_with_the_converted_ones(tiny_llama, tmp_path):
    folder = as_pickle(tiny_llama.folder, tmp_path / "model")
    torch.save({"emb.weight": torch.ones(2), pickles.RWKV_ORIGINAL: torch.ones(2)}, folder / "pytorch_model.bin")
    with pytest.raises(BareloopError, match=r"RWKV/rwkv-4-169m-pile"):
        LLM.load(folder, allow_pickle=True)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "RWKV-4-Pile-169M.pth").write_bytes(b"")
    with pytest.raises(BareloopError, match=r"no config.json.*RWKV/rwkv-4-169m-pile"):
        find_model(tmp_path / "own")


def test_a_folder_without_weights_says_what_it_has(tmp_path):
    with pytest.raises(BareloopError, match=r"no model.safetensors.*add --allow-pickle"):
        pickles.find_tensors(tmp_path)
    (tmp_path / "model.gguf").touch()
    with pytest.raises(BareloopError, match=r"it has model.gguf, which cannot be read"):
        pickles.find_tensors(tmp_path)
