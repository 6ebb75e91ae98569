"""The comparison with other engines, on the smallest shape; what is compared computes the same."""

from __future__ import annotations

import json

import pytest
import torch

from bench import peers, shapes
from engine import LLM
from engine.runtime.errors import BareloopError, UsageError

IDS = list(range(5, 25))


@pytest.fixture
def tiny_shape(tmp_path, monkeypatch):
    """Its folder, in a cache of its own."""
    monkeypatch.setattr(shapes, "cache_folder", lambda: tmp_path / "shapes")
    return shapes.checkpoint("tiny")


def options(*flags: str):
    return peers.parser().parse_args(list(flags))


def test_engines_are_measured_in_turn(tiny_shape, tmp_path, capsys):
    flags = ["-m", str(tiny_shape), "--rounds", "2", "--new-tokens", "4", "--prefill-tokens", "20"]
    engines = ["bareloop-bfloat16", "bareloop-float32"]
    peers.main(options(*flags, "--engines", *engines, "--output-dir", str(tmp_path / "out")))
    told = json.loads(next((tmp_path / "out").glob("*.json")).read_text())
    assert [one["engine"] for one in told["engines"]] == engines
    assert all(len(one[what]) == 2 for one in told["engines"] for what in ("decode", "prefill", "bandwidth"))
    assert "bareloop-float32" in capsys.readouterr().out


def test_an_unknown_engine_is_refused():
    with pytest.raises(UsageError, match="no engine 'vllm'; there are: bareloop-bfloat16"):
        peers.main(options("--engines", "vllm"))


def test_an_engine_that_fails_says_why(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 10, "model_type": "llama"}))
    with pytest.raises(BareloopError, match="bareloop-float32: "):
        peers.measure(tmp_path, options("--engines", "bareloop-float32"))


@pytest.mark.parametrize("model_type", ["qwen2", "llama", "olmo2"])
def test_llama_cpp_has_the_same_weights(model_type, tmp_path, monkeypatch):
    """Its greedy tokens are ours, through names, permutations and rotations."""
    pytest.importorskip("llama_cpp")
    pytest.importorskip("gguf")
    monkeypatch.setattr("bench.gguf_files.cache_folder", lambda: tmp_path / "shapes")
    config = {**shapes.SHAPES["tiny"], "model_type": model_type, "tie_word_embeddings": model_type != "olmo2"}
    if model_type == "llama":
        scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        config |= {"rope_scaling": {**scaling, "original_max_position_embeddings": 64}, "rope_theta": 500.0}
    config |= {"num_key_value_heads": 4} if model_type == "olmo2" else {}
    folder = tmp_path / "model"
    shapes.write(config, folder)
    llm = LLM.load(folder, device="cpu")
    import llama_cpp.llama_cpp as lib

    from bench.gguf_files import gguf_file

    model = lib.llama_model_load_from_file(str(gguf_file(folder, "BF16")).encode(), lib.llama_model_default_params())
    context = lib.llama_init_from_model(model, lib.llama_context_default_params())
    tokens = (lib.llama_token * len(IDS))(*IDS)
    assert lib.llama_decode(context, lib.llama_batch_get_one(tokens, len(IDS))) == 0
    theirs = torch.tensor(lib.llama_get_logits_ith(context, -1)[: config["vocab_size"]])
    ours = llm.logits(IDS)[-1]
    assert torch.nn.functional.cosine_similarity(ours, theirs, dim=0) > 0.999
