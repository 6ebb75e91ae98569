"""Sampling as on a GPU without Triton, by PyTorch's operators, against the code for CPUs; here on CPU tensors."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engine.decoding.device_sampling import cutoffs, sample_on_device, uniform_on_device
from engine.decoding.draws import uniform
from engine.decoding.params import SamplingParams
from engine.decoding.sampling import Context, adjust, choose, cutoff, device_params, top_logprobs, unpack_logprobs
from engine.kernels import gpu
from engine.runtime.device import download, upload
from tests.engine.decoding.sampling_cases import exact_token, random_contexts, random_logits

CPU = torch.device("cpu")


@pytest.mark.parametrize("case", range(20))
def test_the_tokens_are_the_exact_ones_and_those_of_a_cpu(case):
    source = random.Random(case)
    dtype = source.choice([torch.float32, torch.bfloat16, torch.float16])
    logits, contexts = random_logits(source, 16, source.choice([7, 512, 1500]), dtype), random_contexts(source, 16)
    positions = torch.tensor([len(context.ids) for context in contexts])
    tokens = sample_on_device(logits, device_params(contexts, CPU), positions)
    assert tokens.tolist() == [exact_token(row, context) for row, context in zip(logits, contexts, strict=True)]
    is_moderate = torch.tensor([context.params.temperature < 100 for context in contexts])
    assert torch.equal(tokens[is_moderate], choose(logits, contexts)[is_moderate])


def test_numbers_on_a_device_equal_those_of_a_cpu():
    seeds = [0, 1, 2**63, 2**64 - 1, -5, 12345678901234567] * 50
    positions = [*range(200), *range(2**31 - 50, 2**31 + 50)]
    params = device_params([Context(SamplingParams(), [], 0, seed) for seed in seeds], CPU)
    assert torch.equal(uniform_on_device(params.integers[:, 1], torch.tensor(positions)), uniform(seeds, positions))


ADJUSTED = [
    SamplingParams(),
    SamplingParams(repetition_penalty=1.4),
    SamplingParams(repetition_penalty=0.8, presence_penalty=0.3, frequency_penalty=0.25),
    SamplingParams(frequency_penalty=-0.2),
    SamplingParams(logit_bias={0: 4.0, 17: -math.inf, 299: -2.5}),
    SamplingParams(repetition_penalty=1.1, presence_penalty=-0.7, logit_bias={3: 1e6, 5: 0.125}),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_penalties_of_all_rows_at_once_equal_those_of_each_row(dtype, monkeypatch):
    wide = torch.randn(24, 320, generator=torch.Generator().manual_seed(2)).to(dtype)
    logits = wide[:, :300]  # rows that are not adjacent in memory
    masks = [torch.arange(300) % 3 == row % 3 for row in range(24)]
    contexts = [
        Context(
            ADJUSTED[row % 6], [(row * i) % 23 for i in range(row)], row // 2, 0, masks[row] if row % 4 == 1 else None
        )
        for row in range(24)
    ]
    expected, before = adjust(logits, contexts), logits.clone()
    monkeypatch.setattr(gpu, "for_rows", lambda x: object())
    actual = adjust(logits, contexts)
    assert torch.equal(logits, before)
    assert actual.dtype == torch.float32
    assert torch.equal(actual.isinf(), expected.isinf())
    assert torch.allclose(actual, expected, rtol=1e-6, atol=1e-6)
    assert adjust(logits, [Context(SamplingParams(temperature=1.0), [1], 0, 0)] * 24) is logits


@pytest.mark.parametrize("scale", [0.3, 3.0, 12.0])
def test_cutoffs_equal_those_of_a_cpu(scale):
    logits = scale * torch.randn(12, 2000, generator=torch.Generator().manual_seed(4))
    logits -= logits.amax(-1, keepdim=True)
    params = [
        SamplingParams(temperature=1.0, top_k=top_k, top_p=top_p, min_p=min_p)
        for top_k, min_p in ((0, 0.0), (40, 0.0), (0, 0.01), (400, 0.001))
        for top_p in (0.1, 0.5, 0.95)
    ]
    on_device = device_params([Context(each, [], 0, 0) for each in params], CPU)
    assert torch.equal(cutoffs(logits, on_device), cutoff(logits, params))


def test_log_probabilities_of_large_ids_survive_the_transfer():
    logits = torch.zeros(2, 300_000)
    logits[0, 299_999], logits[1, 262_143] = 30.0, 20.0
    chosen, best = zip(*unpack_logprobs(top_logprobs(logits, torch.tensor([299_999, 5]), 2).tolist()), strict=True)
    assert [row[0][0] for row in best] == [299_999, 262_143]
    assert list(chosen) == logits.log_softmax(-1)[[0, 1], [299_999, 5]].tolist()
    assert [len(row) for row in best] == [2, 2]


class Operators(TorchDispatchMode):
    """Records the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **kwargs or {})


def test_choosing_waits_for_nothing_in_a_number_of_launches_that_does_not_depend_on_the_rows():
    """On the meta device, tensors have no values; whatever needed one would raise an exception."""
    filters, penalties = {"top_k": 5, "top_p": 0.9, "min_p": 0.1}, {"repetition_penalty": 1.1, "frequency_penalty": 0.2}
    params = SamplingParams(temperature=0.9, logit_bias={3: 1.0}, **filters, **penalties)
    allowed = torch.ones(60, dtype=torch.bool)
    names = []
    for rows in (3, 16):
        contexts = [Context(params, [*range(5, 9 + row)], row, row, allowed) for row in range(rows)]
        with Operators() as operators:
            assert choose(torch.empty(rows, 60, device="meta"), contexts).shape == (rows,)
        names.append([name for name in operators.names if "view" not in name and "alias" not in name])
    assert names[0] == names[1]


def test_upload_and_download_are_inverse():
    for values in ([[1, 2], [3, 4]], [], [2**62], 7):
        assert download(upload(values, torch.int64, CPU)) == values
    assert download(upload(torch.tensor([True, False]), torch.float32, CPU)) == [1.0, 0.0]
