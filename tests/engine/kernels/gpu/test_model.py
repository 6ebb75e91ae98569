"""Whole models with Triton's kernels give the tokens of the CPU's own way."""

from __future__ import annotations

import pytest
import torch

from engine import LLM, SamplingParams, kernels
from engine.cache.state import Step
from engine.decoding.scheduling.scheduler import Scheduler
from engine.kernels import gpu
from engine.layers.linear import Matrix
from engine.quant.panels import Panels

LLAMA = {
    "model_type": "llama",
    "vocab_size": 1024,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 2048,
}
GEMMA = LLAMA | {
    "model_type": "gemma2",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "sliding_window": 512,
    "query_pre_attn_scalar": 256,
}


def calls() -> None:
    """Launches for test_compiling.py: a prompt and a decoding step of two layers of Llama-3.2-1B and of Gemma-2-2B."""
    gpu.DEVICE_TYPES.add("cpu")
    for config in (LLAMA, GEMMA):
        llm = LLM.from_config(config, device="cpu", dtype="bfloat16")
        kernels._active_ops = None
        state = llm.model.new_state()
        row = state.acquire()
        for count in (20, 1):
            step = Step.pack([[1] * count], [row], [state.length(row)])
            llm.model.logits(llm.model.forward(step, state, last=[1]))


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


@pytest.mark.parametrize("quant", ["int4", "nf4"])
def test_a_quantized_model_with_all_kernels_has_the_logits_of_the_cpu(draw_tiny, prompt, quant, request, tmp_path):
    if not kernels.available():
        pytest.skip("without the C++ kernels a CPU has other formats")
    if quant == "nf4":
        pytest.importorskip("bitsandbytes")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 1}
    llm = LLM.load(draw_tiny("llama", **sizes).folder, device="cpu", dtype="float32", quant=quant)
    ids = prompt(33)  # more rows than the kernels for few rows take, which round x to 8 bits on a CPU
    expected = llm.logits(ids)
    llm.save(tmp_path / "saved")
    request.getfixturevalue("as_on_a_gpu_with_triton")
    if quant == "nf4":
        llm = LLM.load(tmp_path / "saved", device="cpu", dtype="float32")
    matrices = [module for module in llm.model.layers.modules() if isinstance(module, Matrix)]
    assert all(isinstance(matrix.format, Panels) for matrix in matrices)
    assert (llm.logits(ids) - expected).abs().max() <= 1e-5 * expected.abs().max()
    few = llm.logits(ids[:5])
    assert torch.allclose(few, llm.logits(ids)[:5], rtol=1e-4, atol=1e-4)
