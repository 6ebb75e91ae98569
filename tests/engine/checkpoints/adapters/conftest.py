"""Adapters that peft writes, for the tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.checkpoints.adapters.config import CONFIG


@pytest.fixture(scope="session")
def dense() -> Callable[[Path], Any]:
    """Load a folder in transformers, in float32."""

    def load(folder: Path) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    return load


@pytest.fixture(scope="session")
def make_peft(dense) -> Callable[..., Any]:
    """Write an adapter with random A and B, and return peft's model: make_peft(base, folder, targets, seed, …)."""
    peft = pytest.importorskip("peft")

    def make(base: Path, folder: Path, targets: Any, seed: int = 0, **settings: Any) -> Any:
        config = peft.LoraConfig(
            **{"r": 3, "lora_alpha": 7, "task_type": "CAUSAL_LM", "target_modules": targets} | settings
        )
        model = peft.get_peft_model(dense(base), config)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(0, 0.2, generator=generator)
        model.save_pretrained(folder)
        return model

    return make


@dataclass(frozen=True)
class Base:
    """A model on disk, and the tolerance of its float32 logits."""

    folder: Path
    tolerance: float


@pytest.fixture(scope="session")
def with_images(tmp_path_factory) -> Base:
    """A tiny Gemma 3 with a vision tower, whose matrices have the names of the text part's, too."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = {"vocab_size": 199, "hidden_size": 48, "intermediate_size": 64, "head_dim": 12, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 9, "max_position_embeddings": 128}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 8, "patch_size": 4}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1)
    folder = tmp_path_factory.mktemp("gemma3")
    model.save_pretrained(folder)
    return Base(folder, 2e-5)


@pytest.fixture
def adapter(tiny_llama, make_peft, tmp_path) -> Path:
    """An adapter of a Llama, whose base is named."""
    make_peft(tiny_llama.folder, tmp_path / "tuned", ["q_proj", "gate_proj"])
    return tmp_path / "tuned"


@pytest.fixture
def edit(adapter) -> Callable[..., Path]:
    """Change keys of the adapter's config; None removes one: edit(r=0) -> its folder."""

    def change(**keys: Any) -> Path:
        raw = json.loads((adapter / CONFIG).read_text()) | keys
        (adapter / CONFIG).write_text(json.dumps({key: value for key, value in raw.items() if value is not None}))
        return adapter

    return change
