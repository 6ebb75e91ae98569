"""Adapters of a Linear: merging, packed copies, autocast."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine import LLM
from engine.layers import linear, lora
from engine.layers.linear import Linear
from engine.layers.lora import Adapter, Pair
from engine.layers.packed_adapter import AdaptersOf
from engine.models.family import Cost
from engine.quant import base


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def adapted(generator: torch.Generator, dtype: torch.dtype, rank: int = 4) -> Linear:
    """A frozen Linear [48 -> 50 + 30] whose adapter changes the first 50 rows."""
    layer = Linear(48, 50, 30)
    adapter = Adapter(48, [Pair(slice(0, 50), rank, 1.5)], 0.0, torch.device("cpu"))
    with torch.no_grad():
        for parameter in (layer.weight, *adapter.parameters()):
            parameter.normal_(0, 0.3, generator=generator)
    layer.to(dtype)
    layer.adapter = adapter
    return layer.requires_grad_(False)


def merged(layer: Linear) -> Tensor:
    """W + s B A, in float64."""
    assert layer.adapter is not None
    ((pair, a, b),) = layer.adapter
    exact = layer.weight.double().clone()
    exact[pair.rows] += pair.scale * b.double() @ a.double()
    return exact


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_merging_is_by_blocks_of_rows_in_place_and_rounds_once(dtype, generator, monkeypatch):
    monkeypatch.setattr(lora, "MERGE_BYTES", 4 * 48 * 7)  # 7 rows, which do not divide 50
    layer = adapted(generator, dtype)
    expected, place = merged(layer), layer.weight.data_ptr()
    layer.merge_adapter()
    unit = torch.finfo(dtype).eps / 2
    assert ((layer.weight.double() - expected).abs() <= unit * expected.abs() + 1e-6).all()
    assert torch.equal(layer.weight[50:].double(), expected[50:]) and layer.weight.data_ptr() == place
    assert layer.adapter is None and not layer.weight.requires_grad


@pytest.mark.parametrize("is_slow", [True, False])
def test_merging_drops_packed_copies_of_the_weight(is_slow, generator, monkeypatch):
    for module in (linear, base):
        monkeypatch.setattr(module, "slow_bfloat16", lambda: is_slow)
    monkeypatch.setattr(linear, "can_pack_bfloat16", lambda: True)
    layer = adapted(generator, torch.bfloat16)
    layer.pack()
    assert (layer._wide is not None) == is_slow and (layer._packed is not None) == (not is_slow)
    expected, x = merged(layer), torch.randn(40, 48, generator=generator).bfloat16()
    layer.merge_adapter()
    with torch.inference_mode():
        assert (layer(x).double() - x.double() @ expected.T).abs().max() < 0.05


def test_loading_a_state_and_ending_the_freeze_replace_the_packed_copy(generator):
    layer = adapted(generator, torch.float32)
    joined, x = AdaptersOf([(0, layer)]), torch.randn(3, 48, generator=generator)

    @torch.no_grad()
    def outputs() -> tuple[Tensor, Tensor]:
        """By the packed copy of the adapter, and by that of several joined."""
        data = joined.joined(torch.float32).data
        assert data is not None
        return layer(x), data.clone()

    first = outputs()
    state = {name: 2 * tensor for name, tensor in layer.state_dict().items()}
    layer.load_state_dict(state)
    second = outputs()
    layer.requires_grad_(True)
    with torch.no_grad():
        layer.adapter.a.zero_()  # type: ignore[union-attr]
    third = outputs()
    for before, after in ((first, second), (second, third)):
        assert not any(torch.equal(*pair) for pair in zip(before, after, strict=True))
    assert torch.allclose(second[0] - x @ layer.weight.T, 8 * (first[0] - x @ layer.weight.T / 2) / 2, atol=1e-4)
    assert torch.allclose(third[0], x @ layer.weight.T, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quant", ["none", "int8"])
@pytest.mark.parametrize("backward_inside", [False, True])
def test_under_autocast_products_with_an_adapter_are_in_the_dtype_of_the_weight(
    dtype, quant, backward_inside, tmp_path, generator
):
    config = {"model_type": "llama", "vocab_size": 64, "hidden_size": 64, "intermediate_size": 64}
    config |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    LLM.from_config(config, device="cpu").save(tmp_path / "model")
    llm = LLM.load(tmp_path / "model", "cpu", str(dtype).removeprefix("torch."), quant)
    layer = llm.model.get_submodule("layers.0.mlp.down")
    assert isinstance(layer, Linear)
    layer.adapter = Adapter(64, [Pair(slice(0, 64), 4, 1.5)], 0.0, torch.device("cpu"))
    for parameter in layer.adapter.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
    x = torch.randn(5, 64, generator=generator)

    def results(inputs: Tensor, is_on: bool) -> list[Tensor]:
        assert layer.adapter is not None
        layer.adapter.zero_grad()
        inputs = inputs.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_on):
            with torch.no_grad():
                plain = layer(inputs)
            y = layer(inputs)
            if backward_inside:
                y.float().square().sum().backward()
        if not backward_inside:
            y.float().square().sum().backward()
        gradients = [parameter.grad for parameter in (inputs, *layer.adapter.parameters())]
        return [plain, y.detach(), *(gradient for gradient in gradients if gradient is not None)]

    expected = results(x.to(dtype), False)
    assert len(expected) == 5 and expected[0].dtype == dtype
    for inputs in (x.to(dtype), x):  # autocast gives inputs of either dtype
        for found, exact in zip(results(inputs, True), expected, strict=True):
            assert torch.equal(found.to(exact.dtype), exact)


def test_the_cost_of_an_adapter_is_that_of_its_packed_copy(generator):
    layer = adapted(generator, torch.bfloat16)
    count = 4 * (48 + 50)
    cost = Cost.of_weights("part", [layer])
    assert (cost.parameters, cost.nbytes) == (80 * 48 + count, 2 * (80 * 48 + count))
