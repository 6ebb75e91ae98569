"""Tiles and pixels: equal to transformers' image processor, bit for bit."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.models.vision.preprocessing import ImageProcessor
from engine.runtime.errors import BareloopError

FILE = "preprocessor_config.json"
ODD_SIZES = [(1, 1), (1, 300), (300, 1), (2, 5000), (37, 91), (91, 37), (32, 32), (33, 32), (32, 33), (127, 129)]
SETTINGS: dict[str, dict[str, Any]] = {
    "split": {},
    "unsplit": {"do_image_splitting": False},
    "an edge that is no multiple of a tile": {"size": {"longest_edge": 100}},
    "an odd edge": {"size": {"longest_edge": 97}},
    "an edge smaller than a tile": {"size": {"longest_edge": 20}},
    "an edge above the limit": {"size": {"longest_edge": 5000}, "max_image_size": {"longest_edge": 512}},
    "another filter": {"resample": 3},
    "another scale and mean": {"rescale_factor": 0.01, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.3, 0.2, 0.1]},
    "not scaled": {"do_rescale": False},
    "not normalized": {"do_normalize": False},
}


def reference(settings: dict[str, Any]) -> Any:
    """transformers' image processor, of the kind that needs no torchvision."""
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    return Idefics3ImageProcessorPil(**settings)


def image(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise, in which every pixel counts."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", SETTINGS)
def test_tiles_and_pixels_are_those_of_transformers_bit_for_bit(tmp_path, name):
    settings = {"max_image_size": {"longest_edge": 32}, "size": {"longest_edge": 128}} | SETTINGS[name]
    (tmp_path / FILE).write_text(json.dumps(settings))
    processor, expected_of = ImageProcessor.load(tmp_path), reference(settings)
    rng = np.random.default_rng(1)
    sizes = ODD_SIZES + [tuple(map(int, rng.integers(1, 400, 2))) for _ in range(20)]
    for width, height in [(1, 300)] if "above" in name else sizes:
        picture = image(width, height)
        expected = expected_of([[picture]], return_tensors="np", return_row_col_info=True)
        tiles = processor.split(picture)
        pixels = np.stack([processor.normalize(tile) for tile in tiles.pixels])
        assert (tiles.rows, tiles.columns) == (expected["rows"][0][0], expected["cols"][0][0])
        assert processor.shape(width, height) == (tiles.rows, tiles.columns)
        assert pixels.dtype == np.float32
        np.testing.assert_array_equal(pixels, expected["pixel_values"][0])


def test_tiles_have_the_pixels_of_the_checkpoints_of_smolvlm():
    processor = ImageProcessor(tile_size=512, longest_edge=2048)
    expected = reference({"max_image_size": {"longest_edge": 512}, "size": {"longest_edge": 2048}})
    picture = image(640, 427)
    tiles = processor.split(picture)
    assert (tiles.rows, tiles.columns, tiles.pixels.shape) == (3, 4, (13, 512, 512, 3))
    pixels = expected([[picture]], return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal([processor.normalize(tile) for tile in tiles.pixels], pixels)


def test_the_processor_of_a_checkpoint_is_read_as_transformers_reads_it(tmp_path):
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    outer = {"max_image_size": {"longest_edge": 16}, "size": {"longest_edge": 64}}
    inner = {"max_image_size": {"longest_edge": 32}, "size": {"longest_edge": 96}}
    (tmp_path / FILE).write_text(json.dumps(outer))
    for nested, expected in ({}, 16), ({"image_processor": inner}, 32):
        (tmp_path / "processor_config.json").write_text(json.dumps({"image_seq_len": 9, **nested}))
        processor = ImageProcessor.load(tmp_path)
        theirs = Idefics3ImageProcessorPil.from_pretrained(tmp_path)
        assert processor.tile_size == theirs.max_image_size["longest_edge"] == expected
        assert (processor.longest_edge, processor.image_seq_len) == (theirs.size["longest_edge"], 9)
    assert ImageProcessor.load(tmp_path).resample == theirs.resample


def test_the_defaults_are_those_of_transformers(tmp_path):
    (tmp_path / FILE).write_text("{}")
    processor, theirs = ImageProcessor.load(tmp_path), reference({})
    assert processor.tile_size == theirs.max_image_size["longest_edge"]
    assert processor.longest_edge == theirs.size["longest_edge"]
    assert (processor.resample, processor.scale) == (theirs.resample, theirs.rescale_factor)
    assert processor.mean == processor.std == tuple(theirs.image_mean) == tuple(theirs.image_std)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_processor_type": "SiglipImageProcessor"}, "image_processor_type = 'SiglipImageProcessor'"),
        ({"do_resize": False}, "do_resize = False is not implemented; only true is"),
        ({"size": {"height": 10, "width": 10}}, 'size = .*only {"longest_edge": pixels} is'),
        ({"size": 10}, "size = 10"),
        ({"size": {"longest_edge": True}}, "size = "),
        ({"max_image_size": {"longest_edge": 0}}, "max_image_size = "),
        ({"max_image_size": {"longest_edge": 2}}, "max_image_size = .*tiles an image"),
        ({"max_image_size": {"longest_edge": 5000}}, "max_image_size = "),
        ({"resample": 9}, "resample = 9"),
        ({"resample": "lanczos"}, "resample = 'lanczos'"),
        ({"do_image_splitting": 1}, "do_image_splitting = 1"),
        ({"image_mean": [0.5]}, "image_mean = "),
        ({"image_mean": [0.5, "a", 0.5]}, "image_mean = "),
        ({"image_std": [0.5, 0, 0.5]}, "image_std = .*other than 0"),
        ({"rescale_factor": float("nan")}, "rescale_factor = nan"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(tmp_path, settings, message):
    (tmp_path / FILE).write_text(json.dumps(settings))
    with pytest.raises(BareloopError, match=f"{FILE}: {message}") as caught:
        ImageProcessor.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_files_that_do_not_fit_the_model_are_refused(tmp_path):
    with pytest.raises(BareloopError, match=f"has no {FILE}"):
        ImageProcessor.load(tmp_path)
    processor = ImageProcessor(tile_size=32, image_seq_len=4)
    processor.check(32, 4)
    with pytest.raises(BareloopError, match="max_image_size is 32 pixels, but the model takes 64"):
        processor.check(64, 4)
    with pytest.raises(BareloopError, match="image_seq_len is 4, but the model has 16 vectors"):
        processor.check(32, 16)
    (tmp_path / FILE).write_text("{}")
    (tmp_path / "processor_config.json").write_text('{"image_seq_len": "4"}')
    with pytest.raises(BareloopError, match="image_seq_len = '4' is not a number"):
        ImageProcessor.load(tmp_path)
