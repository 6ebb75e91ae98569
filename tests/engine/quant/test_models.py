"""Models in int8 and int4, compared with dense models that have the same values."""

from __future__ import annotations

import pytest
import torch

from engine import LLM, SamplingParams, kernels
from engine.cache.state import Step
from engine.decoding.loop import decode
from engine.layers.linear import Matrix


def dense_twin(folder, llm: LLM) -> LLM:
    """The unquantized model with the values that the quantized weights represent."""
    twin = LLM.load(folder, device="cpu", dtype="float32")
    quantized, dense_modules = (dict(model.named_modules()) for model in (llm.model, twin.model))
    for name, module in quantized.items():
        if isinstance(module, Matrix) and module.format is not None:
            dense = module.format.dense(module._parameters, 0, module.rows, torch.float32)
            dense_modules[name].weight = torch.nn.Parameter(dense, requires_grad=False)
    return twin


def check_against_twin(folder, llm: LLM, prompt) -> None:
    """Compare logits of prompts (dense products) and of generated tokens (kernels) with those of the dense model."""
    twin = dense_twin(folder, llm)
    tolerance = 1e-2 if llm.family.model_type == "mamba" else 1e-3  # Mamba's exponentials amplify differences
    few_rows_tolerance = tolerance * (50 if llm.quant == "int4" and llm.model.fused else 1)  # x is rounded to 8 bits
    prompts = [prompt(length, seed=10 + length) for length in (3, 11)]
    for ids in prompts:
        expected = twin.logits(ids)
        relative = few_rows_tolerance if len(ids) <= kernels.MAX_ROWS else tolerance
        assert (llm.logits(ids) - expected).abs().max() <= relative * expected.abs().max()
    sequences = llm.prefilled_sequences(prompts)
    list(decode(sequences, SamplingParams(max_new_tokens=4, ignore_eos=True)))
    for sequence in sequences:
        expected = twin.logits(sequence.ids)[-1]
        assert (sequence.logits - expected).abs().max() <= few_rows_tolerance * expected.abs().max()


def test_every_family_in_int8_computes_with_its_quantized_values(tiny, prompt):
    llm = LLM.load(tiny.folder, device="cpu", dtype="float32", quant="int8")
    assert llm.quant == "int8" and llm.dtype == torch.float32 and llm.model.fused
    check_against_twin(tiny.folder, llm, prompt)
    exact = tiny.logits(prompt(20))
    assert (llm.logits(prompt(20)) - exact).abs().max() < 0.3 * exact.abs().max()


@pytest.mark.parametrize("variant", ["llama-3.2", "phi", "gpt2", "mamba", "rwkv", "gemma3_text"])
def test_a_model_in_int4_computes_with_its_quantized_values(variant, draw_tiny, prompt):
    sizes = {"hidden_size": 96, "vocab_size": 130, "pad_token_id": 0}
    sizes |= {"attention_hidden_size": 96} if variant == "rwkv" else {}
    sizes |= {"n_inner": 160} if variant == "gpt2" else {"intermediate_size": 160 if variant != "mamba" else 192}
    tiny = draw_tiny(variant, **sizes)
    for kernels_available in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not kernels_available:
                patch.setattr(kernels, "available", lambda: False)
            llm = LLM.load(tiny.folder, device="cpu", dtype="float32", quant="int4")
        formats = {type(m.format).__name__ for m in llm.model.modules() if isinstance(m, Matrix) and m.format}
        assert formats == ({"Panels"} if kernels_available else {"TorchInt4", "TorchInt8"})
        check_against_twin(tiny.folder, llm, prompt)


def test_a_quantized_model_in_bfloat16_is_close_to_float32(draw_tiny, prompt):
    tiny = draw_tiny("llama", hidden_size=96, intermediate_size=160)
    for quant in ("int8", "int4"):
        float32, bfloat16 = (LLM.load(tiny.folder, "cpu", dtype, quant) for dtype in ("float32", "bfloat16"))
        assert bfloat16.dtype == torch.bfloat16
        ids = prompt(12)
        assert (float32.logits(ids) - bfloat16.logits(ids)).abs().max() < 0.06 * float32.logits(ids).abs().max()
        half = LLM.load(tiny.folder, "cpu", "float16", quant)
        assert len(half.generate([ids], SamplingParams(max_new_tokens=3, ignore_eos=True))[0].token_ids) == 3


def test_costs_count_the_bytes_of_the_weight_format(tiny_llama):
    dense, int8 = (LLM.load(tiny_llama.folder, "cpu", "bfloat16", quant) for quant in ("none", "int8"))
    costs = [list(llm.model.costs(10)) for llm in (dense, int8)]
    for unquantized, quantized in zip(*costs, strict=True):
        assert unquantized.parameters == quantized.parameters and unquantized.flops == quantized.flops
    weights = [sum(cost.nbytes for cost in parts if "keys" not in cost.part) for parts in costs]
    assert 0.5 < weights[1] / weights[0] < 0.65  # norms and the padding of panels are not halved


def test_a_step_with_gradients_enabled_works_with_a_quantized_model(tiny_llama, prompt):
    llm = LLM.load(tiny_llama.folder, "cpu", "float32", "int8")
    ids = prompt(9)
    logits = llm.model.logits(llm.model(Step.pack([ids])))
    assert torch.allclose(logits, llm.logits(ids), atol=1e-3)
