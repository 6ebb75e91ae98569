"""The table of times to the first token, on a tiny shape: the numbers of cached tokens are right."""

from __future__ import annotations

import json

import pytest

from bench import shapes, ttft
from engine.runtime.errors import BareloopError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setattr(shapes, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def test_every_turn_computes_only_its_new_message(tiny_shape, tmp_path, capsys):
    arguments = ["-m", "tiny", "--turns", "4", "--message-tokens", "20", "--reply-tokens", "4", "--rounds", "1"]
    ttft.main(ttft.parser().parse_args([*arguments, "--output-dir", str(tmp_path)]))
    turns = json.loads((tmp_path / "ttft.json").read_text())
    assert [turn["turn"] for turn in turns] == [1, 2, 3, 4]
    assert all(turn["prompt_tokens"] - turn["cached_tokens"] <= 30 for turn in turns)
    assert turns[3]["prompt_tokens"] > 80
    assert turns[1]["peer_seconds"] > 0
    assert "turn 4 takes" in capsys.readouterr().out
    assert (tmp_path / "ttft.png").exists()


def test_a_shape_is_written_once_and_an_unknown_one_is_refused(cache):
    folder = shapes.checkpoint("tiny")
    modified = (folder / "model.safetensors").stat().st_mtime_ns
    assert (shapes.checkpoint("tiny") / "model.safetensors").stat().st_mtime_ns == modified
    assert shapes.checkpoint(str(folder)) == folder
    with pytest.raises(BareloopError, match="unknown shape 'huge'; use tiny"):
        shapes.checkpoint("huge")
