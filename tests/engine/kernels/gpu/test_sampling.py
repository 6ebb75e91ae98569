"""The Triton sampler against the code for CPUs: in Triton's interpreter, and on an NVIDIA GPU."""

from __future__ import annotations

import math
import random

import pytest
import torch

from engine.decoding.device_sampling import sample_on_device
from engine.decoding.draws import uniform
from engine.decoding.params import SamplingParams
from engine.decoding.sampling import Context, choose, device_params
from tests.engine.decoding.sampling_cases import exact_token, random_contexts, random_logits

pytest.importorskip("triton")
import triton
import triton.language as tl

from engine.kernels.gpu import cutoffs, launch, operators, sampling


def calls() -> None:
    """Launches for test_compiling.py."""
    for dtype in (torch.bfloat16, torch.float32):
        reals, integers = torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.int64)
        operators.sample(torch.empty(2, 128_256, dtype=dtype), reals, integers, integers[:, 0].contiguous(), True)
    operators.sample(torch.empty(1, 50_257), reals[:1], integers[:1], integers[:1, 0], False)
    operators.sample(torch.empty(16, 262_208), reals[:1], integers[:1], integers[:1, 0], True)


@torch.inference_mode()
def run(logits: torch.Tensor, contexts: list[Context], device: str) -> torch.Tensor:
    """The tokens of a GPU's sampler."""
    positions = torch.tensor([len(context.ids) for context in contexts], device=device)
    return sample_on_device(logits.to(device), device_params(contexts, torch.device(device)), positions).cpu()


@pytest.fixture
def launches(monkeypatch) -> list[str]:
    """The names of the kernels that are launched."""
    names = []

    def record(kernel, *arguments, **constants):
        names.append(kernel.__name__)
        launch.launch(kernel, *arguments, **constants)

    for module in (cutoffs, sampling):
        monkeypatch.setattr(module, "launch", record)
    return names


@pytest.mark.parametrize("case", range(20))
def test_the_tokens_are_the_exact_ones_and_those_of_a_cpu(gpu_device, launches, case):
    source = random.Random(100 + case)
    dtype = (torch.float32, torch.bfloat16, torch.float16)[case % 3]
    vocab_size = source.choice([700, 1000, 1024]) if case % 4 else source.choice([1500, 3000])
    logits, contexts = random_logits(source, 16, vocab_size, dtype), random_contexts(source, 16)
    tokens = run(logits, contexts, gpu_device)
    assert tokens.tolist() == [exact_token(row, context) for row, context in zip(logits, contexts, strict=True)]
    # Where all logits are nearly equal, the CPU's top-p has rounding errors that this sampler does not have.
    is_moderate = torch.tensor([context.params.temperature < 100 for context in contexts])
    assert torch.equal(tokens[is_moderate], choose(logits, contexts)[is_moderate])
    assert len(launches) == 8


@torch.inference_mode()
def test_choose_and_its_adjustments_use_the_sampler(gpu_device, launches):
    logits = 3 * torch.randn(6, 90, generator=torch.Generator().manual_seed(0))
    allowed = torch.arange(90) % 3 == 0
    contexts = [
        Context(SamplingParams(temperature=1.0, repetition_penalty=1.5), [5, 6], 1, 1),
        Context(SamplingParams(temperature=1.0, min_p=0.05), [5], 1, 2, allowed),
        Context(SamplingParams(), [5], 1, 3, allowed),
        Context(SamplingParams(temperature=0.8, logit_bias={7: 5.0}), [5, 1, 2], 1, 4),
        Context(SamplingParams(presence_penalty=2.0), [5, 1, 2], 1, 5),
        Context(SamplingParams(temperature=1.0), [5], 1, 6),
    ]
    tokens = choose(logits.to(gpu_device), contexts).cpu()
    assert len(launches) == 4  # no row has top-k or top-p
    with torch.inference_mode(False), torch.enable_grad():
        assert torch.equal(tokens, choose(logits.clone(), contexts))
    assert choose(logits.to(gpu_device), [contexts[4]] * 6).shape == (6,)
    assert len(launches) == 4  # greedy: PyTorch's maximum


def test_a_row_does_not_depend_on_its_neighbours_nor_on_its_place_in_memory(gpu_device):
    source = random.Random(7)
    logits, contexts = random_logits(source, 8, 1100, torch.float32), random_contexts(source, 8)
    together = run(logits, contexts, gpu_device)
    wide = torch.full((8, 1203), 9.0)
    wide[:, 3:1103] = logits
    sliced = wide.to(gpu_device)[:, 3:1103]
    assert torch.equal(run(sliced, contexts, gpu_device), together)
    for row in (0, 3, 7):
        assert run(logits[row : row + 1], contexts[row : row + 1], gpu_device) == together[row : row + 1]


FILTERS = (  # and what they keep: ties of the last token that is kept are kept, too
    ({"top_k": 3}, {5, 6, 7, 8}),
    ({"top_k": 2}, {5, 6}),
    ({"top_p": 0.5}, {5, 6}),
    ({"top_p": 0.9}, {5, 6, 7, 8}),
    ({"min_p": 0.3}, {5, 6, 7, 8}),
    ({"top_k": 5, "top_p": 0.55}, {5, 6}),
    ({"top_k": 1, "top_p": 0.99}, {5, 6}),
    ({"top_k": 30}, set(range(40))),
    ({"top_k": 39, "top_p": 0.9999999}, set(range(40))),
)


def test_the_filters_keep_exactly_the_tokens_of_their_definition(gpu_device):
    logits = torch.full((len(FILTERS), 40), -4.0, device=gpu_device)
    logits[:, [5, 6]], logits[:, [7, 8]] = 3.0, 2.0
    contexts = [Context(SamplingParams(temperature=1.0, **params), [], 0, 0) for params, _ in FILTERS]
    params = device_params(contexts, torch.device(gpu_device))
    bounds = cutoffs.find_cutoffs(logits, params.reals, params.integers, True)
    for row, largest, cutoff, (_, kept) in zip(logits.cpu(), bounds[:, 0], bounds[:, 2], FILTERS, strict=True):
        assert set((largest.cpu() - row <= cutoff.cpu()).nonzero()[:, 0].tolist()) == kept


def test_top_k_beyond_the_number_of_groups_and_many_equal_members(gpu_device):
    """More tokens than the first bound can take into account, and more in one bin than `_refine` reads at a time."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.stack([torch.randn(2500, generator=generator), torch.zeros(2500), torch.arange(2500) * 1e-9])
    contexts = [Context(SamplingParams(temperature=1.0, top_k=700, top_p=0.8), [1], 0, seed) for seed in range(3)]
    exact = [exact_token(row, context) for row, context in zip(logits, contexts, strict=True)]
    assert run(logits, contexts, gpu_device).tolist() == exact


def test_invalid_rows_and_greedy_ties_among_sampled_rows(gpu_device):
    logits = torch.zeros(6, 2000)
    logits[0, 1500] = math.nan
    logits[1, 1999] = math.inf
    logits[2] = -math.inf
    logits[3, [1030, 1999]] = 1.0
    logits[4, 1000:] = -0.0
    sampled, greedy = SamplingParams(temperature=1.0, top_p=0.9), SamplingParams(top_k=4, min_p=0.1)
    contexts = [Context(params, [1], 0, 5) for params in (sampled, greedy, greedy, greedy, greedy, sampled)]
    assert run(logits, contexts, gpu_device).tolist()[:5] == [-1, -1, -1, 1030, 0]


@triton.jit
def _store_bits(seeds, positions, out):
    index = tl.program_id(0)
    bits = sampling.random_bits(tl.load(seeds + index), tl.load(positions + index))
    tl.store(out + index, (bits >> 11).to(tl.int64))


def test_random_numbers_equal_those_of_a_cpu(gpu_device):
    seeds = [0, 1, -1, 2**63 - 1, -(2**63), 123456789123456789]
    positions = [0, 1, 5, 2**31, 7, 262_143]
    out = torch.empty(6, dtype=torch.int64, device=gpu_device)
    launch.launch(_store_bits, (6,), *(torch.tensor(each, device=gpu_device) for each in (seeds, positions)), out)
    assert torch.equal(out.cpu().double() / 2**53, uniform(seeds, positions))


def test_too_many_logits_are_refused(gpu_device):
    reals, integers = torch.zeros(1, 3, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="takes up to 524,287"):
        operators.sample(torch.zeros(1, 2**19), reals, integers, integers[:, 0], False)
