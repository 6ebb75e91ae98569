"""The times to the first token about an image, on a tiny shape: tiles, tokens and the next question are right."""

from __future__ import annotations

import json

import pytest

from bench import shapes, vision
from engine.runtime.errors import UsageError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setattr(shapes, "cache_folder", lambda: tmp_path / "cache")


def test_split_and_whole_images_are_measured_beside_transformers(cache, tmp_path, capsys):
    arguments = ["-m", "tiny-vision", "--rounds", "1", "--side", "64", "--device", "cpu"]
    vision.main(vision.parser().parse_args([*arguments, "--output", str(tmp_path / "vision.json")]))
    split, whole = json.loads((tmp_path / "vision.json").read_text())
    assert (split["tiles"], whole["tiles"]) == (17, 1)
    # A tile has 4 vectors and two tokens before them: the whole image is a tile with one token more.
    assert split["prompt_tokens"] - whole["prompt_tokens"] >= 16 * 6 + 4
    for result in (split, whole):
        assert min(result[name] for name in ("seconds", "next_seconds", "peer_seconds", "peer_next_seconds")) > 0
    assert "time to the first token about an image" in capsys.readouterr().out


def test_a_model_for_text_is_refused_in_one_line(cache, tmp_path):
    with pytest.raises(UsageError, match=r"has no preprocessor_config.json; use the folder of a vision-language model"):
        vision.main(vision.parser().parse_args(["-m", "tiny", "--device", "cpu"]))
