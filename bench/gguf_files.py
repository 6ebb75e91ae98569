"""Convert a checkpoint to GGUF, without its tokenizer, so that llama.cpp computes with the same weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench.shapes import cache_folder
from engine.checkpoints.pickles import find_tensors
from engine.checkpoints.safetensors import open_checkpoint
from engine.cli.progress import Progress
from engine.runtime.errors import BareloopError
from engine.runtime.files import read_json

FORMATS = ("BF16", "Q8_0", "Q4_0")
ARCHITECTURES = ("llama", "qwen2", "olmo2")  # architectures with a known tensor mapping


def gguf_file(folder: Path, weight_format: str) -> Path:
    """The GGUF file of a checkpoint in a format, written to the cache on first use."""
    config = read_json(folder / "config.json")
    if config["model_type"] not in ARCHITECTURES:
        raise BareloopError(f"no GGUF conversion for {config['model_type']}; supported: {', '.join(ARCHITECTURES)}")
    stamp = "".join(f"{path.name} {path.stat().st_mtime_ns}" for path in sorted(folder.glob("*.safetensors")))
    key = hashlib.sha256(f"{folder.resolve()} {stamp}".encode()).hexdigest()[:12]
    path = cache_folder().with_name("gguf") / f"{folder.name}-{key}-{weight_format}.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".part")
        _write(folder, config, weight_format, draft)
        draft.replace(path)
    return path


def _write(folder: Path, config: dict[str, Any], weight_format: str, path: Path) -> None:
    import gguf

    architecture = config["model_type"]
    writer = gguf.GGUFWriter(path, architecture)
    heads, kv_heads = config["num_attention_heads"], config.get("num_key_value_heads", config["num_attention_heads"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base((config.get("rope_parameters") or config).get("rope_theta", 10_000.0))
    writer.add_layer_norm_rms_eps(config.get("rms_norm_eps", 1e-6))
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    factors = _rope_factors(config, head_dim)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors.numpy())
    kind = gguf.GGMLQuantizationType[weight_format]
    names = gguf.get_tensor_name_map(_architecture(architecture), config["num_hidden_layers"])
    stored = open_checkpoint(find_tensors(folder, False))
    with Progress(f"{folder.name} as {weight_format}", len(stored)) as progress:
        for name, weight in _weights(stored):
            if architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
                weight = _interleaved(weight, heads if "q_proj" in name else kv_heads)  # noqa: PLW2901
            numbers = weight.float().numpy()
            matrix = weight.dim() == 2
            content = gguf.quants.quantize(numbers, kind) if matrix else numbers
            new_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
            assert new_name is not None  # of all that these architectures have
            writer.add_tensor(new_name, content, raw_dtype=kind if matrix else None)
            progress.advance(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _rope_factors(config: dict[str, Any], head_dim: int) -> torch.Tensor | None:
    """By what llama.cpp divides the frequencies of a llama3 scaling [head_dim / 2]; None without a scaling."""
    from engine.layers.rope import frequency_divisors
    from engine.models import configure
    from engine.models.decoder import DecoderConfig

    parsed = configure(config)[1]
    assert isinstance(parsed, DecoderConfig)
    if parsed.rope is None or parsed.rope.type == "default":
        return None
    if parsed.rope.type != "llama3":
        raise BareloopError(f"no GGUF for rope_type {parsed.rope.type}; there is one for default and llama3")
    return frequency_divisors(parsed.rope, head_dim)


def _architecture(name: str) -> Any:
    import gguf

    return next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)


def _weights(stored: Any) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in stored.items():
        weight = torch.empty(tensor.shape, dtype=tensor.dtype)
        tensor.read_into(weight)
        yield name, weight


def _interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp's llamas turn neighbours, Hugging Face's the halves of a head."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
