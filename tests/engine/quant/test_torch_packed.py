"""Layouts of PyTorch's operators: conversion from panels and back, and the limits of the operators."""

from __future__ import annotations

import pytest
import torch

from engine.quant.panels import Panels
from engine.quant.torch_packed import TorchInt8, from_panel_format, to_panel_format
from tests.engine.quant.matrices import dequantized, quantized, random_matrix


@pytest.mark.parametrize("bits", [8, 4])
def test_pytorchs_layout_has_the_same_values(bits):
    panels = Panels(1120, 64, torch.float32, bits)
    tensors, weight = quantized(panels, random_matrix(1120, 64))
    torch_format, torch_tensors = from_panel_format(panels, tensors)
    assert torch.equal(dequantized(*torch_format.codes(torch_tensors, 0, 1120)), weight)
    again = to_panel_format(torch_format, torch_tensors)
    assert torch.equal(again["weight"], tensors["weight"]) and torch.equal(again["scales"], tensors["scales"])
    assert to_panel_format(panels, tensors) == {}


@pytest.mark.parametrize("columns", [4, 20, 36, 100])
def test_pytorchs_operator_is_not_called_with_columns_that_it_does_not_support(columns):
    weight_format = TorchInt8(8, columns, torch.bfloat16)
    tensors, weight = quantized(weight_format, random_matrix(8, columns))
    x = random_matrix(2, columns).bfloat16()
    with torch.inference_mode():
        assert torch.allclose(weight_format.product(tensors, x).double(), x.double() @ weight.T, rtol=0.05, atol=0.1)


def test_int4_with_smaller_groups_than_pytorch_supports_becomes_int8():
    panels = Panels(96, 64, torch.float32, 4, 16)
    tensors, weight = quantized(panels, random_matrix(96, 64))
    torch_format, torch_tensors = from_panel_format(panels, tensors)
    assert isinstance(torch_format, TorchInt8)
    errors = (dequantized(*torch_format.codes(torch_tensors, 0, 96)) - weight).abs()
    assert errors.max() <= 0.5001 / 127 * weight.abs().max()
