"""The C++ kernels, compared with float64, on every instruction set that this machine supports."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from engine import LLM, SamplingParams, kernels
from engine.cache.state import Step
from engine.decoding.draws import INVALID
from engine.decoding.loop import decode
from engine.layers.norms import NORMS

CONFIG = {
    "model_type": "llama",
    "vocab_size": 101,
    "hidden_size": 72,
    "intermediate_size": 88,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
# Errors of a product: float32 sums, relative to the sum of magnitudes; rounding of the result.
SUM, ROUNDING = 1e-6, {torch.float32: 2**-24, torch.bfloat16: 2**-8}
DTYPES = [torch.float32, torch.bfloat16]


def random_tensor(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 3, 5, 8, 16, 32])
def test_linear_equals_the_exact_product(ops, dtype, rows):
    shapes = [(1, 1), (3, 2), (7, 31), (16, 32), (5, 33), (130, 65), (64, 896), (19, 8191), (33, 4097)]
    for out, size in shapes:
        x, weight = random_tensor(rows, size, dtype=dtype, seed=out), random_tensor(out, size, dtype=dtype, seed=size)
        for bias in (None, random_tensor(out, dtype=dtype)):
            y = ops.linear(x, weight, None, bias)
            exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
            magnitudes = x.double().abs() @ weight.double().abs().T + (0 if bias is None else bias.double().abs())
            assert y.dtype == dtype and y.shape == (rows, out)
            assert ((y.double() - exact).abs() <= SUM * magnitudes + ROUNDING[dtype] * exact.abs()).all(), (out, size)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_alone_and_with_any_number_of_threads(ops, dtype):
    threads = torch.get_num_threads()
    try:
        for rows, size in ((4, 4096), (7, 4096), (8, 896), (6, 130), (32, 300)):
            x, weight = random_tensor(rows, size, dtype=dtype), random_tensor(257, size, dtype=dtype, seed=1)
            together = ops.linear(x, weight, None, None)
            for count in (1, 2, 5):
                torch.set_num_threads(count)
                for row in range(rows):
                    assert torch.equal(ops.linear(x[row : row + 1], weight, None, None)[0], together[row])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_pass_through(ops, dtype):
    x, weight = random_tensor(2, 67, dtype=dtype), random_tensor(9, 67, dtype=dtype).abs()
    x[0, 66], x[1, 3] = math.nan, math.inf
    y = ops.linear(x, weight, None, None)
    assert y[0].isnan().all() and (y[1] == math.inf).all()
    weight[4, 0] = -math.inf
    assert ops.linear(random_tensor(1, 67, dtype=dtype).abs(), weight, None, None)[0, 4] == -math.inf
    assert ops.rms_norm(x, weight[0].abs(), 1e-6, "RMS")[0].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", ["RMS", "RMS, float32", "RMS, 1 + w"])
def test_rms_norm_equals_the_module(ops, dtype, norm):
    for size in (1, 5, 16, 31, 32, 33, 96, 897):
        module = NORMS[norm](size, 1e-5).to(dtype)
        with torch.no_grad():
            module.weight.copy_(random_tensor(size, seed=1))
            x = random_tensor(3, 2, size, dtype=dtype)
            y, exact = ops.rms_norm(x, module.weight, 1e-5, norm), module.double()(x.double())
        # Rounded twice if the quotient is rounded before it is multiplied by the weight.
        assert torch.allclose(y.double(), exact, rtol=2.1 * ROUNDING[dtype] + 1e-6, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", NORMS)
def test_add_norm_is_the_sum_and_its_norm(ops, dtype, norm):
    for rows, size in ((1, 5), (40, 33), (3, 897)):
        module = NORMS[norm](size, 1e-5).to(dtype)
        with torch.no_grad():
            for number, parameter in enumerate(module.parameters()):
                parameter.copy_(random_tensor(size, seed=number))
            x, delta = random_tensor(rows, size, dtype=dtype), random_tensor(rows, size, dtype=dtype, seed=3)
            total, y = ops.add_norm(x, delta, module.weight, module.bias, 1e-5, norm)
            exact = module.double()(total.double())
        assert torch.equal(total, x + delta)
        assert torch.allclose(y.double(), exact, rtol=2.1 * ROUNDING[dtype] + 1e-6, atol=2e-6)
    with pytest.raises(RuntimeError, match="add_norm"):
        ops.add_norm(x, delta[:, 1:], None, None, 1e-5, "layer")


@pytest.mark.parametrize("dtype", DTYPES)
def test_argmax_is_the_first_maximum_or_invalid_if_it_is_not_finite(ops, dtype):
    for size in (1, 2, 31, 32, 33, 1000, 4099):
        x = random_tensor(3, size, dtype=dtype)
        assert torch.equal(ops.argmax(x), x.argmax(-1))
    assert ops.argmax(torch.zeros(1, 77, dtype=dtype)).tolist() == [0]
    assert ops.argmax(torch.full((1, 77), -math.inf, dtype=dtype)).tolist() == [INVALID]
    for index in (0, 40, 76):
        for value, expected in ((math.nan, INVALID), (math.inf, INVALID), (100.0, index)):
            x = random_tensor(2, 77, dtype=dtype).clamp(-9, 9)
            x[1, index] = value
            assert ops.argmax(x).tolist() == [int(x[0].argmax()), expected]


def test_decoding_every_family_with_every_instruction_set_equals_transformers(ops, tiny, prompt, monkeypatch):
    """Rows of different lengths, several tokens each, compared with transformers in float64."""
    use_operators(monkeypatch, ops)
    llm = LLM.load(tiny.folder, device="cpu", dtype="float32")
    sequences = llm.prefilled_sequences([prompt(length, seed=length) for length in (1, 9, 23)])
    calls = count_calls(monkeypatch, ops)
    list(decode(sequences, SamplingParams(max_new_tokens=5, ignore_eos=True)))
    for sequence in sequences:
        expected = tiny.logits(sequence.ids)[-1]
        bound = tiny.tolerance * max(1.0, float(expected.abs().max()))
        assert (sequence.logits.double() - expected).abs().max() <= bound
    assert calls["linear"] > 0
    layers, steps = llm.config.num_layers, 4
    model = llm.family.model_type
    decoder = model not in ("mamba", "rwkv")
    assert calls["blocks"] == (steps if decoder else 0)
    assert decoder or calls[model] == steps * layers


def count_calls(monkeypatch, ops):
    """Count the calls of each operator from now on."""
    calls: dict[str, int] = dict.fromkeys(("linear", "blocks", "mamba", "rwkv", "rms_norm", "argmax"), 0)

    class Counting:
        def __getattr__(self, name):
            calls[name] = calls.get(name, 0) + 1
            return getattr(ops, name)

    use_operators(monkeypatch, Counting())
    return calls


def use_operators(monkeypatch, ops):
    """Use these operators instead of the best ones for this machine."""
    monkeypatch.setattr(kernels, "_loaded_ops", ops)
    monkeypatch.setattr(kernels, "_active_ops", ops)


def test_a_replaced_weight_is_used_from_the_next_token_on(ops, monkeypatch):
    use_operators(monkeypatch, ops)
    llm = LLM.from_config(CONFIG, device="cpu")
    sequence = llm.sequence()
    sequence.feed([1, 2, 3])
    list(decode([sequence], SamplingParams(max_new_tokens=3, ignore_eos=True)))
    for mlp in (llm.model.layers[0].mlp, llm.model.layers[1].mlp):
        mlp.down.weight = torch.nn.Parameter(random_tensor(72, 88), requires_grad=False)
    events = list(decode([sequence], SamplingParams(max_new_tokens=2, ignore_eos=True)))
    assert len(events) == 2
    fresh = llm.sequence()
    fresh.feed(sequence.ids[:-1])
    assert not torch.allclose(sequence.logits, fresh.logits)  # its cache comes from the old weights
    llm.model.layers[1].mlp.down.weight = torch.nn.Parameter(random_tensor(72, 80), requires_grad=False)
    with pytest.raises(RuntimeError, match=r"weight 3 is \[72, 80\], not \[72, 88\]"):
        list(decode([sequence], SamplingParams(max_new_tokens=2, ignore_eos=True)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("length", [63, 64, 65, 511, 512, 1300])
def test_attention_to_a_long_past_is_computed_in_blocks(ops, dtype, length, monkeypatch):
    use_operators(monkeypatch, ops)
    llm = LLM.from_config(CONFIG | {"initializer_range": 0.2}, seed=1, device="cpu", dtype=dtype)
    ids = torch.randint(0, 101, (length + 1,), generator=torch.Generator().manual_seed(length)).tolist()
    exact = LLM.from_config(CONFIG | {"initializer_range": 0.2}, seed=1, device="cpu", dtype=dtype).model.double()
    with torch.no_grad():
        expected = exact.logits(exact(Step.pack([ids])))[-1]
    sequence = llm.sequence()
    sequence.feed(ids[:-1])
    step = Step.pack([ids[-1:]], [sequence.row], [length])
    with torch.inference_mode():
        logits = llm.model.logits(llm.model(step, sequence.state))[0]
    error = float((logits.double() - expected).abs().max() / expected.abs().max())
    assert error <= (2e-5 if dtype == "float32" else 0.06)


def test_with_gradients_or_many_rows_no_kernel_is_used():
    x = random_tensor(4, 8)
    with torch.inference_mode():
        assert kernels.for_input(x) is not None or kernels._active_ops is None
        assert kernels.for_input(random_tensor(kernels.MAX_ROWS + 1, 8)) is None and kernels.for_input(x[:0]) is None
        assert kernels.for_input(x.double()) is None and kernels.for_input(x.half()) is None
        assert kernels.for_input(x[None]) is None and kernels.for_input(x[0]) is None
        assert kernels.for_rows(x[None]) is not None or kernels._active_ops is None
        assert kernels.for_rows(x.double()) is None
    assert kernels.for_input(x) is None and kernels.for_rows(x) is None


def test_under_autocast_activations_have_another_dtype_than_weights_and_no_kernel_is_used():
    model = LLM.from_config(CONFIG, device="cpu", dtype="float32").model
    for length in (8, 40):
        with torch.no_grad():
            exact = model(Step.pack([list(range(length))]))
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.allclose(model(Step.pack([list(range(length))])).float(), exact, atol=0.05)
