"""GGUF metadata -> the content of a config.json, from which `engine.models.configure` reads the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from engine.checkpoints.gguf.metadata import Metadata, shortest
from engine.layers.rope import RopeConfig, frequency_divisors
from engine.models.config_reader import MAX_LAYERS
from engine.runtime.errors import BareloopError, quote

EPSILON, LAYER_EPSILON = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"


def config_json(
    metadata: Metadata, tensors: Mapping[str, tuple[int, ...]], rope_factors: list[float]
) -> dict[str, Any]:
    """The content of the config.json of a Hugging Face folder with the same model, without special tokens.

    `tensors`: the shape of every tensor. `rope_factors`: the values of rope_freqs.weight, or empty.
    Raises `BareloopError` for an architecture, or a choice, that is not implemented.
    """
    if metadata.architecture not in ARCHITECTURES:
        raise BareloopError(
            f"{metadata.path} has the architecture {quote(metadata.entries.get('general.architecture'))}, "
            f"which is not implemented; known: {', '.join(ARCHITECTURES)}"
        )
    config: dict[str, Any] = {
        "vocab_size": tensors.get("token_embd.weight", (0,))[0],
        "hidden_size": metadata.integer("embedding_length"),
        "num_hidden_layers": metadata.integer("block_count", most=MAX_LAYERS),
        "max_position_embeddings": metadata.integer("context_length"),
        "tie_word_embeddings": "output.weight" not in tensors,
        "dtype": "bfloat16",
    }
    if metadata.architecture != "mamba":
        heads_kv = metadata.get("attention.head_count_kv", metadata.get("attention.head_count"))
        if isinstance(heads_kv, list) and len(set(heads_kv)) == 1:
            heads_kv = heads_kv[0]
        config |= {
            "intermediate_size": metadata.integer("feed_forward_length"),
            "num_attention_heads": metadata.integer("attention.head_count"),
            "num_key_value_heads": heads_kv,
        }
    model_type, architecture, specific = ARCHITECTURES[metadata.architecture]
    config |= {"model_type": model_type, "architectures": [architecture], **specific(metadata, tensors)}
    if rope_factors and "rope_theta" in config.get("rope_parameters", {}):
        config["rope_parameters"] = llama3_rope(config, rope_factors, metadata)
    if "rope_parameters" in config and "partial_rotary_factor" not in config["rope_parameters"]:
        rotated, size = metadata.get("rope.dimension_count"), head_size(config)
        if rotated not in (None, size):
            raise metadata.error(f"rope.dimension_count = {quote(rotated)} is not the size of a head, {size}")
    metadata.check_mathematics()
    return {key: value for key, value in config.items() if value is not None}


def head_size(config: Mapping[str, Any]) -> int:
    """The size of a head by a config.json."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def rope(metadata: Metadata, base: float = 10_000.0) -> dict[str, Any]:
    """The rotary embedding: base, and linear or YaRN scaling."""
    theta = metadata.number("rope.freq_base", base)
    if theta is None or theta <= 1:
        raise metadata.error(f"rope.freq_base = {quote(theta)} is not above 1")
    kind = metadata.get("rope.scaling.type", "linear")
    factor = metadata.number("rope.scaling.factor", metadata.number("rope.scale_linear"))
    if kind == "none" or factor is None or (kind == "linear" and factor == 1):
        return {"rope_type": "default", "rope_theta": theta}
    original = metadata.get("rope.scaling.original_context_length")
    values = {"rope_type": kind, "rope_theta": theta, "factor": factor, "original_max_position_embeddings": original}
    return {key: value for key, value in values.items() if value is not None}


def llama3_rope(config: Mapping[str, Any], factors: list[float], metadata: Metadata) -> dict[str, Any]:
    """The `llama3` scaling that has these frequency divisors, with its usual `low_freq_factor` 1, `high_freq_factor` 4.

    Raises `BareloopError` if the divisors are of another kind.
    """
    theta, size = config["rope_parameters"]["rope_theta"], 2 * len(factors)
    expected = head_size(config) // 2
    if len(factors) != expected or not all(1 <= factor < math.inf for factor in factors):
        raise BareloopError(f"{metadata.path}: rope_freqs.weight does not have {expected} divisors of 1 or more")
    largest = max(factors)
    wavelengths = [2 * math.pi * theta ** (2 * i / size) for i in range(len(factors))]
    # Between the ends 1 / divisor = (1 - s) / largest + s, where s = (original / wavelength - 1) / 3.
    between = [
        wavelength * (1 + 3 * (1 / factor - 1 / largest) / (1 - 1 / largest))
        for wavelength, factor in zip(wavelengths, factors, strict=True)
        if 1 < factor < largest
    ]
    if between:
        original = round(between[0])
    else:  # any length between the wavelengths that are kept and those that are stretched gives the same divisors
        shortest_length = 4 * max((w for w, factor in zip(wavelengths, factors, strict=True) if factor == 1), default=1)
        longest_length = min((w for w, factor in zip(wavelengths, factors, strict=True) if factor > 1), default=2**30)
        original = round(math.sqrt(shortest_length * longest_length))

    scaling = RopeConfig(theta, "llama3", original_max_position_embeddings=original, factor=shortest(largest))
    if not torch.allclose(frequency_divisors(scaling, size), torch.tensor(factors), rtol=1e-3):
        raise BareloopError(
            f"{metadata.path}: rope_freqs.weight is not a scaling of Llama 3's kind; others are unknown"
        )
    return {
        "rope_type": scaling.type,
        "rope_theta": theta,
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": original,
    }


Shapes = Mapping[str, tuple[int, ...]]


def llama(metadata: Metadata, tensors: Shapes) -> dict[str, Any]:
    """Llama, Mistral, TinyLlama, SmolLM."""
    return {
        "rms_norm_eps": metadata.number(EPSILON),
        "head_dim": metadata.get("attention.key_length"),
        "attention_bias": "blk.0.attn_output.bias" in tensors,
        "mlp_bias": "blk.0.ffn_down.bias" in tensors,
        "rope_parameters": rope(metadata),
    }


def qwen2(metadata: Metadata, _: Shapes) -> dict[str, Any]:
    """Qwen2, Qwen2.5."""
    return {"rms_norm_eps": metadata.number(EPSILON), "rope_parameters": rope(metadata)}


def qwen3(metadata: Metadata, _: Shapes) -> dict[str, Any]:
    """Qwen3."""
    return {**qwen2(metadata, _), "head_dim": metadata.get("attention.key_length", 128)}


def olmo2(metadata: Metadata, tensors: Shapes) -> dict[str, Any]:
    """OLMo-2. OLMo 3 has the same name, and a window."""
    if window := metadata.get("attention.sliding_window"):
        raise metadata.error(f"attention.sliding_window = {quote(window)} (OLMo 3) is not implemented")
    return qwen2(metadata, tensors)


def gemma(metadata: Metadata, _: Shapes) -> dict[str, Any]:
    """Gemma."""
    return {
        "rms_norm_eps": metadata.number(EPSILON),
        "head_dim": metadata.get("attention.key_length", 256),
        "rope_parameters": rope(metadata),
    }


def gemma2(metadata: Metadata, _: Shapes) -> dict[str, Any]:
    """Gemma 2. The scale of the scores is not stored: head size, except for the 27B model (as in llama.cpp)."""
    head_dim = metadata.get("attention.key_length", 256)
    width = metadata.integer("embedding_length") // metadata.integer("attention.head_count")
    return {
        **gemma(metadata, _),
        "query_pre_attn_scalar": width if metadata.integer("block_count") == 46 else head_dim,
        "sliding_window": metadata.get("attention.sliding_window", 4096),
        "attn_logit_softcapping": metadata.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": metadata.number("final_logit_softcapping", 30.0),
    }


def gemma3(metadata: Metadata, _: Shapes) -> dict[str, Any]:
    """Gemma 3, text. Layers with a window have another base, 10,000, without scaling, as in llama.cpp.

    Ollama's files have keys of their own for the bases, a cap that does not apply, and no scaling: the models with a
    window of 131,072 tokens were trained with a linear scaling of 8.
    """
    layers = metadata.integer("block_count", most=MAX_LAYERS)
    head_dim = metadata.get("attention.key_length", 256)
    width = metadata.integer("embedding_length") // metadata.integer("attention.head_count")
    full = rope(metadata, metadata.number("rope.global.freq_base", 1e6) or 1e6)
    if metadata.get("rope.global.freq_base") is not None and metadata.integer("context_length") >= 131_072:
        full |= {"rope_type": "linear", "factor": 8.0}
    local = metadata.number("rope.local.freq_base", metadata.number("rope.freq_base_swa", 10_000.0))
    window = metadata.get("attention.sliding_window")
    pattern = metadata.get("attention.sliding_window_pattern", 6)
    if isinstance(pattern, int) and pattern > 0:
        pattern = [(layer + 1) % pattern != 0 for layer in range(layers)]
    if not isinstance(pattern, list) or len(pattern) < layers:
        raise metadata.error(
            f"attention.sliding_window_pattern = {quote(pattern)} is neither a number nor {layers} flags"
        )
    windowed = [bool(window) and bool(flag) for flag in pattern[:layers]]
    return {
        **gemma(metadata, _),
        "query_pre_attn_scalar": width if layers == 62 else head_dim,  # 62: the 27B model
        "sliding_window": window or None,
        "layer_types": ["sliding_attention" if flag else "full_attention" for flag in windowed],
        "final_logit_softcapping": None if window else metadata.number("final_logit_softcapping"),
        "rope_parameters": {
            "full_attention": full,
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        },
    }


def phi2(metadata: Metadata, _: Shapes) -> dict[str, Any]:
    """phi-1, 1.5 and 2."""
    head_dim = metadata.integer("embedding_length") // metadata.integer("attention.head_count")
    rotated = metadata.integer("rope.dimension_count", head_dim)
    return {
        "layer_norm_eps": metadata.number(LAYER_EPSILON),
        "tie_word_embeddings": False,
        "rope_parameters": {**rope(metadata), "partial_rotary_factor": rotated / head_dim},
    }


def gptneox(metadata: Metadata, tensors: Shapes) -> dict[str, Any]:
    """GPT-NeoX, Pythia."""
    head_dim = metadata.integer("embedding_length") // metadata.integer("attention.head_count")
    rotated = metadata.integer("rope.dimension_count", head_dim)
    return {
        "num_key_value_heads": None,
        "layer_norm_eps": metadata.number(LAYER_EPSILON),
        "use_parallel_residual": bool(metadata.get("use_parallel_residual", True)),
        "attention_bias": "blk.0.attn_qkv.bias" in tensors,
        "rope_parameters": {**rope(metadata), "partial_rotary_factor": rotated / head_dim},
    }


def gpt2(metadata: Metadata, tensors: Shapes) -> dict[str, Any]:
    """GPT-2. Converters may store the tied head as `output` once more; then it is found to be equal."""
    return {
        "n_embd": metadata.integer("embedding_length"),
        "n_layer": metadata.integer("block_count"),
        "n_head": metadata.integer("attention.head_count"),
        "n_inner": metadata.integer("feed_forward_length"),
        "n_positions": tensors.get("position_embd.weight", (metadata.integer("context_length"),))[0],
        "layer_norm_epsilon": metadata.number(LAYER_EPSILON),
        "tie_word_embeddings": True,
        **dict.fromkeys(
            ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
        ),
        "max_position_embeddings": None,
    }


def mamba(metadata: Metadata, tensors: Shapes) -> dict[str, Any]:
    """Mamba."""
    inner = metadata.integer("ssm.inner_size")
    return {
        "max_position_embeddings": None,
        "expand": inner // metadata.integer("embedding_length"),
        "intermediate_size": inner,
        "conv_kernel": metadata.integer("ssm.conv_kernel"),
        "state_size": metadata.integer("ssm.state_size"),
        "time_step_rank": metadata.integer("ssm.time_step_rank"),
        "layer_norm_epsilon": metadata.number(EPSILON),
        "use_conv_bias": "blk.0.ssm_conv1d.bias" in tensors,
        "use_bias": "blk.0.ssm_in.bias" in tensors,
    }


# general.architecture -> model_type, class in transformers, the keys of config.json beyond the common ones.
ARCHITECTURES: dict[str, tuple[str, str, Callable[[Metadata, Shapes], dict[str, Any]]]] = {
    "llama": ("llama", "LlamaForCausalLM", llama),
    "qwen2": ("qwen2", "Qwen2ForCausalLM", qwen2),
    "qwen3": ("qwen3", "Qwen3ForCausalLM", qwen3),
    "gemma": ("gemma", "GemmaForCausalLM", gemma),
    "gemma2": ("gemma2", "Gemma2ForCausalLM", gemma2),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM", gemma3),
    "olmo2": ("olmo2", "Olmo2ForCausalLM", olmo2),
    "phi2": ("phi", "PhiForCausalLM", phi2),
    "gpt2": ("gpt2", "GPT2LMHeadModel", gpt2),
    "gptneox": ("gpt_neox", "GPTNeoXForCausalLM", gptneox),
    "mamba": ("mamba", "MambaForCausalLM", mamba),
}
