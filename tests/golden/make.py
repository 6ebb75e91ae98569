"""Make families.json: logits of tiny models with weights from a formula, by transformers in float64.

    python tests/golden/make.py

The tests that read it need neither transformers nor a network.
"""

import json
import math
from pathlib import Path

import torch

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MORE = {
    "llama": {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}, "attention_bias": True},
    "mistral": {"sliding_window": 4},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 8},
    "olmo2": {},
    "olmo": {"clip_qkv": 0.5},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 6},
    "gemma3_text": {"head_dim": 8, "sliding_window": 4, "sliding_window_pattern": 2},
    "phi": {"hidden_size": 32, "num_key_value_heads": 4},
    "gpt_neox": {"hidden_size": 32},
    "gpt2": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "mamba": {"state_size": 4, "intermediate_size": 48},
    "rwkv": {},
}
IDS = [3, 17, 29, 8, 8, 31, 5, 39, 11]


def formula(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The same weights on every machine: a sine wave whose phase comes from the tensor's name."""
    phase = sum(name.encode()) % 97
    wave = torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * 1.7 + phase).view(shape)
    return 1 + wave / 4 if "norm" in name else wave / 3


def main() -> None:
    """Write families.json beside this file."""
    from transformers import AutoConfig, AutoModelForCausalLM

    golden = {}
    for family, more in MORE.items():
        config = AutoConfig.for_model(family, **(SHAPE | more))
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float64, attn_implementation="eager").eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                on_hub = name.replace("lm_head", "embed_out") if family == "gpt_neox" else name
                parameter.copy_(formula(on_hub, tuple(parameter.shape)))
            logits = model(torch.tensor([IDS])).logits[0]
        raw = {name: value for name, value in config.to_diff_dict().items() if name != "transformers_version"}
        golden[family] = {"config": raw, "ids": IDS, "last_logits": [round(x, 9) for x in logits[-1].tolist()]}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in golden.items())
    Path(__file__).with_name("families.json").write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    main()
