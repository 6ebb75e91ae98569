"""The parts of `bench.gpu_check`. Each takes a device and a shape, and returns figures for the JSON report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.measure import Limits, decoding
from bench.shapes import SHAPES
from engine import LLM, SamplingParams
from engine.checkpoints.loading import replace_parameters
from engine.checkpoints.weight_formats import assign_formats
from engine.decoding.loop import decode
from engine.layers.linear import Matrix
from engine.models import configure
from engine.quant.base import ROW_MULTIPLE
from engine.runtime.clocks import read_bandwidth
from engine.runtime.device import choose_device, choose_dtype, synchronize
from engine.runtime.memory import peak_memory

SEED = 0
CONTEXT, NEW_TOKENS = 128, 64  # of decoding
SHOTS_TOKENS, QUESTION_TOKENS, QUESTIONS, CHOICES = 600, 60, 16, 4  # of scoring: about MMLU's, 5-shot
TOLERANCE = 1e-4  # of float32 logits on the GPU against the CPU, relative to the largest logit

TINY = {
    "vocab_size": 128,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,  # large, so that logits differ clearly
    "bos_token_id": 1,
    "eos_token_id": 127,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 16},
    "mistral": {"sliding_window": 7},
    "olmo2": {},
    "gemma2": {"head_dim": 12, "sliding_window": 9, "query_pre_attn_scalar": 10, "attn_logit_softcapping": 5.0},
    "phi": {"num_key_value_heads": 6, "hidden_size": 72, "partial_rotary_factor": 0.5},
    "gpt2": {"n_embd": 48, "n_layer": 3, "n_head": 6, "n_positions": 256},
    "mamba": {"state_size": 6, "time_step_rank": 5, "hidden_size": 40},
    "rwkv": {"attention_hidden_size": 48, "context_length": 256},
}


def machine(device: str, shape: str) -> dict[str, Any]:  # noqa: ARG001
    """The card, the versions, and the rates at which memory is read and matrices are multiplied."""
    target = choose_device(device)
    figures: dict[str, Any] = {"torch": torch.__version__}
    if target.type == "cuda":
        properties = torch.cuda.get_device_properties(target)
        figures |= {"card": properties.name, "memory, GB": properties.total_memory / 1e9, "CUDA": torch.version.cuda}
        figures["processors"] = properties.multi_processor_count
    for package in ("triton", "transformers"):
        try:
            figures[package] = __import__(package).__version__
        except ImportError:
            figures[package] = "not installed"
    figures["read bandwidth, GB/s"] = read_bandwidth(target) / 1e9
    size = 8192 if target.type == "cuda" else 256
    a = torch.randn(size, size, device=target, dtype=torch.bfloat16)
    seconds = best_of(5, target, lambda: a @ a)
    figures["bfloat16 product, TFLOP/s"] = 2 * size**3 / seconds / 1e12
    return figures


def correctness(device: str, shape: str) -> dict[str, Any]:  # noqa: ARG001
    """Compare random models of ten families, in float32, on the device and on the CPU: logits and generated tokens.

    Raises `AssertionError` with the family if logits differ by more than `TOLERANCE` of the largest, or tokens do.
    """
    errors = {}
    generator = torch.Generator().manual_seed(SEED)
    prompts = [torch.randint(2, 120, (length,), generator=generator).tolist() for length in (23, 5, 40)]
    greedy = SamplingParams(max_new_tokens=12, ignore_eos=True)
    sampled = SamplingParams(max_new_tokens=12, ignore_eos=True, temperature=0.8, top_p=0.9, top_k=40, seed=7)
    for family, settings in FAMILIES.items():
        config = {**TINY, "model_type": family, **settings}
        cpu = LLM.from_config(config, SEED, "cpu")
        other = LLM.from_config(config, SEED, device)
        expected, logits = cpu.logits(prompts[2]), other.logits(prompts[2])
        errors[family] = float((expected - logits).abs().max() / expected.abs().max())
        assert errors[family] <= TOLERANCE, f"{family}: logits differ by {errors[family]:.1e} of the largest"
        sequence = other.sequence()
        sequence.feed(prompts[2][:-1])
        cached = sequence.feed_with_logits(prompts[2], last=1)[-1].float().cpu()  # one token after a cached prefix
        difference = float((cached - expected[-1]).abs().max() / expected.abs().max())
        assert difference <= TOLERANCE, f"{family}: with a cache logits differ by {difference:.1e} of the largest"
        for name, params in (("greedy", greedy), ("sampled", sampled)):
            ids, expected_ids = ([text.token_ids for text in llm.generate(prompts, params)] for llm in (other, cpu))
            assert ids == expected_ids, f"{family}: {name} tokens differ from those on the CPU"
    return {"largest error of logits, relative": errors}


def bfloat16(device: str, shape: str) -> dict[str, Any]:
    """The shape in bfloat16: prefill, decode of one and eight rows, 5-shot scoring."""
    llm, seconds = timed(choose_device(device), lambda: random_llm(shape, device))
    return {"creation, s": seconds, **speed(llm), **scoring(llm)}


def int8(device: str, shape: str) -> dict[str, Any]:
    """The same in int8."""
    return quantized(device, shape, "int8")


def int4(device: str, shape: str) -> dict[str, Any]:
    """The same in int4."""
    return quantized(device, shape, "int4")


def quantized(device: str, shape: str, quant: str) -> dict[str, Any]:
    """The error of one product against the dequantized weights in float64, then speed."""
    llm, seconds = timed(choose_device(device), lambda: random_llm(shape, device, quant))
    matrix = next(
        module for module in llm.model.modules() if isinstance(module, Matrix) and "Lin" in type(module).__name__
    )
    assert matrix.format is not None
    figures: dict[str, Any] = {"creation, s": seconds}
    with torch.inference_mode():
        dense = matrix.format.dense(matrix._parameters, 0, matrix.rows, torch.float32).double()
        for rows in (1, 8, 64):
            x = torch.randn(rows, matrix.columns, device=llm.device, dtype=llm.dtype)
            expected = x.double() @ dense.T
            error = float((matrix(x).double() - expected).abs().max() / expected.abs().max())
            assert error <= 0.02, f"a product of {rows} rows differs by {error:.1e} of the largest"
            figures[f"error of a product of {rows} rows, relative"] = error
    return {**figures, **speed(llm)}


def transformers(device: str, shape: str) -> dict[str, Any]:
    """transformers with the same shape: prefill, `generate` of one and eight rows, both after a pass that warms up."""
    from transformers import AutoConfig, AutoModelForCausalLM

    target = choose_device(device)
    torch.backends.cuda.enable_cudnn_sdp(True)  # torch's default, which `choose_device` changes
    config = {key: value for key, value in SHAPES[shape].items() if key not in ("model_type", "architectures")}
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with target:
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(SHAPES[shape]["model_type"], **config)).eval()
    finally:
        torch.set_default_dtype(dtype)
    figures: dict[str, Any] = {}
    with torch.inference_mode():
        for tokens in (512, 2048):
            ids = torch.tensor([random_ids(model.config.vocab_size, tokens)], device=target)
            seconds = best_of(3, target, lambda ids=ids: model(ids, logits_to_keep=1))  # type: ignore[misc]
            figures[f"prefill {tokens}, tokens/s"] = tokens / seconds
        for rows in (1, 8):
            ids = torch.tensor([random_ids(model.config.vocab_size, CONTEXT)] * rows, device=target)

            def generate(new: int, ids: Tensor = ids) -> None:
                model.generate(ids, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)

            short, long = (best_of(1, target, lambda new=new: generate(new)) for new in (4, 4 + NEW_TOKENS))  # type: ignore[misc]
            figures[f"decode {rows}, tokens/s"] = rows * NEW_TOKENS / (long - short)
    return {**figures, "peak memory, GB": peak_memory(target) / 1e9}


def speed(llm: LLM) -> dict[str, Any]:
    """Prefill of 512 and 2,048 tokens; decode of one and eight rows, with the share of the read bandwidth."""
    figures: dict[str, Any] = {}
    vocabulary = llm.config.vocab_size
    for tokens in (512, 2048):
        ids = random_ids(vocabulary, tokens)

        def prefill(ids: Sequence[int] = ids) -> None:
            sequence = llm.sequence()
            sequence.feed(ids)
            sequence.close()

        figures[f"prefill {tokens}, tokens/s"] = tokens / best_of(3, llm.device, prefill)
    limits = Limits(llm.device, llm.dtype)
    for rows in (1, 8):
        prompts = [random_ids(vocabulary, CONTEXT, seed) for seed in range(rows)]
        params = SamplingParams(max_new_tokens=NEW_TOKENS + 8, ignore_eos=True)
        stamps = []
        for event in decode(llm.prefilled_sequences(prompts), params):
            if event.sequence == rows - 1:
                stamps.append(time.perf_counter())
        seconds = (stamps[-1] - stamps[7]) / (len(stamps) - 8)  # a step; the first ones warm up
        limits.measure()
        rate = decoding(llm, CONTEXT + NEW_TOKENS // 2, rows).nbytes / seconds
        figures[f"decode {rows}, tokens/s"] = rows / seconds
        figures[f"decode {rows}, GB/s"] = rate / 1e9
        figures[f"decode {rows}, share of the read bandwidth"] = rate / limits.bandwidths[-1]
    return {**figures, "peak memory, GB": peak_memory(llm.device) / 1e9}


def scoring(llm: LLM) -> dict[str, Any]:
    """Questions per second as in 5-shot MMLU: a prefix that all share, and four continuations of one token each."""
    vocabulary = llm.config.vocab_size
    shots = random_ids(vocabulary, SHOTS_TOKENS)
    contexts = [[*shots, *random_ids(vocabulary, QUESTION_TOKENS, 1 + number)] for number in range(QUESTIONS)]
    requests = [(context, [choice]) for context in contexts for choice in range(5, 5 + CHOICES)]
    seconds = best_of(3, llm.device, lambda: llm.score(requests))
    return {"5-shot questions/s": QUESTIONS / seconds}


def random_llm(shape: str, device: str, quant: str = "none") -> LLM:
    """A model of this shape with random weights that are drawn on the device, and quantized there.

    In bfloat16; on a CPU, where that may be slow, in float32.
    """
    target = choose_device(device)
    dtype = "float32" if target.type == "cpu" else "bfloat16"
    family, config = configure(SHAPES[shape])
    with torch.device("meta"):
        model = family.build(config).to(choose_dtype(dtype, dtype))
    assign_formats(model, quant, target)
    generator = torch.Generator(target).manual_seed(SEED)
    replacements: dict[int, torch.nn.Parameter] = {}

    def keep(old: Tensor, new: Tensor) -> None:
        replacements[id(old)] = torch.nn.Parameter(new, requires_grad=False)

    for module in model.modules():
        parameters: Mapping[str, Tensor] = dict(module.named_parameters(recurse=False))
        if isinstance(module, Matrix) and module.format is not None:
            tensors = module.format.begin(target)
            step = 64 * ROW_MULTIPLE
            for first in range(0, module.rows, step):
                rows = min(step, module.rows - first)
                part = torch.empty(rows, module.columns, device=target).normal_(0, 0.02, generator=generator)
                module.format.fill(tensors, first, part)
            for name, tensor in module.format.finish(tensors).items():
                keep(parameters[name], tensor)
            parameters = {name: tensor for name, tensor in parameters.items() if name == "bias"}
        for name, parameter in parameters.items():
            weight = torch.empty(parameter.shape, dtype=parameter.dtype, device=target)
            if parameter.dim() > 1:
                weight.normal_(0, 0.02, generator=generator)
            else:
                weight.fill_(0 if name == "bias" else 1)
            keep(parameter, weight)
    replace_parameters(model, replacements)
    return LLM(model, family, config, None, quant)


def random_ids(vocabulary: int, count: int, seed: int = SEED) -> list[int]:
    """Seeded token ids."""
    return torch.randint(2, vocabulary, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def timed(device: torch.device, work: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result of `work` and its duration in seconds."""
    start = time.perf_counter()
    result = work()
    synchronize(device)
    return result, time.perf_counter() - start


def best_of(rounds: int, device: torch.device, work: Callable[[], Any]) -> float:
    """Return the shortest duration of several rounds in seconds, after one round that warms up."""
    work()
    synchronize(device)
    return min(timed(device, work)[1] for _ in range(rounds))
