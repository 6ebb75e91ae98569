"""Quantized folders: saved and loaded with the same bits, refused if anything does not fit."""

from __future__ import annotations

import json

import pytest
import torch

from engine import LLM, SamplingParams, kernels
from engine.checkpoints.opening import open_model
from engine.cli.inspection import inspect
from engine.runtime.errors import BareloopError

QUANTS = ["int8", "int4"]


def parameters(llm: LLM) -> dict[str, torch.Tensor]:
    return dict(llm.model.named_parameters())


@pytest.fixture(scope="module", params=["llama-tied-bias", "gpt2", "mamba"])
def source(request, draw_tiny):
    """Model folders: tied with a separate head dimension, transposed matrices (GPT-2), recurrent."""
    sizes = {"gpt2": {"hidden_size": 96}, "mamba": {"hidden_size": 64, "intermediate_size": 128}}
    return draw_tiny(request.param, **sizes.get(request.param, {"hidden_size": 96, "head_dim": 16})).folder


@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_saved_quantized_model_loads_with_the_same_bits(source, tmp_path, quant, dtype, prompt):
    llm = LLM.load(source, "cpu", dtype, quant)
    llm.save(tmp_path / "saved")
    again = LLM.load(tmp_path / "saved", "cpu")
    assert again.quant == quant and again.dtype == llm.dtype
    ours, theirs = parameters(llm), parameters(again)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in ours)
    assert torch.equal(llm.logits(prompt(9)), again.logits(prompt(9)))
    params = SamplingParams(max_new_tokens=5, ignore_eos=True)
    assert llm.generate([prompt(4)], params) == again.generate([prompt(4)], params)
    assert any(quant in str(table.columns[1]._cells) for table in inspect(str(tmp_path / "saved")) if table.columns)


@pytest.mark.parametrize("quant", QUANTS)
def test_folders_are_exchanged_between_machines_with_and_without_kernels(source, tmp_path, quant, prompt, monkeypatch):
    ids = prompt(kernels.MAX_ROWS + 1)  # for fewer rows the kernels quantize the input, too
    LLM.load(source, "cpu", "float32", quant).save(tmp_path / "with")
    expected = LLM.load(tmp_path / "with", "cpu").logits(ids)
    monkeypatch.setattr(kernels, "available", lambda: False)
    LLM.load(source, "cpu", "float32", quant).save(tmp_path / "without")
    both = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("with", "without")]
    logits = LLM.load(tmp_path / "with", "cpu").logits(ids)
    if quant == "int8":  # for int4 PyTorch's layout stores the head as int8
        assert both[0] == both[1]
        assert (logits - expected).abs().max() <= 1e-2 * expected.abs().max()
    logits = LLM.load(tmp_path / "without", "cpu").logits(ids)
    monkeypatch.undo()
    again = LLM.load(tmp_path / "without", "cpu")
    assert torch.allclose(again.logits(ids), logits, atol=1e-2 * float(expected.abs().max()))


def test_quantizing_in_pieces_gives_the_same_bits(source, tmp_path, monkeypatch):
    original = parameters(LLM.load(source, "cpu", "float32", "int4"))
    monkeypatch.setattr("engine.checkpoints.loading.QUANTIZE_BYTES", 1)  # 64 rows
    pieces = parameters(LLM.load(source, "cpu", "float32", "int4"))
    assert all(torch.equal(original[name], pieces[name]) for name in original)


@pytest.fixture
def saved(tiny_llama, tmp_path):
    """A folder quantized to int8."""
    LLM.load(tiny_llama.folder, "cpu", quant="int8").save(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_quantized_folder_is_not_converted_to_another_format(saved):
    with pytest.raises(
        BareloopError, match="is already quantized to int8, which cannot become int4; leave out --quant"
    ):
        open_model(saved, quant="int4")
    assert open_model(saved, quant="int8").quant == "int8"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"version": 2}, "is not supported; quantize it again"),
        ({"format": "int3"}, "is not supported; quantize it again"),
        ({"quant_method": "gptq"}, r"quantization_config \(gptq\) is not supported; use the unquantized"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_threshold": 0.0}, "6.0 is"),
        ({"quant_method": "bitsandbytes"}, "is not supported"),
    ],
)
def test_an_unsupported_quantization_config_is_named(saved, changed, message):
    config = json.loads((saved / "config.json").read_text())
    config["quantization_config"] |= changed
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(BareloopError, match=message):
        open_model(saved)


@pytest.mark.parametrize("value", ["bareloop", 4, ["int8"]])
def test_a_quantization_config_that_is_not_an_object_raises_a_one_line_error(saved, value):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "quantization_config": value}))
    with pytest.raises(BareloopError, match="is not an object"):
        open_model(saved)


def test_a_model_whose_shapes_no_format_supports_is_saved_unquantized(draw_tiny, tmp_path, prompt):
    folder = draw_tiny(
        "llama", hidden_size=30, intermediate_size=30, num_attention_heads=5, num_key_value_heads=5
    ).folder
    llm = LLM.load(folder, "cpu", "float32", "int8")
    llm.save(tmp_path / "saved")
    assert torch.equal(LLM.load(tmp_path / "saved", "cpu").logits(prompt(5)), LLM.load(folder, "cpu").logits(prompt(5)))


def test_missing_unexpected_and_misshapen_tensors_are_named(saved):
    from safetensors.torch import load_file, save_file

    original = load_file(saved / "model.safetensors")
    name = "layers.1.mlp.down.weight"
    for tensors, message in (
        ({key: value for key, value in original.items() if key != name}, f"1 missing \\({name}\\)"),
        ({**original, "extra": torch.zeros(1)}, "1 unexpected \\(extra\\)"),
        ({**original, name: original[name][:-1].contiguous()}, f"{name} is int8 .* not int8"),
        ({**original, name: original[name].float()}, f"{name} is float32 .* not int8"),
    ):
        save_file(tensors, saved / "model.safetensors")
        with pytest.raises(BareloopError, match=message):
            LLM.load(saved, "cpu")
