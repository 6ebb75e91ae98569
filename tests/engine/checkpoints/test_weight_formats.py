"""Which weight format each matrix gets."""

from __future__ import annotations

import pytest
import torch

from engine import LLM
from engine.checkpoints.weight_formats import builtin_format
from engine.quant.panels import Panels
from engine.runtime.errors import BareloopError


def test_a_shape_that_int4_does_not_support_becomes_int8_or_stays_dense():
    assert builtin_format(4, 16, 64, 48, torch.float32, True) == Panels(64, 48, torch.float32, 4, 16)
    assert builtin_format(4, 32, 64, 48, torch.float32, True) == Panels(64, 48, torch.float32, 8)
    assert builtin_format(4, 32, 50, 64, torch.float32, True) == Panels(50, 64, torch.float32, 8)
    assert builtin_format(8, 32, 64, 30, torch.float32, True) is None


def test_an_unknown_format_is_refused_with_the_known_ones(tiny_llama):
    with pytest.raises(BareloopError, match="unknown weight format 'int3'; use auto, none, int8, int4, nf4"):
        LLM.load(tiny_llama.folder, quant="int3")
