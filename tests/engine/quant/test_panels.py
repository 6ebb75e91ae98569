"""int8 and int4: quantization against its definition, products against float64 on every path, whole models."""

from __future__ import annotations

import math

import pytest
import torch

from engine import LLM, SamplingParams, kernels
from engine.cache.state import Step
from engine.checkpoints import weight_formats
from engine.decoding.loop import decode
from engine.kernels import build
from engine.layers.linear import Matrix
from engine.quant.base import DENSE_BLOCK
from engine.quant.panels import GROUP, PANEL, Panels, from_panels, quantize4, quantize8, to_panels
from engine.quant.torch_packed import TorchInt4, TorchInt8, from_panel_format, to_panel_format

CPU = torch.device("cpu")
KINDS = [(8, 32), (4, 32), (4, 16)]  # bits, and numbers of 4 bits that share a scale
DTYPES = [torch.float32, torch.bfloat16]
# Of a product: float32 sums, relative to the sum of sizes; the result's rounding; half a step of x, of the largest
# number of its row (8 bits) or group (4 bits).
SUM, ROUNDING, STEP = 1e-6, {torch.float32: 2**-24, torch.bfloat16: 2**-8}, {8: 0.5 / 32767, 4: 0.5 / 127}
SHAPES = {8: [(1, 4), (32, 32), (33, 36), (50, 260), (96, 896), (7, 1028)], 4: [(32, 32), (64, 96), (96, 896)]}


@pytest.fixture(scope="module", params=[isa for isa in build.FLAGS if isa in build.supported_isas()])
def ops(request):
    """The operators of one path."""
    return kernels.load(request.param)


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def filled(form, weight: torch.Tensor, bias: torch.Tensor | None = None):
    """A matrix's tensors, and the numbers that they stand for, in float64."""
    held = form.begin(CPU)
    for first in range(0, form.rows, 64):
        form.fill(held, first, weight[first : first + 64].float())
    held = {**form.finish(held), "bias": bias}
    return held, dequantized(*form.codes(held, 0, form.rows))


def dequantized(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Numbers in float64."""
    groups = torch.unflatten(codes.double(), 1, (scales[0].numel(), -1))
    return (groups * scales.double().view(len(codes), -1, 1)).flatten(1)


def bound(form: Panels, x: torch.Tensor, exact: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The largest error of a product with this weight (float64)."""
    sizes, x = x.double().abs() @ weight.abs().T, x.double().abs()
    group = x.shape[1] if form.bits == 8 else form.group
    tops = torch.unflatten(x, 1, (-1, group)).amax(2, keepdim=True)
    steps = STEP[form.bits] * tops.expand(-1, -1, group).flatten(1)
    return SUM * sizes + 1.001 * steps @ weight.abs().T + ROUNDING[dtype] * exact.abs() + 1e-30


def test_int8_is_the_nearest_of_254_steps_of_each_row():
    weight = drawn(70, 100) * 10.0 ** torch.arange(-35, 35)[:, None]
    weight[3] = 0
    codes, scales = quantize8(weight)
    assert codes.dtype == torch.int8 and codes.abs().amax(1).eq(127).sum() == 69 and codes[3].eq(0).all()
    assert ((codes * scales[:, None] - weight).abs() <= 0.5001 * scales[:, None]).all()


def test_int4_is_at_least_as_near_as_the_plain_scale():
    weight = drawn(64, 256)
    weight[5] = 0
    codes, scales = quantize4(weight)
    assert codes.min() == -8 and codes.max() == 7 and scales.shape == (64, 8) and scales.dtype == torch.bfloat16
    groups, own = torch.unflatten(weight, 1, (-1, GROUP)), scales.float()[..., None]
    error = (torch.unflatten(codes, 1, (-1, GROUP)) * own - groups).square().sum(2)
    largest = groups.gather(2, groups.abs().argmax(2, keepdim=True))
    plain = (largest / -8).bfloat16().float()
    steps = (groups / plain.where(plain != 0, 1)).round().clamp(-8, 7) * plain
    assert (error <= (steps - groups).square().sum(2) + 1e-9).all()
    assert error.sum().sqrt() < 0.082 * weight.square().sum().sqrt()  # bitsandbytes' NF4: 0.092


@pytest.mark.parametrize("bits", [8, 4])
def test_panels_hold_every_code(bits):
    for rows, columns in SHAPES[bits]:
        low, high = (-127, 128) if bits == 8 else (-8, 8)
        codes = torch.randint(low, high, (rows, columns), generator=torch.Generator().manual_seed(rows)).to(torch.int8)
        panels = to_panels(codes, bits)
        assert panels.shape == (-(-rows // PANEL), columns * bits // 32, PANEL, 4)
        assert panels.nbytes == -(-rows // PANEL) * PANEL * columns * bits // 8
        assert torch.equal(from_panels(panels, bits)[:rows], codes)


@pytest.mark.parametrize(("bits", "group"), KINDS)
def test_the_operator_quantizes_as_pytorch_does(ops, bits, group):
    for rows, columns in [*SHAPES[bits], (160, 512)]:
        weight = drawn(rows, columns)
        weight[rows // 2] = 0
        form = Panels(rows, columns, torch.float32, bits, group)
        found, expected = form.empty(CPU), form.empty(CPU)
        for first in range(0, rows, 64):
            ops.quantize(weight[first : first + 64], found["weight"], found["scales"], first)
            part = weight[first : first + 64]
            form.set_codes(expected, first, *(quantize8(part) if bits == 8 else quantize4(part, group)))
        differ = (found["weight"] != expected["weight"]).float().mean()
        assert differ <= (0 if bits == 8 else 0.01), (rows, columns)  # of equally good scales either may be taken
        if bits == 8:
            assert torch.equal(found["scales"], expected["scales"])
        own, theirs = (form.codes(held, 0, rows) for held in (found, expected))
        errors = [(dequantized(*both) - weight.double()).square().sum() for both in (own, theirs)]
        assert abs(errors[0] - errors[1]) <= 1e-6 * errors[1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 3, 5, 8])
@pytest.mark.parametrize(("bits", "group"), KINDS)
def test_a_product_is_that_of_the_quantized_numbers(ops, bits, group, rows, dtype):
    for out, size in SHAPES[bits]:
        x = drawn(rows, size, dtype=dtype, seed=out)
        for bias in (None, drawn(out, dtype=dtype)):
            form = Panels(out, size, dtype, bits, group)
            held, weight = filled(form, drawn(out, size, seed=size), bias)
            y = ops.linear(x, held["weight"], held["scales"], bias)
            exact = x.double() @ weight.T + (0 if bias is None else bias.double())
            assert y.dtype == dtype and y.shape == (rows, out)
            assert ((y.double() - exact).abs() <= bound(form, x, exact, weight, dtype)).all(), (out, size)


@pytest.mark.parametrize(("bits", "group"), KINDS)
def test_the_largest_sums_are_exact(ops, bits, group):
    size = 1024
    x, weight = torch.full((1, size), 3.0), torch.full((32, size), -1.0)
    weight[1::2] = 1.0
    held, numbers = filled(Panels(32, size, torch.float32, bits, group), weight)
    y = ops.linear(x, held["weight"], held["scales"], None)
    assert torch.allclose(y.double(), x.double() @ numbers.T, rtol=1e-6)


@pytest.mark.parametrize(("bits", "group"), KINDS)
def test_a_row_has_the_same_bits_alone_and_by_any_number_of_threads(ops, bits, group):
    x, threads = drawn(4, 2048), torch.get_num_threads()
    held, _ = filled(Panels(288, 2048, torch.float32, bits, group), drawn(288, 2048, seed=1))
    together = ops.linear(x, held["weight"], held["scales"], None)
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            for row in range(4):
                assert torch.equal(ops.linear(x[row : row + 1], held["weight"], held["scales"], None)[0], together[row])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("bits", "group"), KINDS)
def test_rows_without_numbers_show_and_rows_of_zeros_are_the_bias(ops, bits, group):
    bias = drawn(32)
    held, _ = filled(Panels(32, 64, torch.float32, bits, group), drawn(32, 64), bias)
    x = drawn(4, 64)
    x[0, 63], x[1, 3], x[2] = math.nan, -math.inf, 0
    y = ops.linear(x, held["weight"], held["scales"], bias)
    assert y[:2].isnan().all() and torch.equal(y[2], bias) and y[3].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("bits", "group"), KINDS)
def test_dense_rows_are_the_quantized_numbers(ops, bits, group, dtype):
    for rows, columns in [*SHAPES[bits], (160, 512)]:
        held, weight = filled(Panels(rows, columns, dtype, bits, group), drawn(rows, columns))
        like = torch.empty(0, dtype=dtype)
        for first, last in {(0, rows), (rows // 2 // PANEL * PANEL, rows), (0, min(rows, PANEL + 1))}:
            found = ops.dequantize(held["weight"], held["scales"], first, last, like)
            assert torch.equal(found, weight[first:last].float().to(dtype)), (rows, columns, first, last)


def test_wrong_shapes_are_refused(ops):
    held, _ = filled(Panels(32, 64, torch.float32, 8), drawn(32, 64))
    for x, weight, scales in (
        (drawn(1, 60), held["weight"], held["scales"]),
        (drawn(1, 64), held["weight"][:, :, :16], held["scales"]),
        (drawn(1, 64), held["weight"], held["scales"][:-1].bfloat16()),
        (drawn(1, 64), held["weight"], drawn(65)),
        (drawn(kernels.MAX_ROWS + 1, 64), held["weight"], held["scales"]),
    ):
        with pytest.raises(RuntimeError, match=r"linear|panels"):
            ops.linear(x, weight, scales, None)


FORMS = [lambda *shape: Panels(*shape, 8), lambda *shape: Panels(*shape, 4), TorchInt8, TorchInt4]
SMALL = [lambda *shape: Panels(*shape, 4, 16)]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
@pytest.mark.parametrize("form", [*FORMS, *SMALL], ids=["int8", "int4", "torch int8", "torch int4", "small groups"])
def test_many_rows_few_rows_and_gradients_agree(form, dtype):
    rows, columns = DENSE_BLOCK // (256 * 2) + 96, 256  # more than one block
    bias = drawn(rows, dtype=dtype)
    own = form(rows, columns, dtype)
    held, weight = filled(own, drawn(rows, columns) / 16, bias)
    x = drawn(33, columns, dtype=dtype)
    exact = x.double() @ weight.T + bias.double()
    with torch.inference_mode():
        many, few, one = own.product(held, x), own.product(held, x[:3]), own.product(held, x[:1])
    for found, count in ((many, 33), (few, 3), (one, 1)):
        assert found.dtype == dtype and found.shape == (count, rows)
        # weights rounded to 16 bits and sums of 256 products in them, or x of 8 bits, at worst
        near = 1e-3 if dtype == torch.float32 else 2e-2
        near = 0.05 if isinstance(own, Panels) and own.bits == 4 and count < 33 else near
        assert torch.allclose(found.double(), exact[:count], rtol=near, atol=near)
    x.requires_grad_()
    own.product(held, x).float().sum().backward()
    assert torch.allclose(x.grad.double(), weight.sum(0).expand(33, -1), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("form", [FORMS[0], *SMALL, TorchInt8], ids=["int8", "int4", "torch"])
def test_an_embedding_looks_rows_up(form):
    own = form(64, 48, torch.bfloat16)
    held, weight = filled(own, drawn(64, 48))
    ids = torch.tensor([63, 0, 7, 32, 31, 7])
    assert torch.equal(own.lookup(held, ids), weight[ids].float().bfloat16())
    assert own.lookup(held, ids[:0]).shape == (0, 48)


@pytest.mark.parametrize("bits", [8, 4])
def test_pytorchs_layout_holds_the_same_numbers(bits):
    panels = Panels(1120, 64, torch.float32, bits)
    held, weight = filled(panels, drawn(1120, 64))
    other, unpacked = from_panel_format(panels, held)
    assert torch.equal(dequantized(*other.codes(unpacked, 0, 1120)), weight)
    again = to_panel_format(other, unpacked)
    assert torch.equal(again["weight"], held["weight"]) and torch.equal(again["scales"], held["scales"])
    assert to_panel_format(panels, held) == {}


@pytest.mark.parametrize("columns", [4, 20, 36, 100])
def test_pytorchs_product_is_not_asked_for_what_it_cannot(columns):
    form = TorchInt8(8, columns, torch.bfloat16)
    held, weight = filled(form, drawn(8, columns))
    x = drawn(2, columns).bfloat16()
    with torch.inference_mode():
        assert torch.allclose(form.product(held, x).double(), x.double() @ weight.T, rtol=0.05, atol=0.1)


def test_weights_that_are_no_numbers_stay_none(ops):
    weight = drawn(32, 64)
    weight[3, 5], weight[4, 40] = math.nan, math.inf
    for bits, group in KINDS:
        held = Panels(32, 64, torch.float32, bits, group).empty(CPU)
        ops.quantize(weight, held["weight"], held["scales"], 0)
        y = ops.linear(drawn(1, 64), held["weight"], held["scales"], None)
        assert y[0, 3:5].isnan().all() and y[0, :3].isfinite().all() and y[0, 5:].isfinite().all()


def test_smaller_groups_than_pytorch_has_become_eight_bits():
    panels = Panels(96, 64, torch.float32, 4, 16)
    held, weight = filled(panels, drawn(96, 64))
    other, unpacked = from_panel_format(panels, held)
    assert isinstance(other, TorchInt8)
    assert (dequantized(*other.codes(unpacked, 0, 96)) - weight).abs().max() <= 0.5001 / 127 * weight.abs().max()


def dense_twin(folder, llm: LLM) -> LLM:
    """The unquantized model, with the numbers that the quantized one stands for."""
    twin = LLM.load(folder, device="cpu", dtype="float32")
    own, others = (dict(model.named_modules()) for model in (llm.model, twin.model))
    for name, module in own.items():
        if isinstance(module, Matrix) and module.format is not None:
            dense = module.format.dense(module._parameters, 0, module.rows, torch.float32)
            others[name].weight = torch.nn.Parameter(dense, requires_grad=False)
    return twin


def check_against_twin(folder, llm: LLM, prompt) -> None:
    """Prompts by the dense products, then tokens by the kernels."""
    twin = dense_twin(folder, llm)
    near = 1e-2 if llm.family.model_type == "mamba" else 1e-3  # whose exponentials make more of any difference
    few = near * (50 if llm.quant == "int4" and llm.model.fused else 1)  # x in 8 bits
    prompts = [prompt(length, seed=length) for length in (3, 11)]
    for ids in prompts:
        wanted = twin.logits(ids)
        assert (llm.logits(ids) - wanted).abs().max() <= (
            few if len(ids) <= kernels.MAX_ROWS else near
        ) * wanted.abs().max()
    sequences = llm.prefilled_sequences(prompts)
    list(decode(sequences, SamplingParams(max_new_tokens=4, ignore_eos=True)))
    for sequence in sequences:
        wanted = twin.logits(sequence.ids)[-1]
        assert (sequence.logits - wanted).abs().max() <= few * wanted.abs().max()


def test_every_family_in_int8_is_the_model_of_its_quantized_numbers(tiny, prompt):
    llm = LLM.load(tiny.folder, device="cpu", dtype="float32", quant="int8")
    assert llm.quant == "int8" and llm.dtype == torch.float32 and llm.model.fused
    check_against_twin(tiny.folder, llm, prompt)
    exact = tiny.logits(prompt(20))
    assert (llm.logits(prompt(20)) - exact).abs().max() < 0.3 * exact.abs().max()


@pytest.mark.parametrize("variant", ["llama-3.2", "phi", "gpt2", "mamba", "rwkv", "gemma3_text"])
def test_a_model_in_int4_is_the_model_of_its_quantized_numbers(variant, draw_tiny, prompt):
    sizes = {"hidden_size": 96, "vocab_size": 130, "pad_token_id": 0}
    sizes |= {"attention_hidden_size": 96} if variant == "rwkv" else {}
    sizes |= {"n_inner": 160} if variant == "gpt2" else {"intermediate_size": 160 if variant != "mamba" else 192}
    tiny = draw_tiny(variant, **sizes)
    for quant_ops in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not quant_ops:
                patch.setattr(kernels, "available", lambda: False)
            llm = LLM.load(tiny.folder, device="cpu", dtype="float32", quant="int4")
        formats = {type(m.format).__name__ for m in llm.model.modules() if isinstance(m, Matrix) and m.format}
        assert formats == ({"Panels"} if quant_ops else {"TorchInt4", "TorchInt8"})
        check_against_twin(tiny.folder, llm, prompt)


def test_a_quantized_model_in_bfloat16_stays_near_its_float32(draw_tiny, prompt):
    tiny = draw_tiny("llama", hidden_size=96, intermediate_size=160)
    for quant in ("int8", "int4"):
        wide, narrow = (LLM.load(tiny.folder, "cpu", dtype, quant) for dtype in ("float32", "bfloat16"))
        assert narrow.dtype == torch.bfloat16
        ids = prompt(12)
        assert (wide.logits(ids) - narrow.logits(ids)).abs().max() < 0.06 * wide.logits(ids).abs().max()
        half = LLM.load(tiny.folder, "cpu", "float16", quant)
        assert len(half.generate([ids], SamplingParams(max_new_tokens=3, ignore_eos=True))[0].token_ids) == 3


def test_a_shape_that_a_format_does_not_take_has_eight_bits_or_none():
    assert weight_formats.builtin_format(4, 16, 64, 48, torch.float32, True) == Panels(64, 48, torch.float32, 4, 16)
    assert weight_formats.builtin_format(4, 32, 64, 48, torch.float32, True) == Panels(64, 48, torch.float32, 8)
    assert weight_formats.builtin_format(4, 32, 50, 64, torch.float32, True) == Panels(50, 64, torch.float32, 8)
    assert weight_formats.builtin_format(8, 32, 64, 30, torch.float32, True) is None


def test_costs_count_the_bytes_of_the_format(tiny_llama):
    dense, eight = (LLM.load(tiny_llama.folder, "cpu", "bfloat16", quant) for quant in ("none", "int8"))
    costs = [list(llm.model.costs(10)) for llm in (dense, eight)]
    for plain, quantized in zip(*costs, strict=True):
        assert plain.parameters == quantized.parameters and plain.flops == quantized.flops
    weights = [sum(cost.nbytes for cost in listed if "keys" not in cost.part) for listed in costs]
    assert 0.5 < weights[1] / weights[0] < 0.65  # norms, and rows that fill panels up


def test_a_step_with_gradients_goes_through_a_quantized_model(tiny_llama, prompt):
    llm = LLM.load(tiny_llama.folder, "cpu", "float32", "int8")
    ids = prompt(9)
    found = llm.model.logits(llm.model(Step.pack([ids])))
    assert torch.allclose(found, llm.logits(ids), atol=1e-3)
