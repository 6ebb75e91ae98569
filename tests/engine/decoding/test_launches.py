"""What a decoding step launches on a GPU, counted on fake tensors: the same for any number of rows, and one wait."""

from __future__ import annotations

import sys
from collections import Counter
from copy import deepcopy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engine import LLM, SamplingParams, kernels
from engine.cache.blocks import Budget
from engine.checkpoints.loading import replace_parameters
from engine.decoding.scheduling.scheduler import Scheduler
from engine.decoding.sequence import prefill
from engine.models import configure
from tests.conftest import SHAPE
from tests.engine.fake_gpu import Counts, fake_gpu

CONFIG = SHAPE | {"model_type": "llama", "max_position_embeddings": 4096}


def fake_llm(**settings) -> LLM:
    family, config = configure(CONFIG | settings)
    with torch.device("meta"):
        model = family.build(config)
    fakes = {id(p): torch.nn.Parameter(torch.empty(p.shape, device="cuda"), False) for p in model.parameters()}
    replace_parameters(model, fakes)
    return LLM(model, family, config, None)


def decode(llm: LLM, counts: Counts, rows: int, **params) -> list[Counts]:
    """The counts of single decoding steps of so many rows, after a few that warm up."""
    with Scheduler(llm, cache_bytes=2**24) as scheduler:
        requests = []
        for row in range(rows):
            each = SamplingParams(max_new_tokens=60, ignore_eos=True, seed=row, **params)
            requests.append(scheduler.submit([5] * (3 + row), each))
        steps = 0
        found = []
        while len(found) < 3:
            counts.clear()
            work = scheduler.step()
            assert work is not None, [list(request) for request in requests]
            steps += work.kind == "decode" and work.tokens == rows
            if steps > 4 and work.kind == "decode":
                found.append(deepcopy(counts))
    return found


@pytest.mark.parametrize("params", [{}, {"temperature": 0.8, "top_p": 0.9, "top_k": 40}], ids=["greedy", "sampled"])
def test_a_step_launches_the_same_for_any_number_of_rows_and_waits_once(params):
    pytest.importorskip("triton")
    from engine.kernels.gpu import operators

    by_rows = []
    for rows in (1, 3, 16):
        with fake_gpu(operators) as counts:
            llm = fake_llm()
            for step in decode(llm, counts, rows, **params):
                assert step.waits == []
                assert step.order == ["download", "CUDA graph"]  # the next step begins before this one is awaited
                by_rows.append((sum(step.launches.values()), step.uploads))
        layers = llm.config.num_layers
        assert sum(counts.captured.values()) <= 10 * layers + 20, counts.captured
    assert len(set(by_rows)) == 1, by_rows


def test_a_step_of_many_questions_launches_the_same_for_any_number_of_them(as_on_a_gpu_with_triton, monkeypatch):
    """Rows of different lengths after a prefix that they share, as in scoring. Nothing of Triton's is run here."""
    from engine.kernels.gpu import operators

    launches: Counter[str] = Counter()
    for name in {operator.__module__ for operator in vars(operators).values() if callable(operator)}:
        if hasattr(sys.modules[name], "launch"):
            count = lambda kernel, *_, **__: launches.update([kernel.__name__])  # noqa: E731
            monkeypatch.setattr(sys.modules[name], "launch", count)
    llm = LLM.from_config(CONFIG, device="cpu")
    monkeypatch.setattr(kernels, "_active_ops", None)  # which loading a model has set
    by_rows = []
    for rows in (9, 20):  # more than the kernels for few rows take
        root = llm.sequence(llm.model.new_state(Budget(2**22, 32, 512)))
        prefix = [5] * 50
        prefill([root], [prefix], [1])
        forks = root.fork(rows)
        launches.clear()
        with Operators() as operators_of_torch:
            prefill(forks, [[*prefix, *[6] * (3 + 7 * row)] for row in range(rows)], [1] * rows, chunk=16_384)
        assert launches["_chunk"] == 2 and launches["_decode"] == 1  # the last layer has one query per row
        by_rows.append((launches.total(), operators_of_torch.count))
    assert len(set(by_rows)) == 1, by_rows


class Operators(TorchDispatchMode):
    """Counts PyTorch's operators, without views."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view and "split" not in str(func)
        return func(*args, **(kwargs or {}))
