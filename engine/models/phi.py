"""phi-1, 1.5 and 2: parallel branches after one layer norm; a part of each head is rotated; biases everywhere, in the
head, too.
"""

from engine.models.config_reader import Keys
from engine.models.decoder import Decoder, DecoderConfig, decoder_config
from engine.models.family import Family


def configure(keys: Keys) -> DecoderConfig:
    """x += attention(norm(x)) + mlp(norm(x))."""
    head_dim = keys.integer("head_dim", keys.integer("hidden_size") // keys.integer("num_attention_heads"))
    return decoder_config(
        keys,
        defaults={
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "hidden_act": "gelu_new",
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        norm="layer",
        parallel=True,
        one_norm=True,
        rotary_size=int(keys.rotary_fraction(0.5) * head_dim),
        qkv_bias=True,
        out_bias=True,
        gated=False,
        mlp_bias=True,
        head_bias=True,
    )


NAMES = {
    "embed": ("model.embed_tokens",),
    "layers.*.attention_norm_before": ("model.layers.*.input_layernorm",),
    "layers.*.attention.qkv": tuple(f"model.layers.*.self_attn.{x}_proj" for x in "qkv"),
    "layers.*.attention.out": ("model.layers.*.self_attn.dense",),
    "layers.*.mlp.up": ("model.layers.*.mlp.fc1",),
    "layers.*.mlp.down": ("model.layers.*.mlp.fc2",),
    "norm": ("model.final_layernorm",),
    "head": ("lm_head",),
}

FAMILY = Family(
    "phi",
    configure,
    Decoder,
    NAMES,
    key_names={"rms_norm_eps": "layer_norm_eps"},
    checkpoints=("microsoft/phi-1", "microsoft/phi-1_5", "microsoft/phi-2"),
)
