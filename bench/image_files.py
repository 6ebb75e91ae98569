"""The files beside the weights of a random vision-language checkpoint: tokenizer, chat template, image processor."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENS = (
    *("<global-img>", "<fake_token_around_image>", "<image>", "<end_of_utterance>"),
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] | capitalize }}:"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def add_image_tokens(tokenizer: Tokenizer) -> int:
    """Add SmolVLM's tokens for images: -> the id of `<image>`."""
    tokenizer.add_special_tokens(list(TOKENS))
    number = tokenizer.token_to_id("<image>")
    assert number is not None
    return number


def image_files(config: Mapping[str, Any], files: Mapping[str, bytes]) -> dict[str, bytes]:
    """`files` of the tokenizer with SmolVLM's kind of chat template, and the files of the image processor."""
    vision = config["vision_config"]
    tile = vision["image_size"]
    tokenizer = json.loads(files["tokenizer_config.json"]) | {"chat_template": CHAT_TEMPLATE}
    tokens = (tile // vision["patch_size"] // config["scale_factor"]) ** 2
    processor = {
        **dict.fromkeys(("do_convert_rgb", "do_image_splitting", "do_normalize", "do_pad"), True),
        **dict.fromkeys(("do_rescale", "do_resize"), True),
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "image_processor_type": "Idefics3ImageProcessor",
        "processor_class": "Idefics3Processor",
        "max_image_size": {"longest_edge": tile},
        "resample": 1,
        "rescale_factor": 1 / 255,
        "size": {"longest_edge": 4 * tile},
    }
    return {
        **files,
        "tokenizer_config.json": json.dumps(tokenizer, indent=2).encode(),
        "preprocessor_config.json": json.dumps(processor, indent=2).encode(),
        "processor_config.json": json.dumps({"image_seq_len": tokens, "processor_class": "Idefics3Processor"}).encode(),
    }


def picture(side: int, seed: int) -> bytes:
    """A seeded square picture as a PNG file."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:side, 0:side] / side
    angle, colours = rng.uniform(0, 6.28), rng.uniform(0.3, 1, 3)
    plane = np.sin(20 * (rows * np.sin(angle) + columns * np.cos(angle)))[..., None] * 127 * colours + 128
    file = io.BytesIO()
    Image.fromarray(plane.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()
