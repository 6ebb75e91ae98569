"""From picture files to logits, beside transformers' processor and model in float64."""

from __future__ import annotations

import io

import pytest
import torch

from engine import LLM
from tests.engine.models.vision.tiny import picture, tiny_checkpoint

TOLERANCE = 2e-5


@pytest.mark.parametrize("splits", [True, False])
@pytest.mark.parametrize("model_type", ["smolvlm", "idefics3"])
@pytest.mark.parametrize("sizes", [[(70, 45)], [(33, 129), (31, 17)]], ids=["one image", "two images"])
def test_ids_and_logits_of_a_conversation_with_images_equal_those_of_transformers(tmp_path, model_type, splits, sizes):
    from PIL import Image

    tiny = tiny_checkpoint(tmp_path / "model", model_type=model_type, splits=splits)
    files = [picture(*size, seed) for seed, size in enumerate(sizes)]
    parts = [{"type": "image", "image": data} for data in files]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "What is in this picture?"}]}]
    text = tiny.processor.apply_chat_template(messages, add_generation_prompt=True)
    images = [Image.open(io.BytesIO(data)) for data in files]
    expected = tiny.processor(text=text, images=images, return_tensors="pt")

    llm = LLM.load(tiny.folder, device="cpu", dtype="float64")
    ids = llm.chat_template.encode(messages)
    assert llm.images is not None
    assert llm.images.placeholders(ids) == expected["input_ids"][0].tolist()
    logits = tiny.logits(expected["input_ids"][0].tolist(), expected["pixel_values"][0])
    assert (llm.logits(ids).double() - logits).abs().max() <= TOLERANCE * max(1.0, float(logits.abs().max()))


def test_the_image_changes_the_reply(tmp_path):
    tiny = tiny_checkpoint(tmp_path / "model")
    llm = LLM.load(tiny.folder, device="cpu", dtype="float32")
    question = {"type": "text", "text": "What is it?"}
    images = [{"type": "image", "image": picture(40, 40, seed)} for seed in (1, 2)]
    conversations = [[{"role": "user", "content": [image, question]}] for image in images]
    first, second = (llm.logits(llm.chat_template.encode(messages)) for messages in conversations)
    assert first.shape == second.shape
    assert not torch.allclose(first[-1], second[-1])
