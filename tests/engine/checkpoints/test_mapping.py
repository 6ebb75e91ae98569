"""Tensor names are mapped to parameters: stacking, tied weights, one error for all tensors that do not fit."""

from __future__ import annotations

import struct

import pytest
import torch
from safetensors.torch import load_file

from engine import LLM
from engine.checkpoints.mapping import parameter_sources
from engine.runtime.errors import BareloopError


def test_sources_name_the_rows_of_fused_parameters(tiny_llama):
    llm = LLM.load(tiny_llama.folder, "cpu", "float32")
    tensors = load_file(tiny_llama.folder / "model.safetensors")
    sources = parameter_sources(llm.model, llm.family)
    assert [source.name for source in sources["layers.1.attention.qkv.weight"]] == [
        f"model.layers.1.self_attn.{x}_proj.weight" for x in "qkv"
    ]
    assert {source.name for group in sources.values() for source in group} == set(tensors)
    for name, group in sources.items():
        for source in group:
            assert torch.equal(llm.model.get_parameter(name)[source.rows], tensors[source.name])


def test_one_error_names_all_missing_misshapen_and_unexpected_tensors(tiny_llama, edit_tensors):
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.layers.0.self_attn.k_proj.weight"]
        tensors["model.norm.weight"] = torch.ones(5)
        tensors["model.layers.1.mlp.down_proj.weight"] = torch.ones(48, 80, dtype=torch.int8)
        tensors["model.layers.0.self_attn.q_norm.weight"] = torch.ones(8)
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)  # old versions saved it

    folder = edit_tensors(tiny_llama.folder, change)
    with pytest.raises(BareloopError) as caught:
        LLM.load(folder, "cpu", "float32")
    message = str(caught.value)
    assert "1 missing (model.layers.0.self_attn.k_proj.weight)" in message
    assert "2 misshapen (" in message
    assert "model.norm.weight is float32 [5], not float [48]" in message
    assert "1 unexpected (model.layers.0.self_attn.q_norm.weight)" in message
    assert "inv_freq" not in message
    assert "\n" not in message


@pytest.mark.parametrize("stored", ["embedding", "head", "both", "different", "an empty head"])
def test_a_tied_checkpoint_may_store_the_embedding_or_the_head_or_both(
    draw_tiny, edit_tensors, tmp_path, prompt, stored
):
    tiny = draw_tiny("llama-tied-bias")
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"

    def change(tensors: dict[str, torch.Tensor]) -> None:
        if stored in ("both", "different"):
            tensors[head] = tensors[embedding].clone() * (2 if stored == "different" else 1)
        elif stored == "an empty head":
            tensors[head] = torch.zeros(0)
        elif stored == "head":
            tensors[head] = tensors.pop(embedding)

    folder = edit_tensors(tiny.folder, change)
    if stored == "an empty head":
        with pytest.raises(BareloopError, match=r"1 misshapen \(lm_head.weight is float32 \[0\]"):
            LLM.load(folder, "cpu", "float32")
        return
    llm = LLM.load(folder, "cpu", "float32")
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    with torch.no_grad():
        expected = reference(torch.tensor([prompt(9)])).logits[0]
    assert (llm.logits(prompt(9)).double() - expected).abs().max() < 2e-5
    assert (llm.model.head.weight is llm.model.embed.weight) == (stored != "different")
    llm.save(tmp_path / "saved")
    assert torch.equal(LLM.load(tmp_path / "saved", "cpu", "float32").logits(prompt(9)), llm.logits(prompt(9)))


def test_a_head_that_differs_from_the_embedding_is_detected_in_unaligned_files_too(draw_tiny, edit_tensors, prompt):
    tiny = draw_tiny("llama-tied-bias")
    folder = edit_tensors(tiny.folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] * 2}))
    aligned = LLM.load(folder, "cpu", "float32").logits(prompt(9))
    content = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    (folder / "model.safetensors").write_bytes(
        struct.pack("<Q", length + 1) + content[8 : 8 + length] + b" " + content[8 + length :]
    )
    assert torch.equal(LLM.load(folder, "cpu", "float32").logits(prompt(9)), aligned)
