"""Checkpoint <-> parameters: names, stacking, ties, one error for all that does not fit, saving."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import LLM
from engine.checkpoints.mapping import parameter_sources
from engine.runtime.errors import BareloopError


def load(folder: Path, dtype: str = "float32") -> LLM:
    return LLM.load(folder, device="cpu", dtype=dtype)


def rewrite(source: Path, folder: Path, change) -> Path:  # type: ignore[no-untyped-def]
    """A copy of a model folder with its tensors changed."""
    folder.mkdir()
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_parts_name_the_rows_of_fused_parameters(tiny_llama):
    llm = load(tiny_llama.folder)
    tensors = load_file(tiny_llama.folder / "model.safetensors")
    listed = parameter_sources(llm.model, llm.family)
    assert [part.name for part in listed["layers.1.attention.qkv.weight"]] == [
        f"model.layers.1.self_attn.{x}_proj.weight" for x in "qkv"
    ]
    assert {part.name for several in listed.values() for part in several} == set(tensors)
    for name, several in listed.items():
        for part in several:
            assert torch.equal(llm.model.get_parameter(name)[part.rows], tensors[part.name])


def test_save_inverts_loading_for_every_family(tiny, tmp_path, prompt):
    from transformers import AutoModelForCausalLM

    llm = load(tiny.folder)
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


def test_saved_shards_load_again(tiny_llama, tmp_path, monkeypatch, prompt):
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr("engine.checkpoints.safetensors.MAX_SHARD", 40_000)
    llm = load(tiny_llama.folder)
    llm.save(tmp_path / "sharded")
    assert len(list((tmp_path / "sharded").glob("model-*-of-*.safetensors"))) > 2
    assert torch.equal(load(tmp_path / "sharded").logits(prompt(9)), llm.logits(prompt(9)))
    AutoModelForCausalLM.from_pretrained(tmp_path / "sharded")


def test_save_never_overwrites(tiny_llama, tmp_path):
    llm = load(tiny_llama.folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(BareloopError, match="not empty"):
        llm.save(tmp_path / "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_a_failed_save_leaves_nothing(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "engine.checkpoints.saving.write_tensors", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with pytest.raises(OSError, match="No space"):
        load(tiny_llama.folder).save(tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_one_error_names_all_that_does_not_fit(tiny_llama, tmp_path):
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.layers.0.self_attn.k_proj.weight"]
        tensors["model.norm.weight"] = torch.ones(5)
        tensors["model.layers.1.mlp.down_proj.weight"] = torch.ones(48, 80, dtype=torch.int8)
        tensors["model.layers.0.self_attn.q_norm.weight"] = torch.ones(8)
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)  # an old program's buffer

    folder = rewrite(tiny_llama.folder, tmp_path / "odd", change)
    with pytest.raises(BareloopError) as caught:
        load(folder)
    text = str(caught.value)
    assert "1 missing (model.layers.0.self_attn.k_proj.weight)" in text
    assert "2 misshapen (" in text
    assert "model.norm.weight is float32 [5], not float [48]" in text
    assert "1 unexpected (model.layers.0.self_attn.q_norm.weight)" in text
    assert "inv_freq" not in text
    assert "\n" not in text


@pytest.mark.parametrize("brings", ["embedding", "head", "both", "different", "a head of no size"])
def test_tied_checkpoints_bring_the_embedding_or_the_head_or_both(draw_tiny, tmp_path, prompt, brings):
    tiny = draw_tiny("llama-tied-bias")
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"

    def change(tensors: dict[str, torch.Tensor]) -> None:
        if brings in ("both", "different"):
            tensors[head] = tensors[embedding].clone() * (2 if brings == "different" else 1)
        elif brings == "a head of no size":
            tensors[head] = torch.zeros(0)
        elif brings == "head":
            tensors[head] = tensors.pop(embedding)

    folder = rewrite(tiny.folder, tmp_path / "tied", change)
    if brings == "a head of no size":
        with pytest.raises(BareloopError, match=r"1 misshapen \(lm_head.weight is float32 \[0\]"):
            load(folder)
        return
    llm = load(folder)
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    with torch.no_grad():
        expected = reference(torch.tensor([prompt(9)])).logits[0]
    assert (llm.logits(prompt(9)).double() - expected).abs().max() < 2e-5
    assert (llm.model.head.weight is llm.model.embed.weight) == (brings != "different")
    llm.save(tmp_path / "saved")
    assert torch.equal(load(tmp_path / "saved").logits(prompt(9)), llm.logits(prompt(9)))


def test_heads_that_differ_are_told_apart_even_where_they_lie_unaligned(draw_tiny, tmp_path, prompt):
    tiny = draw_tiny("llama-tied-bias")
    folder = rewrite(
        tiny.folder, tmp_path / "odd", lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] * 2})
    )
    aligned = load(folder).logits(prompt(9))
    content = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    (folder / "model.safetensors").write_bytes(
        struct.pack("<Q", length + 1) + content[8 : 8 + length] + b" " + content[8 + length :]
    )
    assert torch.equal(load(folder).logits(prompt(9)), aligned)


def test_gradients_equal_transformers(tiny_llama, prompt):
    from transformers import AutoModelForCausalLM

    from engine.cache.state import Step

    ids = prompt(24)
    reference = AutoModelForCausalLM.from_pretrained(
        tiny_llama.folder, dtype=torch.float64, attn_implementation="eager"
    )
    reference(torch.tensor([ids]), labels=torch.tensor([ids])).loss.backward()
    expected = {name: parameter.grad for name, parameter in reference.named_parameters()}

    llm = load(tiny_llama.folder)
    llm.model.requires_grad_(True)
    logits = llm.model.logits(llm.model.forward(Step.pack([ids])))
    torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:])).backward()
    for name, several in parameter_sources(llm.model, llm.family).items():
        gradient = llm.model.get_parameter(name).grad
        assert gradient is not None
        for part in several:
            ours, theirs = gradient[part.rows].double(), expected[part.name]
            assert (ours - theirs).abs().max() <= 2e-5 * max(1.0, float(theirs.abs().max())), part.name


def test_weights_that_do_not_fit_are_refused_before_they_are_read(tiny_llama, monkeypatch):
    monkeypatch.setattr("engine.checkpoints.loading.free_memory", lambda device: 1000)
    with pytest.raises(BareloopError, match=r"out of memory: the weights take .* GB in bfloat16.*a model of at most"):
        load(tiny_llama.folder, "bfloat16")


def test_a_dtype_that_fits_is_named(tiny_llama, monkeypatch):
    size = sum(parameter.nbytes for parameter in load(tiny_llama.folder, "float32").model.parameters())
    monkeypatch.setattr("engine.checkpoints.loading.free_memory", lambda device: size // 2)
    with pytest.raises(BareloopError, match=r"--dtype bfloat16 takes"):
        LLM.load(tiny_llama.folder, dtype="float32", device="cpu")


PEAK = """
import sys, torch
from engine import LLM
import engine.llm
torch.ones(64, 64) @ torch.ones(64, 64)
def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
llm = LLM.load(sys.argv[1], device="cpu", dtype=sys.argv[2])
total = sum(float(parameter.sum()) for parameter in llm.model.parameters())
print(peak() - before, sum(parameter.nbytes for parameter in llm.model.parameters()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_loading_never_holds_a_second_copy(tmp_path, dtype):
    """The issue's bound at 1 GB is a benchmark (bench/test_load.py); here a fifth of it, in a process of its own."""
    config = {
        "model_type": "llama",
        "vocab_size": 16_000,
        "hidden_size": 1024,
        "intermediate_size": 6144,
        "num_hidden_layers": 4,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "dtype": "bfloat16",
    }
    LLM.from_config(config, device="cpu", dtype="bfloat16").save(tmp_path / "model")
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "model"), dtype], capture_output=True, text=True, check=True
    )
    peak, weights = map(int, done.stdout.split())
    assert peak <= 1.1 * weights + 150e6


def test_config_without_dtype_takes_the_stored_one(tiny_llama, tmp_path):
    def halve(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: value.half() for name, value in tensors.items() if value.dim() > 1})
        tensors["a.rotary_emb.inv_freq"] = torch.ones(2, dtype=torch.int64)

    folder = rewrite(tiny_llama.folder, tmp_path / "half", halve)
    raw = json.loads((folder / "config.json").read_text())
    raw.pop("dtype")
    (folder / "config.json").write_text(json.dumps(raw))
    assert LLM.load(folder, device="cpu").dtype == torch.float16
