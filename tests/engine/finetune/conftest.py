"""A model of a few thousand parameters with the demo's tokenizer, and a file of messages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine import LLM
from engine.checkpoints import embedded
from engine.checkpoints.saving import save_model

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "initializer_range": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "dtype": "float32",
}


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's folder."""
    folder = tmp_path_factory.mktemp("small") / "model"
    names = ("tokenizer.json", "tokenizer_config.json")
    files = {name: (embedded.FOLDER / name).read_bytes() for name in names}
    config = CONFIG | {"vocab_size": json.loads((embedded.FOLDER / "config.json").read_bytes())["vocab_size"]}
    llm = LLM.from_config(config, seed=1)
    save_model(llm.model, llm.family, config, folder, files)
    return folder


@pytest.fixture(scope="session")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifteen short conversations."""
    path = tmp_path_factory.mktemp("facts") / "facts.jsonl"
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What is the number of the {name}?"},
                {"role": "assistant", "content": f"The number of the {name} is {number}."},
            ]
        }
        for number, name in enumerate(["door", "ship", "city", "book", "river", "house", "star", "moon"] * 2)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:15]))
    return path


Flags = Callable[..., list[str]]


@pytest.fixture
def flags(small: Path, facts: Path, tmp_path: Path) -> Flags:
    """The program's flags for a run of ten steps into tmp_path / name."""

    def make(name: str, *more: str) -> list[str]:
        common = ["-m", str(small), "--data", str(facts), "--output-dir", str(tmp_path / name), "--held-out", "3"]
        defaults = ["--steps", "10"] if "--steps" not in more and "--epochs" not in more else []
        return [*common, *defaults, "--batch-tokens", "64", "--device", "cpu", *more]

    return make
