"""The Triton kernels: in Triton's interpreter on a CPU, if Triton is installed, and on an NVIDIA GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine import LLM, SamplingParams
from engine.quant.panels import Panels, quantize4, quantize8

pytest.importorskip("triton")
from engine.kernels.gpu import operators

SHAPES = ((0, 50, 260), (0, 96, 896), (0, 32, 4), (32, 64, 96), (16, 96, 896), (32, 32, 32))  # group, rows, columns


def matrix(group: int, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random codes and scales in panels, and the matrix that they stand for."""
    weight_format = Panels(rows, columns, torch.float32, 4 if group else 8, group)
    tensors, weight = weight_format.empty(torch.device("cpu")), torch.randn(rows, columns)
    weight_format.set_codes(tensors, 0, *(quantize4(weight, group) if group else quantize8(weight)))
    codes, scales = weight_format.codes(tensors, 0, rows)
    groups = torch.unflatten(codes, 1, (-1, group or columns))
    return tensors["weight"], tensors["scales"], (groups * scales.float().view(rows, -1, 1)).flatten(1)


def calls() -> None:
    """Launches for test_compiling.py."""
    for group in (0, 16, 32):
        weight, scales, _ = matrix(group, 64, 896)
        for dtype in (torch.bfloat16, torch.float32):
            operators.dequantize(weight, scales, 64, dtype)
            for count in (1, 8):
                operators.linear(torch.randn(count, 896, dtype=dtype), weight, scales, 64)


@pytest.mark.parametrize(("group", "rows", "columns"), SHAPES)
def test_the_kernels_compute_with_the_quantized_values(gpu_device, group, rows, columns):
    weight, scales, dense = matrix(group, rows, columns)
    weight, scales = weight.to(gpu_device), scales.to(gpu_device)
    assert torch.equal(operators.dequantize(weight, scales, rows, torch.float32).cpu(), dense)
    assert operators.dequantize(weight, scales, rows, torch.bfloat16).dtype == torch.bfloat16
    for count in (1, 3, 8):
        x = torch.randn(count, columns)
        y = operators.linear(x.to(gpu_device), weight, scales, rows).cpu()
        assert (y - x @ dense.T).abs().max() < 1e-3, count


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_a_quantized_model_on_a_gpu_agrees_with_the_cpu(tiny_llama, tmp_path, prompt, quant, dtype):
    gpu = LLM.load(tiny_llama.folder, "cuda", dtype, quant)
    ids, params = prompt(9), SamplingParams(max_new_tokens=4, ignore_eos=True)
    gpu.save(tmp_path / "saved")
    reloaded = LLM.load(tmp_path / "saved", "cuda")
    assert torch.equal(reloaded.logits(ids), gpu.logits(ids))
    # The saved folder, because a CPU without the C++ kernels would choose other formats for embedding and head.
    expected = LLM.load(tmp_path / "saved", "cpu", "float32").logits(ids)
    tolerance = 1e-2 if dtype == "float32" else 0.1
    assert (expected - gpu.logits(ids)).abs().max() <= tolerance * expected.abs().max()
    assert len(gpu.generate([ids, ids[:3]], params)[0].token_ids) == 4


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("quant", ["nf4", "fp4-double", "llm.int8"])
def test_bitsandbytes_on_a_gpu(draw_tiny, prompt, quant):
    pytest.importorskip("bitsandbytes")
    folder = draw_tiny("llama", hidden_size=64, intermediate_size=128, num_attention_heads=4).folder
    gpu, dense = (LLM.load(folder, "cuda", "bfloat16", weight_format) for weight_format in (quant, "none"))
    ids = prompt(9)
    assert (gpu.logits(ids) - dense.logits(ids)).abs().max() < 0.8 * dense.logits(ids).abs().max()
    assert len(gpu.generate([ids], SamplingParams(max_new_tokens=4, ignore_eos=True))[0].token_ids) == 4
