"""Opening a model: what is decided before any weight is read."""

from __future__ import annotations

import json

import torch

from engine import LLM


def test_without_a_dtype_in_the_config_the_stored_one_is_used(tiny_llama, edit_tensors):
    def to_half(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: value.half() for name, value in tensors.items() if value.dim() > 1})
        tensors["a.rotary_emb.inv_freq"] = torch.ones(2, dtype=torch.int64)

    folder = edit_tensors(tiny_llama.folder, to_half)
    raw = json.loads((folder / "config.json").read_text())
    raw.pop("dtype")
    (folder / "config.json").write_text(json.dumps(raw))
    assert LLM.load(folder, device="cpu").dtype == torch.float16
