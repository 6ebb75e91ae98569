"""Write GGUF files from random Hugging Face models by the rules of llama.cpp's convert_hf_to_gguf.py."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import numpy
import torch
from safetensors.torch import load_file

from tests.engine.quant.blocks import random_blocks

# Family -> architecture in GGUF.
ARCHITECTURES = {
    **dict.fromkeys(("llama", "mistral"), "llama"),
    **{name: name for name in ("qwen2", "qwen3", "gemma", "gemma2", "olmo2", "gpt2", "mamba")},
    "gemma3_text": "gemma3",
    "phi": "phi2",
    "gpt_neox": "gptneox",
}


def convert(
    folder: Path,
    path: Path,
    kind: str = "F32",
    tokenizer: dict[str, Any] | None = None,
    kinds: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """Write the model of a folder to a GGUF file. Matrices are quantized to `kind`; vectors stay float32.

    `kinds`: other types, by parts of the tensors' names. Types that the package does not quantize get random blocks.
    `tokenizer`: metadata entries of a tokenizer; without them the vocabulary has made-up tokens.
    """
    config = json.loads((folder / "config.json").read_text())
    family = config["model_type"]
    architecture = ARCHITECTURES[family]
    tensors = load_file(folder / "model.safetensors")
    writer = gguf.GGUFWriter(path, architecture)
    add_shape(writer, config, architecture)
    for name, value in (tokenizer or byte_tokenizer(config["vocab_size"])).items():
        add(writer, name, value)
    names = gguf.get_tensor_name_map(
        architecture_key(architecture), config.get("num_hidden_layers") or config["n_layer"]
    )
    if (factors := rope_factors(config)) is not None:
        writer.add_tensor("rope_freqs.weight", factors)
    for name, tensor in tensors.items():
        new_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if new_name is None:
            assert name.endswith(("attention.bias", "masked_bias", "inv_freq", "attn.bias")), name
            continue
        values = change(new_name, tensor.float(), config, architecture).contiguous().numpy()
        chosen = next((kinds[part] for part in kinds if part in new_name), kind)
        quantization = gguf.GGMLQuantizationType[chosen]
        if values.ndim == 2 and values.shape[1] % gguf.GGML_QUANT_SIZES[quantization][0] == 0:
            random = random_blocks(quantization, *values.shape) if chosen.endswith("_K") else None
            blocks = gguf.quants.quantize(values, quantization) if random is None else random.numpy()
            writer.add_tensor(new_name, blocks, raw_dtype=quantization)
        else:
            writer.add_tensor(new_name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def change(name: str, tensor: torch.Tensor, config: dict[str, Any], architecture: str) -> torch.Tensor:
    """What the converter changes in a tensor."""
    if architecture == "llama" and "attn_q." in name:
        return interleave(tensor, config["num_attention_heads"])
    if architecture == "llama" and "attn_k." in name:
        return interleave(tensor, config["num_key_value_heads"])
    if architecture.startswith("gemma") and name.endswith("norm.weight"):
        return tensor + 1
    if architecture == "gpt2" and name.endswith(
        ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")
    ):
        return tensor.T
    if architecture == "gptneox" and "attn_qkv" in name:
        heads = torch.unflatten(tensor, 0, (config["num_attention_heads"], 3, -1))
        return torch.cat([heads[:, i].flatten(0, 1) for i in range(3)])
    if name.endswith("ssm_a"):
        return -tensor.exp()
    if name.endswith("ssm_conv1d.weight"):
        return tensor.squeeze(1)
    return tensor


def interleave(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp rotates neighbouring coordinates of a head, Hugging Face's models its two halves."""
    return torch.unflatten(tensor, 0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def add_shape(writer: gguf.GGUFWriter, config: dict[str, Any], architecture: str) -> None:
    """The metadata about shapes."""
    writer.add_context_length(config.get("max_position_embeddings") or config.get("n_positions") or 2**20)
    writer.add_embedding_length(config.get("hidden_size") or config["n_embd"])
    writer.add_block_count(config.get("num_hidden_layers") or config["n_layer"])
    if architecture == "mamba":
        writer.add_feed_forward_length(0)
        writer.add_head_count(0)
        writer.add_ssm_conv_kernel(config["conv_kernel"])
        writer.add_ssm_inner_size(config["intermediate_size"])
        writer.add_ssm_state_size(config["state_size"])
        writer.add_ssm_time_step_rank(config["time_step_rank"])
        writer.add_layer_norm_rms_eps(config["layer_norm_epsilon"])
        return
    heads = config.get("num_attention_heads") or config["n_head"]
    writer.add_head_count(heads)
    width = config.get("hidden_size") or config["n_embd"]
    inner = config.get("n_inner") if architecture == "gpt2" else config["intermediate_size"]
    writer.add_feed_forward_length(inner or 4 * width)
    if "num_key_value_heads" in config:
        writer.add_head_count_kv(config["num_key_value_heads"])
    if config.get("head_dim"):
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    if architecture in ("phi2", "gptneox", "gpt2"):
        writer.add_layer_norm_eps(config.get("layer_norm_eps") or config["layer_norm_epsilon"])
    else:
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if architecture == "gptneox":
        writer.add_parallel_residual(config["use_parallel_residual"])
    if architecture in ("gemma2", "gemma3"):
        writer.add_sliding_window(config["sliding_window"])
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    rope = config.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    if rope:
        writer.add_rope_freq_base(rope["rope_theta"])
        writer.add_rope_dimension_count(
            int(rope.get("partial_rotary_factor", 1.0) * (config.get("head_dim") or width // heads))
        )
        if rope["rope_type"] in ("linear", "yarn"):
            writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
            writer.add_rope_scaling_factor(rope["factor"])
        if rope["rope_type"] == "yarn":
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def rope_factors(config: dict[str, Any]) -> numpy.ndarray[Any, Any] | None:
    """The divisors of the frequencies for Llama 3's scaling, as the converter computes them."""
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type") != "llama3":
        return None
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    low, high, original = rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
    factors = []
    for i in range(0, size, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (i / size)
        smooth = (original / wavelength - low) / (high - low)
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(rope["factor"])
        else:
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return numpy.array(factors, dtype=numpy.float32)


def byte_tokenizer(size: int) -> dict[str, Any]:
    """A byte-level vocabulary without merges; the ids after the control tokens and the bytes are unused."""
    from engine.text.detokenizer import byte_table

    tokens = ["<pad>", "<s>", *byte_table()][: size - 1]
    tokens += [f"<unused{index}>" for index in range(len(tokens), size - 1)] + ["</s>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in ("<pad>", "<s>", "</s>") else 1 for token in tokens],
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": size - 1,
        "tokenizer.ggml.padding_token_id": 0,
    }


def add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Add a metadata entry of any type."""
    if isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif value:
        writer.add_array(key, value)


def architecture_key(name: str) -> Any:
    """gguf's constant of an architecture."""
    return next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)
