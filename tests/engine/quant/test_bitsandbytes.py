"""Formats of bitsandbytes compared with its own modules; checkpoints in these formats; errors without the library."""

from __future__ import annotations

import json

import pytest
import torch

from engine import LLM, SamplingParams, kernels
from engine.checkpoints.bitsandbytes import dequantized_tensors
from engine.checkpoints.safetensors import open_checkpoint
from engine.layers.linear import Linear, Matrix
from engine.quant import bitsandbytes as bnb
from engine.quant.tables import TablePanels
from engine.runtime.errors import BareloopError
from tests.engine.quant.matrices import CPU, random_matrix


@pytest.fixture
def library():
    """bitsandbytes; the test is skipped if it is not installed."""
    return pytest.importorskip("bitsandbytes")


@pytest.fixture(scope="module")
def folder(draw_tiny):
    """A Llama whose matrices consist of whole blocks."""
    return draw_tiny("llama", hidden_size=64, intermediate_size=128, num_attention_heads=4).folder


@pytest.mark.parametrize("quant", ["nf4", "fp4", "nf4-double", "fp4-double", "llm.int8"])
def test_products_equal_those_of_bitsandbytes(library, quant):
    weight, bias, x = random_matrix(192, 128), random_matrix(192, seed=1), random_matrix(5, 128, seed=2)
    x[1, 7] = 20.0  # an outlier
    weight_format = bnb.choose_format(quant, 192, 128, torch.float32)
    tensors = weight_format.begin(CPU)
    for first in range(0, 192, 64):
        weight_format.fill(tensors, first, weight[first : first + 64])
    tensors = weight_format.finish(tensors)
    assert {name: tensor.shape for name, tensor in weight_format.empty(CPU).items()} == {
        k: v.shape for k, v in tensors.items()
    }
    if quant == "llm.int8":
        module = library.nn.Linear8bitLt(128, 192, has_fp16_weights=False, threshold=6.0)
        module.weight = library.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        module.bias = torch.nn.Parameter(bias)
        module.weight.CB, module.weight.SCB, _ = library.functional.int8_vectorwise_quant(weight.half())
        module.eval()
        expected = module(x)
    else:
        quant_type, double = quant[:3], quant.endswith("double")
        codes, state = library.functional.quantize_4bit(
            weight, blocksize=64, quant_type=quant_type, compress_statistics=double
        )
        assert torch.equal(codes, tensors["weight"])
        expected = library.matmul_4bit(x, codes, quant_state=state, bias=bias)
        dense = library.functional.dequantize_4bit(codes, state)
        assert torch.equal(weight_format.dense(tensors, 64, 192, torch.float32), dense[64:])
    y = weight_format.product({**tensors, "bias": bias}, x)
    assert y.dtype == x.dtype
    assert torch.allclose(y, expected.to(y.dtype), rtol=1e-5, atol=1e-5)


def test_the_head_and_the_embedding_are_not_quantized(library, folder, prompt):
    llm = LLM.load(folder, "cpu", "bfloat16", "4bit")
    assert llm.quant == "nf4" and llm.model.embed.format is None and llm.model.head.format is None
    matrices = [m for m in llm.model.layers.modules() if isinstance(m, Matrix)]
    assert len(matrices) == 12 and all(isinstance(m.format, bnb.Bnb4 | TablePanels) for m in matrices)
    dense = LLM.load(folder, "cpu", "bfloat16")
    ids = prompt(9)
    assert (llm.logits(ids) - dense.logits(ids)).abs().max() < 0.8 * dense.logits(ids).abs().max()
    assert len(llm.generate([ids], SamplingParams(max_new_tokens=4, ignore_eos=True))[0].token_ids) == 4


@pytest.mark.parametrize("quant", ["nf4", "fp4-double", "llm.int8"])
def test_a_saved_model_loads_unchanged(library, folder, tmp_path, quant, prompt):
    llm = LLM.load(folder, "cpu", "bfloat16", quant)
    llm.save(tmp_path / "saved")
    again = LLM.load(tmp_path / "saved", "cpu")
    assert again.quant == quant and torch.equal(again.logits(prompt(9)), llm.logits(prompt(9)))


def prequantized(library, folder, target, quant: str) -> None:
    """Write a folder as transformers saves a model quantized by bitsandbytes."""
    from safetensors.torch import load_file, save_file

    tensors, result = load_file(folder / "model.safetensors"), {}
    for name, tensor in tensors.items():
        if tensor.dim() != 2 or "embed" in name or "lm_head" in name or "layers.1.mlp.down" in name:  # one stays dense
            result[name] = tensor
        elif quant == "llm.int8":
            codes, largest, _ = library.functional.int8_vectorwise_quant(tensor.half())
            result |= {name: codes, name.removesuffix("weight") + "SCB": largest}
            result[name.removesuffix("weight") + "weight_format"] = torch.tensor(0, dtype=torch.uint8)
        else:
            codes, state = library.functional.quantize_4bit(
                tensor, blocksize=64, quant_type=quant[:3], compress_statistics=quant.endswith("double")
            )
            packed = {f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()}
            result |= {name: codes} | packed
    target.mkdir()
    save_file({name: tensor.contiguous().clone() for name, tensor in result.items()}, target / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": quant != "llm.int8",
        "load_in_8bit": quant == "llm.int8",
        "bnb_4bit_quant_type": quant[:3],
        "bnb_4bit_use_double_quant": quant.endswith("double"),
        "llm_int8_threshold": 6.0,
    }
    (target / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("quant", ["nf4", "fp4", "nf4-double", "llm.int8"])
def test_a_checkpoint_of_bitsandbytes_computes_with_its_stored_values(library, folder, tmp_path, quant, prompt):
    prequantized(library, folder, tmp_path / "prequantized", quant)
    llm = LLM.load(tmp_path / "prequantized", "cpu", "float32")
    assert llm.quant == quant.removesuffix("-double")
    stored = dequantized_tensors(open_checkpoint(tmp_path / "prequantized"))["model.layers.0.mlp.down_proj.weight"]
    values, down = torch.empty(64, 128), llm.model.layers[0].mlp.down
    stored.read_into(values)
    assert torch.equal(values, down.format.dense(down._parameters, 0, 64, torch.float32))  # to the last bit
    assert llm.model.layers[1].mlp.down.format is None  # dense in the checkpoint
    qkv = llm.model.layers[0].attention.qkv
    assert isinstance(qkv, Linear) and qkv.format is not None
    twin = LLM.load(folder, "cpu", "float32")
    quantized = dict(llm.model.named_modules())
    for path, module in twin.model.named_modules():
        if isinstance(module, Matrix) and quantized[path].format is not None:
            dense = quantized[path].format.dense(quantized[path]._parameters, 0, module.rows, torch.float32)
            module.weight = torch.nn.Parameter(dense, requires_grad=False)
    ids = prompt(kernels.MAX_ROWS + 1)  # for fewer rows the kernels round x to 8 bits, as llm.int8 always does
    tolerance = 0.05 if quant == "llm.int8" else 1e-3
    assert (llm.logits(ids) - twin.logits(ids)).abs().max() <= tolerance * twin.logits(ids).abs().max()
    llm.save(tmp_path / "saved")  # with its dense matrix
    assert torch.equal(LLM.load(tmp_path / "saved", "cpu", "float32").logits(ids), llm.logits(ids))


def test_a_damaged_quant_state_raises_a_one_line_error(library, folder, tmp_path):
    from safetensors.torch import load_file, save_file

    prequantized(library, folder, tmp_path / "prequantized", "nf4")
    path = tmp_path / "prequantized" / "model.safetensors"
    tensors = load_file(path)
    key = next(name for name in tensors if "quant_state" in name)
    save_file({**tensors, key: tensors[key][:-3].contiguous()}, path)
    with pytest.raises(BareloopError, match="is not a valid description of a matrix"):
        LLM.load(tmp_path / "prequantized", "cpu")


@pytest.mark.parametrize("part", ["absmax", "quant_map", "nested_absmax", "nested_quant_map"])
def test_a_missing_or_truncated_part_of_a_matrix_is_named(library, folder, tmp_path, part):
    from safetensors.torch import load_file, save_file

    prequantized(library, folder, tmp_path / "prequantized", "nf4-double")
    path = tmp_path / "prequantized" / "model.safetensors"
    tensors = load_file(path)
    key = next(name for name in tensors if name.endswith(f".{part}"))
    for broken in (
        {name: tensors[name] for name in tensors if name != key},
        {**tensors, key: tensors[key][:-1].clone()},
    ):
        save_file(broken, path)
        with pytest.raises(BareloopError, match=f"its {part} is missing or does not have"):
            LLM.load(tmp_path / "prequantized", "cpu")


def test_a_matrix_whose_rows_are_not_whole_blocks_stays_dense():
    assert bnb.choose_format("nf4", 64, 96, torch.float32) is None  # on a CPU bitsandbytes treats each row separately
    assert bnb.choose_format("nf4", 50, 128, torch.float32) is not None


def test_without_bitsandbytes_one_line_names_the_extra(folder, monkeypatch):
    monkeypatch.setattr(bnb, "find_spec", lambda _: None)
    with pytest.raises(BareloopError, match=r"needs bitsandbytes: pip install bareloop\[bnb\]"):
        LLM.load(folder, "cpu", quant="nf4")


def test_apples_gpu_is_refused_with_the_supported_devices(library):
    with pytest.raises(BareloopError, match="supports cpu and cuda, not mps; use --device cpu"):
        bnb.check(torch.device("mps"))
