"""Random checkpoints with the shapes of real models, in the user's cache folder, so that benchmarks need no download.

Their tokenizer is the demo model's, so that a chat can run; their output is meaningless.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.image_files import add_image_tokens, image_files
from engine.checkpoints import embedded
from engine.checkpoints.gguf.source import OLLAMA, gguf_files
from engine.checkpoints.hub import find_model
from engine.runtime.errors import BareloopError, quote
from engine.runtime.files import files_key, user_cache

QWEN2 = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "max_position_embeddings": 32_768,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        **QWEN2,
        "vocab_size": 4096,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "qwen2.5-0.5b": {
        **QWEN2,
        "vocab_size": 151_936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "qwen2.5-1.5b": {
        **QWEN2,
        "vocab_size": 151_936,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "llama-3.2-1b": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 131_072,
        "rope_theta": 500_000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "rms_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "tie_word_embeddings": True,
    },
    "olmo-2-1b": {
        "model_type": "olmo2",
        "architectures": ["Olmo2ForCausalLM"],
        "vocab_size": 100_352,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "max_position_embeddings": 4096,
        "rope_theta": 500_000.0,
        "rms_norm_eps": 1e-6,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "tie_word_embeddings": False,
    },
    "qwen2.5-7b": {
        **QWEN2,
        "vocab_size": 152_064,
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
    "gpt2-124m": {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": 50_257,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_positions": 1024,
        "bos_token_id": 0,
        "eos_token_id": 1,
    },
    "mamba-130m": {
        "model_type": "mamba",
        "architectures": ["MambaForCausalLM"],
        "vocab_size": 50_280,
        "hidden_size": 768,
        "num_hidden_layers": 24,
        "state_size": 16,
        "max_position_embeddings": 2048,
        "bos_token_id": 0,
        "eos_token_id": 1,
    },
    "rwkv-169m": {
        "model_type": "rwkv",
        "architectures": ["RwkvForCausalLM"],
        "vocab_size": 50_277,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "context_length": 1024,
        "bos_token_id": 0,
        "eos_token_id": 1,
    },
}

SMOLVLM = {"model_type": "idefics3", "architectures": ["Idefics3ForConditionalGeneration"], "scale_factor": 4}
SHAPES["smolvlm-256m"] = {
    **SMOLVLM,
    "text_config": {
        "model_type": "llama",
        "vocab_size": 49_280,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "rope_theta": 100_000.0,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 1,
    },
    "vision_config": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 512,
        "patch_size": 16,
    },
}
SHAPES["tiny-vision"] = {
    **SMOLVLM,
    "text_config": {
        key: value for key, value in SHAPES["tiny"].items() if key not in ("tie_word_embeddings", "architectures")
    }
    | {"model_type": "llama"},
    "vision_config": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 4,
    },
}


def checkpoint(name: str) -> Path:
    """The folder of a shape's checkpoint in bfloat16, created on first use; or that of a user's model.

    SmolLM2 and other GGUF models are written as a Hugging Face folder once, so that every engine can read them.
    """
    if name in SHAPES:
        folder = cache_folder() / name
        if not folder.exists():
            write(SHAPES[name], folder)
        return folder
    if name != embedded.SMOLLM2 and not name.startswith(OLLAMA) and not Path(name).exists():
        known = ", ".join((*SHAPES, embedded.SMOLLM2))
        raise BareloopError(f"unknown shape {quote(name)}; use {known} or a model's path")
    described = find_model(name)
    files = gguf_files(described)
    if not files:
        return described
    folder = cache_folder() / f"{files[0].stem[:60]}-{files_key(files)}"
    if not folder.exists():
        from engine import LLM

        LLM.load(described, "cpu", "bfloat16", "none").save(folder)
    return folder


def write(config: dict[str, Any], folder: Path) -> None:
    """Write seeded random weights. Tokens that the tokenizer lacks have zero logits, so that they are rarely chosen."""
    import torch

    from engine import LLM
    from engine.checkpoints.saving import save_model
    from engine.demo import vocabulary

    tokenizer = vocabulary.build(0)
    takes_images = "vision_config" in config
    if takes_images:
        config = {**config, "image_token_id": add_image_tokens(tokenizer)}
    llm = LLM.from_config(config, seed=0, device="cpu", dtype="bfloat16")
    with torch.no_grad():
        for name in {"embed.weight", "head.weight"} & dict(llm.model.named_parameters()).keys():
            llm.model.get_parameter(name)[tokenizer.get_vocab_size() :] = 0
    files = vocabulary.files(tokenizer, llm.max_length)
    if takes_images:
        files = image_files(config, files)
    save_model(llm.model, llm.family, {**config, "dtype": "bfloat16"}, folder, files)


def cache_folder() -> Path:
    """The folder of the checkpoints."""
    return user_cache("shapes")
