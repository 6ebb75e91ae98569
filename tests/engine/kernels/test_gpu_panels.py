"""The Triton kernels: in Triton's interpreter on a CPU, if Triton is installed, and on an NVIDIA GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from engine import LLM, SamplingParams

ROOT = Path(__file__).parents[3]
PROGRAM = """
import sys, torch
from engine.quant.panels import Panels, quantize4, quantize8
from engine.kernels.gpu import panels as gpu

device = torch.device(sys.argv[1])
for group, rows, columns in ((0, 50, 260), (0, 96, 896), (0, 32, 4), (32, 64, 96), (16, 96, 896), (32, 32, 32)):
    weight_format = Panels(rows, columns, torch.float32, 4 if group else 8, group)
    tensors, weight = weight_format.empty(torch.device("cpu")), torch.randn(rows, columns)
    weight_format.set_codes(tensors, 0, *(quantize4(weight, group) if group else quantize8(weight)))
    codes, scales = weight_format.codes(tensors, 0, rows)
    groups = torch.unflatten(codes, 1, (-1, group or columns))
    dense = (groups * scales.float().view(rows, -1, 1)).flatten(1)
    moved = {name: tensor.to(device) for name, tensor in tensors.items()}
    assert torch.equal(gpu.dequantize(moved["weight"], moved["scales"], rows, torch.float32).cpu(), dense)
    assert gpu.dequantize(moved["weight"], moved["scales"], rows, torch.bfloat16).dtype == torch.bfloat16
    for count in (1, 3, 8):
        x = torch.randn(count, columns)
        y = gpu.linear(x.to(device), moved["weight"], moved["scales"], rows).cpu()
        assert (y - x @ dense.T).abs().max() < 1e-3, (group, rows, columns, count)
print("passed")
"""


def check(device: str, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, device],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout == "passed\n", done.stderr


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernels_compute_with_the_quantized_values():
    check("cpu", TRITON_INTERPRET="1")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_the_kernels_compute_with_the_quantized_values_on_a_gpu():
    check("cuda")


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
