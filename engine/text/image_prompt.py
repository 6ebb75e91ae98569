"""What stands for an image in a prompt: control tokens around its tiles' places, as Idefics3 and SmolVLM have them."""

from __future__ import annotations

from engine.runtime.errors import BareloopError
from engine.text.tokenizer import Tokenizer

IMAGE = "<image>"  # in the text of a chat template: one image; in a prompt: one vector
AROUND = "<fake_token_around_image>"
WHOLE = "<global-img>"


def image_prompt(tokenizer: Tokenizer, rows: int, columns: int, tokens_per_tile: int, image_token_id: int) -> list[int]:
    """Token ids of an image of rows x columns tiles and the whole; 0 x 0: the whole alone.

    `image_token_id` is at each vector's place, `tokens_per_tile` of them per tile, in the order of the tiles.
    """
    ids: list[int] = []
    for token in tokenizer.encode(image_text(rows, columns), add_special_tokens=False):
        ids += [token] * (tokens_per_tile if token == image_token_id else 1)
    if ids.count(image_token_id) != (rows * columns + 1) * tokens_per_tile:
        raise BareloopError(f"the tokenizer has no {IMAGE} with id {image_token_id}, as the model; use its own")
    return ids


def image_text(rows: int, columns: int) -> str:
    """The text of an image in a prompt, with one `<image>` for all vectors of a tile. Rows and columns count from 1."""
    lines = [
        "".join(f"{AROUND}<row_{row}_col_{column}>{IMAGE}" for column in range(1, columns + 1)) + "\n"
        for row in range(1, rows + 1)
    ]
    return "".join([*lines, "\n" if lines else "", f"{AROUND}{WHOLE}{IMAGE}{AROUND}"])
