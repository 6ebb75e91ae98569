"""The Triton kernels of panels: in Triton's interpreter on a CPU, if Triton is installed, and on an NVIDIA GPU."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from engine import LLM, SamplingParams, kernels
from engine.layers.linear import Matrix
from engine.quant.bitsandbytes import Bnb4
from engine.quant.panels import Panels, quantize4, quantize8, to_panels
from engine.quant.tables import TablePanels, in_panels

pytest.importorskip("triton")
from engine.kernels.gpu import operators, panels

KINDS = ("int8", "int4", "int4 in groups of 16", "table")
SHAPES = {  # rows, columns; eight warps multiply 512 columns at once (8 bits: 256)
    "int8": ((50, 260), (32, 4), (64, 516)),
    "int4": ((64, 96), (32, 32), (32, 544)),
    "int4 in groups of 16": ((96, 176), (32, 16)),
    "table": ((64, 192), (32, 64), (32, 576)),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Relative errors: float32 sums, and weights and results in 16 bits (Triton's interpreter truncates them).
SUM, ROUNDING = 2e-6, {torch.float32: 2**-24, torch.bfloat16: 2**-7, torch.float16: 2**-10}


class Case(NamedTuple):
    """A random quantized matrix in panels, and the values that it stands for (float32)."""

    weight: Tensor
    scales: Tensor
    values: Tensor


def matrix(kind: str, rows: int, columns: int, seed: int = 0) -> Case:
    """A seeded matrix; a table is random, too."""
    generator = torch.Generator().manual_seed(seed + rows + columns)
    weight = torch.randn(rows, columns, generator=generator)
    if kind == "table":
        table, scales = torch.randn(16, generator=generator), torch.rand(rows, columns // 64, generator=generator)
        codes = torch.randint(-8, 8, (rows, columns), generator=generator).to(torch.int8)
        by_panel = scales.unflatten(0, (-1, 32)).transpose(1, 2).flatten()
        values = table[codes.int() + 8] * scales.repeat_interleave(64, dim=1)
        return Case(to_panels(codes, 4), torch.cat((by_panel, table)), values)
    group = 0 if kind == "int8" else 16 if kind.endswith("16") else 32
    weight_format = Panels(rows, columns, torch.float32, 4 if group else 8, group)
    tensors = weight_format.empty(torch.device("cpu"))
    weight_format.set_codes(tensors, 0, *(quantize4(weight, group) if group else quantize8(weight)))
    quantized, group_scales = weight_format.codes(tensors, 0, rows)
    groups = quantized.unflatten(1, (-1, group or columns)).float()
    return Case(tensors["weight"], tensors["scales"], (groups * group_scales.float().view(rows, -1, 1)).flatten(1))


def calls() -> None:
    """Launches for test_compiling.py."""
    for kind in KINDS:
        weight, scales, _ = matrix(kind, 64, 8192)
        bias = torch.randn(64, dtype=torch.bfloat16)
        for count in (1, 9, 32):
            operators.linear(torch.randn(count, 8192, dtype=torch.bfloat16), weight, scales, 64, bias)
        operators.linear(torch.randn(32, 8192), weight, scales, 64)
        operators.dequantize(weight, scales, 0, 64, torch.bfloat16)
    weight, scales, _ = matrix("int4", 64, 896)
    for dtype in (torch.bfloat16, torch.float16):  # without splits
        operators.linear(torch.randn(1, 896, dtype=dtype), weight, scales, 64, torch.randn(64, dtype=dtype))
    operators.lookup(weight, scales, torch.zeros(3, dtype=torch.int64), torch.bfloat16)


def largest_error(x: Tensor, values: Tensor, exact: Tensor) -> Tensor:
    """The largest allowed error of x [M, k] times the values [rows, k]."""
    magnitudes = x.double().abs() @ values.double().abs().T
    return (SUM + ROUNDING[x.dtype]) * magnitudes + ROUNDING[x.dtype] * exact.abs() + 1e-6 * (x.dtype == torch.float16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_products_agree_with_the_dequantized_values(gpu_device, kind, dtype):
    for (rows, columns), counts in zip(SHAPES[kind], ((1, 3, 17), (16, 32), (1, 8)), strict=False):
        weight, scales, values = matrix(kind, rows, columns)
        for count in counts:
            x, bias = torch.randn(count, columns).to(dtype), torch.randn(rows).to(dtype)
            arguments = [tensor.to(gpu_device) for tensor in (x, weight, scales)]
            exact = x.double() @ values.double().T
            for b in (bias, None) if count == 1 else (bias,):
                y = operators.linear(*arguments, rows, None if b is None else b.to(gpu_device))
                assert y.dtype == dtype and y.shape == (count, rows)
                expected = exact if b is None else exact + b.double()
                assert ((y.cpu().double() - expected).abs() <= largest_error(x, values, expected)).all(), (rows, count)


@pytest.mark.parametrize("kind", KINDS)
def test_long_rows_are_summed_by_several_programs_and_one_more_kernel(gpu_device, kind, monkeypatch):
    monkeypatch.setattr(panels, "SPLIT_LINES", 65)  # not blocks of 64
    launches, launch = [], panels.launch
    monkeypatch.setattr(
        panels, "launch", lambda kernel, *rest, **more: (launches.append(kernel), launch(kernel, *rest, **more))
    )
    columns = 1088 if kind == "int8" else 2112  # lines: 272 and 264, in parts of 128
    weight, scales, values = matrix(kind, 32, columns)
    for count in (1, 9):
        x, bias = torch.randn(count, columns), torch.randn(32)
        y = operators.linear(*(tensor.to(gpu_device) for tensor in (x, weight, scales)), 32, bias.to(gpu_device)).cpu()
        expected = x.double() @ values.double().T + bias.double()
        assert ((y.double() - expected).abs() <= largest_error(x, values, expected)).all()
    assert launches == 2 * [panels._linear, panels._merge]


@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_computed_as_if_it_were_alone(gpu_device, kind):
    weight, scales, _ = (tensor.to(gpu_device) for tensor in matrix(kind, 32, 192))
    x = torch.randn(32, 192, dtype=torch.bfloat16, device=gpu_device)
    together = operators.linear(x, weight, scales, 32)
    x[1:] = torch.nan
    x[2:] = torch.inf
    polluted = operators.linear(x, weight, scales, 32)
    assert torch.equal(polluted[0], together[0]) and not polluted[1:].isfinite().any()
    alone = operators.linear(x[:1], weight, scales, 32)
    if gpu_device == "cuda":  # numpy sums in another order
        assert torch.equal(alone, together[:1])
    moved = torch.empty(193, dtype=torch.bfloat16, device=gpu_device)[1:].copy_(x[0])  # not aligned to words
    assert torch.equal(operators.linear(moved[None], weight, scales, 32), alone)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_ranges_and_single_rows_have_the_values(gpu_device, kind, dtype):
    for rows, columns in SHAPES[kind]:
        weight, scales, values = matrix(kind, rows, columns)
        weight, scales, expected = weight.to(gpu_device), scales.to(gpu_device), values.to(dtype)
        # Triton's interpreter truncates to 16 bits.
        tolerance = 0.0 if dtype == torch.float32 or gpu_device == "cuda" else ROUNDING[dtype]
        for first, last in {(0, rows), (32 * (rows // 64), rows), (0, min(rows, 33)), (0, 0)}:
            dense = operators.dequantize(weight, scales, first, last, dtype).cpu()
            assert dense.dtype == dtype
            assert torch.allclose(dense, expected[first:last], rtol=tolerance, atol=1e-7 * (dtype == torch.float16))
        ids = torch.tensor([rows - 1, 0, 7, 31, 7])
        found = operators.lookup(weight, scales, ids.to(gpu_device), dtype).cpu()
        assert torch.allclose(found, expected[ids], rtol=tolerance, atol=1e-7 * (dtype == torch.float16))
        assert operators.lookup(weight, scales, ids[:0].to(gpu_device), dtype).shape == (0, columns)


@pytest.mark.parametrize(("bits", "group"), [(8, 32), (4, 32), (4, 16)])
def test_a_format_multiplies_any_number_of_rows(gpu_device, bits, group, monkeypatch):
    monkeypatch.setattr(kernels, "_active_ops", None)
    for name in ("DENSE_BLOCK", "GPU_DENSE_BLOCK"):
        monkeypatch.setattr(f"engine.quant.base.{name}", 130 * 64 * 4)  # bytes: blocks of 128, 128 and 64 rows
    weight_format = Panels(320, 64, torch.float32, bits, group)
    tensors = weight_format.begin(torch.device(gpu_device))
    weight_format.fill(tensors, 0, torch.randn(320, 64).to(gpu_device))
    tensors["bias"] = torch.randn(320).to(gpu_device)
    codes, scales = weight_format.codes(tensors, 0, 320)
    values = (codes.unflatten(1, (scales[0].numel(), -1)).double() * scales.double().view(320, -1, 1)).flatten(1)
    with torch.inference_mode():
        for count in (1, 32, 33):
            x = torch.randn(count, 64).to(gpu_device)
            y = weight_format.product(tensors, x)
            assert torch.allclose(y.double(), x.double() @ values.T + tensors["bias"].double(), atol=1e-4)
        assert torch.equal(
            weight_format.lookup(tensors, torch.tensor([3, 200]).to(gpu_device)), values[[3, 200]].float()
        )


@pytest.mark.parametrize(("kind", "double"), [("nf4", False), ("fp4", True)])
def test_panels_of_bitsandbytes_on_the_device_have_its_values(gpu_device, kind, double, monkeypatch):
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(kernels, "_active_ops", None)
    origin = Bnb4(96, 128, torch.float32, kind, double)
    filled = origin.begin(torch.device(gpu_device))
    origin.fill(filled, 0, torch.randn(96, 128).to(gpu_device))
    filled = origin.finish(filled)
    weight_format = in_panels(origin)
    assert weight_format is not None
    tensors = {**weight_format.from_origin(filled), "bias": None}
    assert all(tensor is None or tensor.device.type == gpu_device for tensor in tensors.values())
    exact = origin.dense(filled, 0, 96, torch.float32)
    assert torch.equal(weight_format.dense(tensors, 64, 96, torch.float32), exact[64:])
    numbers, scales = weight_format.codes(tensors, 0, 96)
    assert torch.equal((numbers.unflatten(1, (2, 64)) * scales[..., None]).flatten(1), exact)
    back = weight_format.to_origin(tensors)
    assert torch.equal(back["weight"], filled["weight"])
    assert torch.equal(origin.dense(back, 0, 96, torch.float32), exact)
    with torch.inference_mode():
        for count in (3, 40):
            x = torch.randn(count, 128).to(gpu_device)
            assert torch.allclose(weight_format.product(tensors, x), x @ exact.T, atol=1e-4)


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
def test_bitsandbytes_on_a_gpu(draw_tiny, prompt, tmp_path, quant):
    pytest.importorskip("bitsandbytes")
    folder = draw_tiny("llama", hidden_size=64, intermediate_size=128, num_attention_heads=4).folder
    gpu, dense = (LLM.load(folder, "cuda", "bfloat16", weight_format) for weight_format in (quant, "none"))
    matrices = [module for module in gpu.model.layers.modules() if isinstance(module, Matrix)]
    assert all(isinstance(matrix.format, TablePanels) == (quant != "llm.int8") for matrix in matrices)
    ids = prompt(9)
    assert (gpu.logits(ids) - dense.logits(ids)).abs().max() < 0.8 * dense.logits(ids).abs().max()
    assert len(gpu.generate([ids], SamplingParams(max_new_tokens=4, ignore_eos=True))[0].token_ids) == 4
    gpu.save(tmp_path / "saved")
    assert torch.equal(LLM.load(tmp_path / "saved", "cuda").logits(ids), gpu.logits(ids))
