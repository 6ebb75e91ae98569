"""Tiny random SmolVLM and Idefics3 checkpoints on disk, with all files of a real one; transformers' copies."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

TEXTS = [
    "What is in this picture?\n\nA cat on a red mat, and a dog in the garden.",
    "User: Describe the image.\n\nAssistant: There are two trees and a small house.\n\n",
    "Which colour is the car? It is blue. How many people are there? There are 12 people.",
]
# The order of SmolVLM's tokenizer: a few special tokens are the first ids, those of images are the last.
FIRST_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LAST_TOKENS = [
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
    *("<fake_token_around_image>", "<image>", "<end_of_utterance>"),
]
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
TEXT = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


@dataclass(frozen=True)
class TinyVLM:
    """A folder, and transformers' model (float64) and processor of it."""

    folder: Path
    reference: Any
    tile: int  # side of a tile in pixels
    tokens_per_tile: int

    @cached_property
    def tokenizer(self) -> Any:
        """transformers' tokenizer."""
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(self.folder)

    @cached_property
    def processor(self) -> Any:
        """transformers' processor; Idefics3's, as SmolVLM's needs a package for videos and does the same to images."""
        from transformers import Idefics3Processor
        from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

        images = Idefics3ImageProcessorPil.from_pretrained(self.folder)
        return Idefics3Processor(images, self.tokenizer, self.tokens_per_tile, chat_template=CHAT_TEMPLATE)

    @property
    def image_token_id(self) -> int:
        """Id of `<image>`."""
        return self.reference.config.image_token_id

    def logits(self, ids: list[int], pixels: torch.Tensor | None = None) -> torch.Tensor:
        """transformers' logits [time, vocab], float64. `pixels` [T, 3, S, S]: of all tiles, in the order of `ids`."""
        images = {} if pixels is None else {"pixel_values": pixels.double()[None]}
        with torch.no_grad():
            return self.reference(torch.tensor([ids]), **images).logits[0]


def tiny_checkpoint(
    folder: Path,
    *,
    model_type: str = "smolvlm",
    seed: int = 0,
    tile: int = 32,
    patch: int = 8,
    scale: int = 2,
    splits: bool = True,
    longest_edge: int | None = None,
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
    preprocessor: dict[str, Any] | None = None,
    **settings: Any,
) -> TinyVLM:
    """Create a random checkpoint. An image has (tile / patch / scale)² = 4 vectors a tile.

    `splits`: whether images are split into tiles. `longest_edge` (4 tiles): to which images are resized. `text`,
    `vision`, `preprocessor`: other values in the configurations; `settings`: at the top of config.json.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    folder.mkdir(parents=True, exist_ok=True)
    vocab = write_tokenizer(folder)
    vision = VISION | {"image_size": tile, "patch_size": patch} | (vision or {})
    config = AutoConfig.for_model(
        model_type,
        text_config={"model_type": "llama", "vocab_size": len(vocab)} | TEXT | (text or {}),
        vision_config=vision,
        scale_factor=scale,
        image_token_id=vocab["<image>"],
        **settings,
    )
    torch.manual_seed(seed)
    config._attn_implementation = "eager"
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4) if parameter.dim() >= 2 else parameter.add_(0.1 * torch.randn_like(parameter))
    model.generation_config.eos_token_id = [vocab["<end_of_utterance>"]]
    model.save_pretrained(folder)
    side = {"longest_edge": tile}
    images = {
        "do_convert_rgb": True,
        "do_image_splitting": splits,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "Idefics3ImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "max_image_size": side,
        "processor_class": "Idefics3Processor",
        "resample": 1,
        "rescale_factor": 0.00392156862745098,
        "size": {"longest_edge": longest_edge or 4 * tile},
    } | (preprocessor or {})
    tokens = (tile // patch // scale) ** 2
    _write(folder / "preprocessor_config.json", images)
    _write(folder / "processor_config.json", {"image_seq_len": tokens, "processor_class": "Idefics3Processor"})
    _write(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    return TinyVLM(folder, model.double(), tile, tokens)


def write_tokenizer(folder: Path) -> dict[str, int]:
    """Write a byte-level BPE tokenizer with SmolVLM's special tokens: -> its vocabulary."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=FIRST_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in LAST_TOKENS])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<end_of_utterance>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        "chat_template": CHAT_TEMPLATE,
    }
    _write(folder / "tokenizer_config.json", config)
    return tokenizer.get_vocab()


def picture(width: int, height: int, seed: int = 0, kind: str = "PNG") -> bytes:
    """A file with a seeded picture in RGB: a gradient with noise, so that no two tiles are the same."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    plane = (255 * (rows / height + columns / width) / 2)[..., None] * rng.uniform(0.5, 1, 3)
    pixels = np.clip(plane + rng.normal(0, 20, (height, width, 3)), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def pixels(tiles: int, side: int, seed: int = 0) -> torch.Tensor:
    """Random pixels of tiles [T, 3, side, side], from -1 to 1, float32."""
    return torch.rand(tiles, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
