"""Damaged config.json files: every family builds its model, or refuses the config in one line."""

from __future__ import annotations

import copy
import math
import random
from typing import Any

import pytest
import torch

from engine.cli.inspection import SAMPLE
from engine.models import FAMILIES, configure
from engine.runtime.errors import BareloopError

VALUES: tuple[Any, ...] = (
    *(None, 0, 1, -1, 3, 10**9, 10**30, 0.0, -0.5, 0.5, 1e300, math.nan, math.inf, True, False, "", "silu", "x" * 200),
    *([], [0], [None], {}, {"a": 1}, [[["global"], 0]], [["x"]]),
)
ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 1e4}
OPTIONAL = (
    *("n_inner", "window_size", "attention_types", "time_step_rank", "expand", "state_size", "conv_kernel", "dtype"),
    *("scale_attn_weights", "bos_token_id", "eos_token_id", "partial_rotary_factor", "rope_scaling", "rotary_pct"),
    *("query_pre_attn_scalar", "sliding_window_pattern", "rms_norm_eps", "layer_norm_epsilon", "quantization_config"),
    *("max_position_embeddings", "n_positions", "attention_hidden_size", "context_length", "initializer_range"),
)
MAX_SIZE = 10_000  # hidden_size, vocab_size and 100 * layers of the models that are built


def base(family: str) -> dict[str, Any]:
    """A valid config of a family."""
    names = FAMILIES[family].key_names
    config = {names.get(key, key): value for key, value in SAMPLE.items()}
    config |= {"model_type": family, "rope_parameters": ROPE, "sliding_window": 4, "tie_word_embeddings": True}
    config |= {"layer_types": ["full_attention"] * SAMPLE["num_hidden_layers"]}
    if family in ("smolvlm", "idefics3"):
        text = config | {"model_type": "llama"}
        vision = {"hidden_size": 64, "num_attention_heads": 2, "image_size": 32, "patch_size": 8, "num_channels": 3}
        vision |= {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "num_hidden_layers": 2}
        return {
            "model_type": family, "text_config": text, "vision_config": vision, "image_token_id": 3, "scale_factor": 2
        }  # fmt: skip
    return {"model_type": family, "text_config": config} if family == "gemma3" else config


def check(config: dict[str, Any]) -> None:
    """Build the model. Any exception but a `BareloopError` of one line fails the test."""
    try:
        family, parsed = configure(config)
    except BareloopError as error:
        assert "\n" not in str(error) and len(str(error)) < 600
        return
    if max(parsed.hidden_size, parsed.vocab_size, parsed.num_layers * 100) < MAX_SIZE:
        try:
            with torch.device("meta"):
                family.build(parsed)
        except BareloopError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_value_of_every_key_is_built_or_refused(family):
    for part in ("", "text_config", "vision_config"):
        for key in base(family).get(part, ()) if part else base(family):
            for value in VALUES:
                config = copy.deepcopy(base(family))
                (config[part] if part else config)[key] = value
                check(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_random_mutations_are_built_or_refused(family):
    generator = random.Random(family)
    for _ in range(40):
        config = copy.deepcopy(base(family))
        inner = config.get("text_config", config)
        for _ in range(generator.randint(1, 3)):
            key = generator.choice([*inner, *OPTIONAL])
            if key == "model_type":
                continue
            if generator.random() < 0.2:
                inner.pop(key, None)
            elif key == "rope_parameters" and isinstance(inner.get(key), dict):
                inner[key] = {**inner[key], generator.choice([*ROPE, "type"]): generator.choice(VALUES)}
            else:
                inner[key] = generator.choice(VALUES)
        check(config)


def test_a_hidden_size_smaller_than_the_number_of_heads_is_refused():
    for config in ({"model_type": "gpt2", "n_embd": 4, "n_head": 6}, {"model_type": "gpt2", "n_embd": 0}):
        with pytest.raises(BareloopError, match="n_embd = "):
            configure({**base("gpt2"), **config})
