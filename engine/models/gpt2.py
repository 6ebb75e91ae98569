"""GPT-2 and GPT-Neo: learned positions, layer norms, a plain MLP, biases, tied heads.

They differ in how weights are stored (GPT-2's matrices are transposed), in how scores are scaled, and in GPT-Neo's
local layers.
"""

from typing import Any

from engine.models.config_reader import Keys
from engine.models.decoder import Decoder, DecoderConfig, decoder_config
from engine.models.family import Family, Layout
from engine.runtime.errors import BareloopError, quote


def _configure(keys: Keys, max_length: int, **choices: Any) -> DecoderConfig:
    """The common part; `choices` are those of one family."""
    return decoder_config(
        keys,
        defaults={
            "max_position_embeddings": max_length,
            "intermediate_size": 4 * keys.integer("hidden_size"),
            "rms_norm_eps": 1e-5,
            "hidden_act": "gelu_new",
            "bos_token_id": 50_256,
            "eos_token_id": 50_256,
            "tie_word_embeddings": True,
        },
        num_kv_heads=keys.integer("num_attention_heads"),
        norm="layer",
        rope=None,
        out_bias=True,
        gated=False,
        mlp_bias=True,
        **choices,
    )


def configure(keys: Keys) -> DecoderConfig:
    """Scores may be divided by the layer's number. `reorder_and_upcast_attn` changes only the order of operations."""
    hidden_size, heads = keys.integer("hidden_size"), keys.integer("num_attention_heads")
    if hidden_size < heads:
        raise BareloopError(f"config.json: n_embd = {hidden_size} is smaller than n_head = {heads}")
    scale = (hidden_size // heads) ** -0.5 if keys.flag("scale_attn_weights", True) else 1.0
    by_layer = keys.flag("scale_attn_by_inverse_layer_idx", False)
    scales = tuple(scale / (layer + 1) if by_layer else scale for layer in range(keys.layers()))
    return _configure(keys, 1024, scales=scales, qkv_bias=True)


def configure_neo(keys: Keys) -> DecoderConfig:
    """Scores are not scaled. `attention_types` names the layers with a window of `window_size` tokens."""
    layers, window = keys.layers(), keys.integer("window_size", 256)
    types = _expand(keys.get("attention_types", [[["global", "local"], layers // 2]]))
    if len(types) != layers or any(kind not in ("global", "local") for kind in types):
        raise BareloopError(f"config.json: attention_types must name {layers} layers, each one of global, local")
    windows = tuple(window if kind == "local" else None for kind in types)
    return _configure(keys, 2048, scales=(1.0,) * layers, windows=windows)


def _expand(types: Any) -> list[str]:
    """[[["global", "local"], 2]] -> global, local, global, local."""
    try:
        return [kind for kinds, times in types for kind in kinds * times]
    except (TypeError, ValueError):
        raise BareloopError(f"config.json: attention_types = {quote(types)} is not a list of [kinds, times]") from None


def _names(attention: str, qkv: tuple[str, ...], out: str) -> dict[str, tuple[str, ...]]:
    layer = "transformer.h.*"
    return {
        "embed": ("transformer.wte",),
        "positions": ("transformer.wpe",),
        "layers.*.attention_norm_before": (f"{layer}.ln_1",),
        "layers.*.attention.qkv": tuple(f"{layer}.{attention}.{name}" for name in qkv),
        "layers.*.attention.out": (f"{layer}.{attention}.{out}",),
        "layers.*.mlp_norm_before": (f"{layer}.ln_2",),
        "layers.*.mlp.up": (f"{layer}.mlp.c_fc",),
        "layers.*.mlp.down": (f"{layer}.mlp.c_proj",),
        "norm": ("transformer.ln_f",),
        "head": ("lm_head",),
    }


TRANSPOSED = Layout(
    shape=lambda shape: shape[::-1],
    load=lambda tensor, _: tensor.transpose(0, -1),
    save=lambda tensor, _: tensor.transpose(0, -1),
)  # a bias, of one dimension, does not change
MATRICES = ("attention.qkv", "attention.out", "mlp.up", "mlp.down")
WITHOUT_PREFIX = ((r"^(?=(wte|wpe|h|ln_f)\.)", "transformer."),)

FAMILY = Family(
    "gpt2",
    configure,
    Decoder,
    _names("attn", ("c_attn",), "c_proj"),
    ignored=(".attn.bias", ".attn.masked_bias"),
    layouts={f"layers.*.{matrix}": TRANSPOSED for matrix in MATRICES},
    aliases=WITHOUT_PREFIX,
    key_names={
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
        "intermediate_size": "n_inner",
        "rms_norm_eps": "layer_norm_epsilon",
        "hidden_act": "activation_function",
    },
    checkpoints=("openai-community/gpt2", "openai-community/gpt2-xl", "distilbert/distilgpt2"),
)
NEO = Family(
    "gpt_neo",
    configure_neo,
    Decoder,
    _names("attn.attention", ("q_proj", "k_proj", "v_proj"), "out_proj"),
    ignored=(".attn.attention.bias", ".attn.attention.masked_bias"),
    aliases=WITHOUT_PREFIX,
    key_names={
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "rms_norm_eps": "layer_norm_epsilon",
        "hidden_act": "activation_function",
    },
    checkpoints=("EleutherAI/gpt-neo-125m", "EleutherAI/gpt-neo-1.3B", "EleutherAI/gpt-neo-2.7B"),
)
