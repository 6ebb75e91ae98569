"""SmolVLM and Idefics3: a SigLIP tower whose vectors replace embeddings of a Llama.

Every tile of an image becomes `tokens_per_tile` vectors, which stand in the prompt at the places of the image token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from engine.layers.linear import Linear
from engine.layers.mlp import ACTIVATIONS
from engine.models import llama
from engine.models.config import Traits
from engine.models.config_reader import MAX_LAYERS, Keys
from engine.models.decoder import Decoder, DecoderConfig
from engine.models.family import Cost, Family, Layout
from engine.models.vision.siglip import CHANNELS, Connector, VisionConfig, VisionTower, tile_costs
from engine.runtime.errors import BareloopError, quote

MAX_IMAGE_SIZE = 2**14
TILES_TOGETHER = 2  # in one pass of the tower, which reads its weights once for both: a tile takes 15 % less time
TEXT_DEFAULTS = {  # of transformers' LlamaConfig: a text_config may leave them out
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
NO_TEXT_CONFIG = {"rms_norm_eps": 1e-5}  # what transformers has in place of an absent text_config


@dataclass(frozen=True, kw_only=True)
class SmolVLMConfig(DecoderConfig):
    """A Llama's shape with that of its vision tower. `scale_factor`²: number of patches that become one vector."""

    vision: VisionConfig
    scale_factor: int

    @property
    def tokens_per_tile(self) -> int:
        return (self.vision.side // self.scale_factor) ** 2

    def traits(self) -> Traits:
        traits = super().traits()
        return replace(traits, mixing=f"{traits.mixing}; SigLIP for images")


class SmolVLM(Decoder):
    """A decoder that takes vectors of images. The tower is dense in every weight format."""

    config: SmolVLMConfig

    def __init__(self, config: SmolVLMConfig) -> None:
        super().__init__(config)
        self.vision_tower = VisionTower(config.vision)
        self.connector = Connector(config.vision, config.scale_factor, config.hidden_size)
        for part in (self.vision_tower, self.connector):
            for module in part.modules():
                if isinstance(module, Linear):
                    module.exact = True

    def image_vectors(self, pixels: Tensor) -> Tensor:
        """Vectors [T, tokens_per_tile, hidden] of tiles [T, 3, S, S], which are normalized, in any dtype and place.

        They are computed `TILES_TOGETHER` at a time, so that an image's vectors do not depend on other images.
        """
        weight = self.connector.projection.weight
        groups = (tiles.to(weight.device, self.dtype) for tiles in torch.split(pixels, TILES_TOGETHER))
        return torch.cat([self.connector(self.vision_tower(tiles)) for tiles in groups])

    def tile_costs(self) -> Iterator[Cost]:
        """Parameters, bytes and FLOPs of computing the vectors of one tile, by part."""
        return tile_costs(self.vision_tower, self.connector)

    def costs(self, context: int) -> Iterator[Cost]:
        yield from super().costs(context)
        yield Cost("vision tower", sum(cost.parameters for cost in self.tile_costs()), 0, 0)


def configure(keys: Keys) -> SmolVLMConfig:
    """Read `text_config` and `vision_config`. Whether the head is tied is said at the top."""
    raw = keys.raw
    outer = {name: raw[name] for name in ("bos_token_id", "eos_token_id") if name in raw}
    dtypes = {name: raw[name] for name in ("dtype", "torch_dtype") if raw.get(name) is not None}
    text = _part(raw, "text_config")
    defaults = TEXT_DEFAULTS if "text_config" in raw else TEXT_DEFAULTS | NO_TEXT_CONFIG
    if dtypes:
        text = {name: value for name, value in text.items() if name not in ("dtype", "torch_dtype")}
    inner = Keys({"model_type": "llama", **defaults, **outer, **text, **dtypes})
    with _in_part("text_config"):
        inner.choice("model_type", ("llama",), "llama")
        config = llama.configure(inner)
        inner.refuse_unread()
    vision, scale = _vision_config(_part(raw, "vision_config")), keys.integer("scale_factor", 2, most=MAX_IMAGE_SIZE)
    if vision.side % scale:
        raise BareloopError(
            f"config.json: scale_factor = {scale} does not divide the {vision.side} patches along a side of a tile"
        )
    image_token_id = keys.integer("image_token_id", 128_257, least=0)
    if image_token_id >= config.vocab_size:
        raise BareloopError(
            f"config.json: image_token_id = {image_token_id} is beyond the vocabulary of {config.vocab_size:,} tokens"
        )
    fields = vars(config) | {
        "model_type": str(keys.get("model_type")),
        "tie_word_embeddings": keys.flag("tie_word_embeddings", False),
        "raw": raw,
        "image_token_id": image_token_id,
    }
    return SmolVLMConfig(**fields, vision=vision, scale_factor=scale)


def _vision_config(raw: Mapping[str, Any]) -> VisionConfig:
    keys = Keys(raw)
    with _in_part("vision_config"):
        config = VisionConfig(
            hidden_size=keys.integer("hidden_size", 1152),
            intermediate_size=keys.integer("intermediate_size", 3072),
            num_layers=keys.integer("num_hidden_layers", 12, most=MAX_LAYERS),
            num_heads=keys.integer("num_attention_heads", 16),
            image_size=keys.integer("image_size", 224, most=MAX_IMAGE_SIZE),
            patch_size=keys.integer("patch_size", 32, most=MAX_IMAGE_SIZE),
            activation=keys.choice("hidden_act", tuple(ACTIVATIONS), "gelu_pytorch_tanh"),
            norm_eps=keys.number("layer_norm_eps", 1e-6),
        )
        if keys.integer("num_channels", CHANNELS) != CHANNELS:
            raise BareloopError(f"config.json: num_channels = {raw['num_channels']} is not implemented; {CHANNELS} is")
        if config.hidden_size % config.num_heads:
            raise BareloopError(
                f"config.json: hidden_size = {config.hidden_size} is not a multiple of {config.num_heads} "
                "attention heads"
            )
        if not config.side:
            raise BareloopError(
                f"config.json: patch_size = {config.patch_size} exceeds image_size = {config.image_size}"
            )
        keys.refuse_unread()
    return config


def _part(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = raw.get(name)
    if part is None:
        return {}
    if not isinstance(part, dict):
        raise BareloopError(f"config.json: {name} = {quote(part)} is not an object")
    return part


@contextmanager
def _in_part(name: str) -> Iterator[None]:
    """Name the part of config.json in errors about its keys."""
    try:
        yield
    except BareloopError as error:
        raise BareloopError(str(error).replace("config.json", f"{name} of config.json", 1)) from None


def _convolution(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) == 1:
        return shape  # a bias
    side = isqrt(shape[1] // CHANNELS)
    return (shape[0], CHANNELS, side, side)


# The first product of the tower: in the checkpoint a convolution whose stride is the side of a patch.
PATCHES = Layout(
    shape=_convolution,
    load=lambda tensor, config: tensor.flatten(min(1, tensor.dim() - 1)),  # noqa: ARG005
    save=lambda tensor, config: tensor.view(_convolution(tuple(tensor.shape))),  # noqa: ARG005
)

VISION = "model.vision_model"
LAYER = f"{VISION}.encoder.layers.*"
LANGUAGE = {
    ours: tuple(name.replace("model.", "model.text_model.", 1) for name in names) for ours, names in llama.NAMES.items()
}
NAMES = LANGUAGE | {
    "vision_tower.patches": (f"{VISION}.embeddings.patch_embedding",),
    "vision_tower.positions": (f"{VISION}.embeddings.position_embedding",),
    "vision_tower.layers.*.attention_norm": (f"{LAYER}.layer_norm1",),
    "vision_tower.layers.*.attention.qkv": tuple(f"{LAYER}.self_attn.{x}_proj" for x in "qkv"),
    "vision_tower.layers.*.attention.out": (f"{LAYER}.self_attn.out_proj",),
    "vision_tower.layers.*.mlp_norm": (f"{LAYER}.layer_norm2",),
    "vision_tower.layers.*.mlp.up": (f"{LAYER}.mlp.fc1",),
    "vision_tower.layers.*.mlp.down": (f"{LAYER}.mlp.fc2",),
    "vision_tower.norm": (f"{VISION}.post_layernorm",),
    "connector.projection": ("model.connector.modality_projection.proj",),
}


def _family(model_type: str, *checkpoints: str) -> Family:
    return Family(
        model_type,
        configure,
        SmolVLM,
        NAMES,
        layouts={"vision_tower.patches": PATCHES},
        checkpoints=checkpoints,
        unadapted=("patch_embedding",),
        untrained=("model.vision_model.", "model.connector."),
    )


FAMILY = _family("smolvlm", "HuggingFaceTB/SmolVLM2-2.2B-Instruct", "HuggingFaceTB/SmolVLM2-500M-Video-Instruct")
IDEFICS3 = _family("idefics3", "HuggingFaceTB/SmolVLM-256M-Instruct", "HuggingFaceM4/Idefics3-8B-Llama3")
