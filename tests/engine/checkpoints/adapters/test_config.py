"""adapter_config.json: what is not plain LoRA is refused in one line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engine import LLM
from engine.checkpoints.adapters.config import CONFIG, WEIGHTS, LoraConfig, read_adapter_config
from engine.checkpoints.adapters.files import add_adapters, save_adapter
from engine.runtime.errors import BareloopError

REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({"peft_type": "IA3"}, "peft_type = 'IA3' is not implemented; LORA is"),
    "dora": ({"use_dora": True}, "DoRA"),
    "bias": ({"bias": "all"}, "bias = 'all' trains biases"),
    "modules_to_save": ({"modules_to_save": ["lm_head"]}, "modules_to_save = .* is not implemented; merge it in peft"),
    "pissa": ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa' changes the base model"),
    "unknown": ({"trainable_token_indices": [1]}, "trainable_token_indices = .* is not implemented"),
    "rank 0": ({"r": 0}, "rank 0 is none"),
    "rank": ({"r": "8"}, "r = '8' is not a whole number"),
    "alpha": ({"lora_alpha": []}, r"lora_alpha = \[\] is not a number"),
    "huge alpha": ({"lora_alpha": 10**400}, "lora_alpha = 10.* is too large for a number"),
    "huge dropout": ({"lora_dropout": 10**400}, "lora_dropout = 10.* is too large for a number"),
    "alpha pattern": ({"alpha_pattern": {"q_proj": "x"}}, "alpha_pattern of q_proj = 'x' is not a number"),
    "dropout": ({"lora_dropout": 1.0}, "dropout is 1.0"),
    "no targets": ({"target_modules": None}, "target_modules names no modules"),
    "nothing": (
        {"target_modules": ["c_attn"]},
        r"'c_attn'.* is no linear layer of this llama model; it has: down_proj",
    ),
    "embedding": (
        {"target_modules": ["embed_tokens"]},
        "embed_tokens is of type Embedding; only linear layers are adapted",
    ),
    "regex": ({"target_modules": "(q_proj"}, r"regular expression '\(q_proj' is invalid"),
    "regex in its place": (
        {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "(?i)layers"},
        r"regular expression '\(\?i\)layers' is invalid: global flags",
    ),
    "regex of ranks": ({"rank_pattern": {"(?i)q_proj": 4}}, r"'\(\?i\)q_proj' is invalid"),
    "named group": (
        {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "(?P<index>layers)"},
        "is invalid: redefinition of group name",
    ),
    "long regex": ({"target_modules": "q" * 1001}, "has 1,001 characters; use 1,000 at most"),
    "shape": ({"r": 4}, r"misshapen \(.*lora_A.weight is float32 \[3, 48\], not float \[4, 48\]"),
    "missing": ({"target_modules": ["q_proj", "gate_proj", "up_proj"]}, "6 missing"),
    "unexpected": ({"target_modules": ["q_proj"]}, "6 unexpected"),
    "no layer": (
        {"target_modules": ["q_proj"], "layers_to_transform": [99]},
        r"layers_to_transform = \[99\] selects no layer; this llama model has layers 0 to 2",
    ),
    "layers": ({"target_modules": "all-linear", "layers_to_transform": [1]}, "needs a list of target_modules"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_not_plain_lora_for_this_model_is_refused_in_one_line(case, edit):
    keys, line = REFUSALS[case]
    with pytest.raises(BareloopError, match=line):
        LLM.load(edit(**keys), "cpu")


def test_null_is_the_default_and_flags_are_read_as_in_python(adapter):
    raw = json.loads((adapter / CONFIG).read_text())
    keys = {"lora_alpha": None, "lora_dropout": None, "bias": None, "use_rslora": 1, "revision": "v2"}
    (adapter / CONFIG).write_text(json.dumps(raw | keys))
    config = read_adapter_config(adapter)
    assert (config.alpha, config.dropout, config.rslora) == (8.0, 0.0, True)


def test_a_config_survives_saving_and_names_no_module_that_is_not_adapted(draw_tiny, tmp_path):
    llm = LLM.load(draw_tiny("gpt2").folder, "cpu")
    config = LoraConfig(rank=2, alpha=3.5, targets=r".*\.h\.1\.attn\.c_proj", rslora=True, base="gpt2")
    add_adapters(llm.model, llm.family, config)
    save_adapter(llm.model, llm.family, config, tmp_path, {"README.md": b"tuned"})
    saved = read_adapter_config(tmp_path)
    assert saved.targets == ("1.attn.c_proj",)
    assert (saved.rank, saved.alpha, saved.rslora, saved.base) == (2, 3.5, True, "gpt2")
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", CONFIG, WEIGHTS}
