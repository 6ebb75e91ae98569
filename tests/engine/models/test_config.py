"""config.json: the keys of old and new versions of transformers, defaults, and invalid values."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.layers.rope import RopeConfig
from engine.models import configure
from engine.runtime.errors import BareloopError
from engine.runtime.files import read_json

BASE = {
    "model_type": "llama",
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
LLAMA3 = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def test_keys_of_old_and_new_transformers_give_the_same_config():
    old = {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **LLAMA3}, "torch_dtype": "bfloat16"}
    new = {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}, "dtype": "bfloat16"}
    nested = {"rope_parameters": {"full_attention": new["rope_parameters"]}, "dtype": "torch.bfloat16"}
    configs = [configure(BASE | keys)[1] for keys in (old, new, nested)]
    assert configs[0] == configs[1] == configs[2]
    assert configs[0].dtype == "bfloat16"
    assert configs[0].rope.type == "llama3"
    assert configs[0].rope.original_max_position_embeddings == 8192


def test_absent_keys_have_the_defaults_of_transformers():
    _, config = configure(BASE)
    assert (config.num_kv_heads, config.head_dim, config.max_position_embeddings) == (4, 4, 2048)
    assert (config.bos_token_id, config.eos_token_ids) == (1, (2,))
    assert (config.norm_eps, config.activation, config.tie_word_embeddings) == (1e-6, "silu", False)
    assert config.rope == RopeConfig(max_position_embeddings=2048, original_max_position_embeddings=2048)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "olmo2"])
def test_a_family_s_defaults_equal_those_of_its_transformers_class(family):
    from transformers import AutoConfig

    keys = {"num_attention_heads": 32, "hidden_size": 64}
    reference = AutoConfig.for_model(family, **keys)
    config = configure(BASE | keys | {"model_type": family})[1]
    assert config.max_position_embeddings == reference.max_position_embeddings
    assert config.num_kv_heads == reference.num_key_value_heads
    assert config.head_dim == (getattr(reference, "head_dim", None) or 2)
    assert config.norm_eps == reference.rms_norm_eps
    assert config.tie_word_embeddings == reference.tie_word_embeddings
    assert config.bos_token_id == reference.bos_token_id
    assert config.eos_token_ids == (() if reference.eos_token_id is None else (reference.eos_token_id,))


def test_attention_windows_follow_sliding_window_and_layer_types():
    def windows(**keys: object) -> tuple[int | None, ...]:
        return configure(BASE | {"num_key_value_heads": 4} | keys)[1].windows  # type: ignore[attr-defined, no-any-return]

    assert windows(model_type="mistral") == (4096,) * 4
    assert windows(model_type="mistral", sliding_window=None) == (None,) * 4
    assert windows(model_type="qwen2", sliding_window=8) == (None,) * 4
    sliding = {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8}
    assert windows(**(sliding | {"sliding_window": None}), max_window_layers=0) == (None,) * 4
    assert windows(**sliding, max_window_layers=3) == (None, None, None, 8)
    assert windows(**sliding, max_window_layers=0) == (8,) * 4
    types = ["sliding_attention", "full_attention"] * 2
    assert windows(**sliding, layer_types=types) == (8, None, 8, None)


def test_eos_token_id_may_be_a_number_a_list_or_null():
    assert configure(BASE | {"eos_token_id": [1, 2]})[1].eos_token_ids == (1, 2)
    assert configure(BASE | {"eos_token_id": 3})[1].eos_token_ids == (3,)
    null = configure(BASE | {"model_type": "qwen2", "num_key_value_heads": None})[1]
    assert null.num_kv_heads == 4
    assert configure(BASE | {"eos_token_id": None})[1].eos_token_ids == ()


def test_an_unsupported_quantization_is_refused_by_its_method():
    with pytest.raises(BareloopError, match=r"quantization_config \(bitsandbytes\) is not supported"):
        configure(BASE | {"quantization_config": {"quant_method": "bitsandbytes"}})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"vocab_size": None}, "has no vocab_size"),
        ({"hidden_size": "big"}, "hidden_size = 'big' is not a whole number"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "4 attention heads are not a multiple of 3"),
        ({"head_dim": 5}, "head_dim = 5 is odd"),
        ({"hidden_act": "laplace"}, "hidden_act = 'laplace' is not implemented; known: silu"),
        ({"rms_norm_eps": -1}, "rms_norm_eps = -1 is not a positive number"),
        ({"attention_bias": 1}, "neither true nor false"),
        ({"eos_token_id": "2"}, "neither a token id"),
        ({"dtype": "float8"}, "dtype = 'float8'"),
        ({"rope_scaling": 3}, "not an object"),
        ({"rope_parameters": {"rope_type": "linear", "factor": "two"}}, "factor = 'two'"),
        ({"rope_parameters": {"a": {"rope_theta": 1.0}, "b": {"rope_theta": 2.0}}}, "differ by layer type"),
        (
            {
                "rope_parameters": {"rope_type": "default", "rope_theta": 5.0},
                "rope_scaling": {"type": "linear", "factor": 4.0},
            },
            "rope_parameters and rope_scaling differ",
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 1}},
            "must be 2 or more",
        ),
        ({"rope_theta": 1.0}, "must exceed 1"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps"),
        ({"hidden_size": 2**31}, "hidden_size"),
        ({"model_type": "mistral", "num_key_value_heads": 4, "mlp_bias": True}, "mlp_bias = True is not implemented"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"model_type": "qwen2", "layer_types": ["full_attention"]}, "layer_types must name 4 layers"),
    ],
)
def test_an_invalid_value_is_refused_with_its_key(keys, message):
    with pytest.raises(BareloopError, match=message):
        configure(BASE | keys)


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 2**40), st.floats(), st.text(max_size=4),
    st.lists(st.integers(), max_size=3), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip


KEYS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings", "tie_word_embeddings", "hidden_act"),
    *("rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters", "attention_bias", "mlp_bias"),
    *("sliding_window", "use_sliding_window", "max_window_layers", "layer_types", "quantization_config"),
    *("eos_token_id", "bos_token_id", "dtype", "torch_dtype", "initializer_range", "model_type"),
)


@settings(max_examples=300)
@given(
    st.sampled_from(["llama", "mistral", "qwen2", "qwen3", "olmo2"]),
    st.sampled_from(KEYS),
    VALUES,
)
def test_a_random_value_is_accepted_or_refused_in_one_line(model_type, key, value):
    try:
        configure(BASE | {"model_type": model_type} | {key: value})
    except BareloopError as error:
        assert "\n" not in str(error)


def test_a_file_that_is_not_a_json_object_is_refused(tmp_path):
    path = tmp_path / "x.json"
    for text, message in (("[1]", "has a list"), ("{", "not JSON"), ("[" * 10**5, "not JSON")):
        path.write_text(text)
        with pytest.raises(BareloopError, match=message):
            read_json(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(BareloopError, match="not JSON"):
        read_json(path)
    with pytest.raises(BareloopError, match="cannot read"):
        read_json(tmp_path / "none.json")


@pytest.mark.parametrize(("family", "name"), [("phi", "partial_rotary_factor"), ("gpt_neox", "rotary_pct")])
def test_a_rotary_fraction_in_rope_parameters_overrides_the_top_level_key(family, name):
    raw = {
        "model_type": family,
        "vocab_size": 8,
        "hidden_size": 40,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    nested = {"partial_rotary_factor": 0.4, "rope_theta": 1e4, "rope_type": "default"}
    sizes = [configure(raw | keys)[1].rotary_size for keys in ({name: 0.5}, {name: 0.5, "rope_parameters": nested})]
    assert sizes == [10, 8]
