"""The table of first tokens, on a tiny shape: what is cached is told right. Nothing here is timed."""

from __future__ import annotations

import json

import pytest

from bench import shapes, ttft
from engine.runtime.errors import BareloopError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setattr(shapes, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def test_every_turn_reads_its_own_message_alone(cache, tmp_path, capsys):
    arguments = ["-m", "tiny", "--turns", "4", "--message-tokens", "20", "--reply-tokens", "4", "--rounds", "1"]
    ttft.main(ttft.parser().parse_args([*arguments, "--output-dir", str(tmp_path)]))
    turns = json.loads((tmp_path / "ttft.json").read_text())
    assert [turn["turn"] for turn in turns] == [1, 2, 3, 4]
    assert all(turn["prompt_tokens"] - turn["cached_tokens"] <= 30 for turn in turns)
    assert turns[3]["prompt_tokens"] > 80
    assert turns[1]["peer_seconds"] > 0
    assert "turn 4 takes" in capsys.readouterr().out
    assert (tmp_path / "ttft.png").exists()


def test_a_shape_is_written_once_and_what_is_none_is_one_line(cache):
    folder = shapes.checkpoint("tiny")
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert (shapes.checkpoint("tiny") / "model.safetensors").stat().st_mtime_ns == written
    assert shapes.checkpoint(str(folder)) == folder
    with pytest.raises(BareloopError, match="unknown shape 'huge'; use tiny"):
        shapes.checkpoint("huge")
