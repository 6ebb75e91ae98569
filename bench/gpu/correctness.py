"""python -m bench.gpu.correctness FAMILY: a random model of a family on a device, compared with the CPU in float32.

A program of its own, so that a crash in one family does not hide the others. Prints one JSON object: figures, and under
"failures" a line for each promise that is broken.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from bench.gpu.random_models import SEED, without_graphs
from engine import LLM, SamplingParams
from engine.cli.parser import Parser, run
from engine.runtime.errors import UsageError, quote

TOLERANCE = 1e-4  # of float32 logits against the CPU, relative to the largest logit
BFLOAT16_TOLERANCE = 0.1  # of bfloat16 logits against float32 logits of the same weights; on a CPU up to 0.03
TOKENS, TOGETHER = 12, 16  # generated; prompts at once

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

GREEDY = SamplingParams(max_new_tokens=TOKENS, ignore_eos=True)
SAMPLED = SamplingParams(max_new_tokens=TOKENS, ignore_eos=True, temperature=0.8, top_p=0.9, top_k=40, seed=7)


def parser() -> Parser:
    """The program's flags."""
    result = Parser("python -m bench.gpu.correctness", "Compare a random model on a device with the CPU.")
    result.add_argument("family", help=", ".join(FAMILIES))
    result.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu to try the program (default: cuda)")
    return result


def main(options: Any) -> None:
    """Print the figures and failures of one family."""
    if options.family not in FAMILIES:
        raise UsageError(f"unknown family {quote(options.family)}; use {', '.join(FAMILIES)}")
    torch.set_float32_matmul_precision("highest")  # images for GPUs may set TF32
    print(json.dumps(compare(options.family, options.device)))


def compare(family: str, device: str) -> dict[str, Any]:
    """Everything that a model on the device promises. A broken promise is recorded, and the others are checked."""
    failures: list[str] = []
    config = {**TINY, "model_type": family, **FAMILIES[family]}
    figures: dict[str, Any] = {}
    for check in (check_float32, check_together, check_bfloat16):
        try:
            figures |= check(config, device, failures)
        except Exception as error:  # of the device; the other checks may still tell something
            failures.append(f"{check.__name__}: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
    return {**figures, "failures": failures}


def check_float32(config: dict[str, Any], device: str, failures: list[str]) -> dict[str, float]:
    """Logits and generated tokens are those of the CPU, with and without CUDA graphs."""
    cpu, other = LLM.from_config(config, SEED, "cpu"), LLM.from_config(config, SEED, device)
    texts = prompts(3)
    expected = cpu.logits(texts[2])
    sequence = other.sequence()
    sequence.feed(texts[2][:-1])
    cached = sequence.feed_with_logits(texts[2], last=1)[-1:].float().cpu()  # one token after a cached prefix
    sequence.close()
    errors = {
        "float32 logits": relative(other.logits(texts[2]), expected),
        "one token after a cached prefix": relative(cached, expected[-1:]),
    }
    failures += [f"{name} differ by {error:.1e}" for name, error in errors.items() if not error <= TOLERANCE]
    for name, params in (("greedy", GREEDY), ("sampled", SAMPLED)):
        ids = generate(cpu, texts, params)
        for graphs in (True, False):
            if generate(other if graphs else without_graphs(other), texts, params) != ids:
                failures.append(f"{name} tokens {'with' if graphs else 'without'} graphs are not the CPU's")
    return {"error of logits": errors["float32 logits"]}


def check_together(config: dict[str, Any], device: str, failures: list[str]) -> dict[str, float]:
    """Requests at once get the tokens that they get alone, in float32."""
    llm, texts = LLM.from_config(config, SEED, device), prompts(TOGETHER)
    for name, params in (("greedy", GREEDY), ("sampled", SAMPLED)):
        together, alone = generate(llm, texts, params), [generate(llm, [ids], params)[0] for ids in texts]
        differing = sum(a != b for a, b in zip(together, alone, strict=True))
        if differing:
            failures.append(f"{differing} of {TOGETHER} {name} texts are others when they are computed together")
    return {}


@torch.no_grad()
def check_bfloat16(config: dict[str, Any], device: str, failures: list[str]) -> dict[str, float]:
    """Logits in bfloat16 are close to those of the same weights in float32 on the CPU."""
    llm, reference = LLM.from_config(config, SEED, device, "bfloat16"), LLM.from_config(config, SEED, "cpu")
    for name, parameter in llm.model.named_parameters():
        reference.model.get_parameter(name).copy_(parameter)
    texts = prompts(3)
    error = relative(llm.logits(texts[2]), reference.logits(texts[2]))
    if not error <= BFLOAT16_TOLERANCE:
        failures.append(f"bfloat16 logits differ by {error:.1e}")
    pairs = [generate(model, texts, GREEDY) for model in (llm, without_graphs(llm))]
    same = sum(a == b for of_texts in zip(*pairs, strict=True) for a, b in zip(*of_texts, strict=True))
    return {"error of bfloat16 logits": error, "bfloat16 tokens equal without graphs": same / (len(texts) * TOKENS)}


def relative(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest number."""
    return float((actual - expected).abs().max() / expected.abs().max())


def generate(llm: LLM, texts: list[list[int]], params: SamplingParams) -> list[list[int]]:
    """The tokens that follow each prompt."""
    return [completion.token_ids for completion in llm.generate(texts, params)]


def prompts(count: int) -> list[list[int]]:
    """Seeded prompts of different lengths."""
    generator = torch.Generator().manual_seed(SEED)
    lengths = [(23, 5, 150, 16, 2, 33, 8, 70)[index % 8] + index // 8 for index in range(count)]
    return [torch.randint(2, 120, (length,), generator=generator).tolist() for length in lengths]


if __name__ == "__main__":
    run(parser(), main)
