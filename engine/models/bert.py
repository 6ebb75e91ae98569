"""BERT and what was trained from it to embed texts: MiniLM, bge, e5, gte."""

from engine.layers.mlp import ACTIVATIONS
from engine.models.config_reader import Keys
from engine.models.encoder import Encoder, EncoderConfig
from engine.models.family import Family
from engine.runtime.errors import BareloopError


def configure(keys: Keys) -> EncoderConfig:
    """Positions are absolute. A checkpoint's head for masked words is not used, so nothing is tied."""
    keys.choice("position_embedding_type", ("absolute",), "absolute")
    if keys.flag("is_decoder", False):
        raise BareloopError("config.json: is_decoder = true is not implemented for model_type 'bert'")
    hidden_size, heads = keys.integer("hidden_size"), keys.integer("num_attention_heads")
    if hidden_size % heads:
        raise BareloopError(f"config.json: hidden_size = {hidden_size} is not a multiple of {heads} attention heads")
    fields = keys.common({}) | {
        "tie_word_embeddings": False,
        "max_position_embeddings": keys.integer("max_position_embeddings", 512),
        "intermediate_size": keys.integer("intermediate_size"),
        "num_heads": heads,
        "norm_eps": keys.number("layer_norm_eps", 1e-12),
        "activation": keys.choice("hidden_act", tuple(ACTIVATIONS), "gelu"),
        "num_types": keys.integer("type_vocab_size", 2),
    }
    return EncoderConfig(**fields)


LAYER = "encoder.layer.*"
NAMES = {
    "embed": ("embeddings.word_embeddings",),
    "positions": ("embeddings.position_embeddings",),
    "types": ("embeddings.token_type_embeddings",),
    "norm": ("embeddings.LayerNorm",),
    "layers.*.attention.qkv": tuple(f"{LAYER}.attention.self.{name}" for name in ("query", "key", "value")),
    "layers.*.attention.out": (f"{LAYER}.attention.output.dense",),
    "layers.*.attention_norm": (f"{LAYER}.attention.output.LayerNorm",),
    "layers.*.mlp.up": (f"{LAYER}.intermediate.dense",),
    "layers.*.mlp.down": (f"{LAYER}.output.dense",),
    "layers.*.mlp_norm": (f"{LAYER}.output.LayerNorm",),
}
# What checkpoints have beside the encoder: a buffer, and the heads of BERT's two tasks.
POOLER = ("pooler.dense.weight", "pooler.dense.bias")
HEADS = (
    *("cls.predictions.bias", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"),
    *("cls.predictions.transform.dense.weight", "cls.predictions.transform.dense.bias"),
    *("cls.predictions.transform.LayerNorm.weight", "cls.predictions.transform.LayerNorm.bias"),
    *("cls.seq_relationship.weight", "cls.seq_relationship.bias"),
)

FAMILY = Family(
    "bert",
    configure,
    Encoder,
    NAMES,
    ignored=("embeddings.position_ids", *POOLER, *HEADS),
    # The prefix of BertForMaskedLM and others, and the names that the first checkpoints have for norms.
    aliases=((r"^bert\.", ""), (r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
    checkpoints=(
        "sentence-transformers/all-MiniLM-L6-v2",
        "BAAI/bge-small-en-v1.5",
        "intfloat/e5-small-v2",
        "thenlper/gte-small",
    ),
)
