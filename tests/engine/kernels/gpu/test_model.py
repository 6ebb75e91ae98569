"""Whole models with Triton's kernels give the tokens of the CPU's own way."""

from __future__ import annotations

import pytest

from engine import LLM, SamplingParams
from engine.decoding.scheduler import Scheduler


@pytest.mark.parametrize("variant", ["llama", "gemma2", "qwen3"])
def test_a_model_with_all_kernels_gives_the_tokens_of_the_cpu(draw_tiny, prompt, variant, request):
    llm = LLM.load(draw_tiny(variant, num_hidden_layers=1).folder, device="cpu", dtype="float32")
    prompts = [prompt(5), prompt(21, 1)]
    params = SamplingParams(max_new_tokens=3, ignore_eos=True)
    expected = [completion.token_ids for completion in llm.generate(prompts, params)]
    request.getfixturevalue("as_on_a_gpu_with_triton")
    with Scheduler(llm, prefill_chunk=18) as scheduler:
        requests = [scheduler.submit(ids, params) for ids in prompts]
        assert [[event.token_id for event in each] for each in requests] == expected
