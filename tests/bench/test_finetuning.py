"""The comparison of LoRA steps, on the smallest shape."""

from __future__ import annotations

import json

import pytest

from bench import finetuning, peer_engines
from engine.runtime.errors import UsageError
from tests.bench.workers import SharedWorker


def options(*flags: str):
    return finetuning.parser().parse_args(list(flags))


def start(name, *settings, load):
    """Ours in its own process, as in the program; the other one here."""
    kind = peer_engines.Worker if name.startswith("bareloop") else SharedWorker
    return kind(name, *settings, load=load)


def test_both_engines_have_the_same_first_loss_and_all_rounds(tiny_shape, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(finetuning, "Worker", start)
    flags = ["-m", "tiny", "--tokens", "150", "--longest", "90", "--rounds", "2", "--rows", "answers"]
    finetuning.main(options(*flags, "--output-dir", str(tmp_path)))
    report = json.loads((tmp_path / "tiny-all-linear.json").read_text())["engines"]
    assert [(entry["rows"], entry["engine"]) for entry in report] == [("answers", name) for name in finetuning.DEFAULT]
    assert all(len(entry["seconds"]) == 2 and entry["peak"] > 0 for entry in report)
    for ours, theirs in zip(report[::2], report[1::2], strict=True):
        assert abs(ours["loss"] - theirs["loss"]) <= 1e-5 * theirs["loss"]
    assert "peft-float32" in capsys.readouterr().out


@pytest.mark.parametrize(("kind", "lengths"), [("even", [1024, 976]), ("ragged", None)])
def test_rows_have_exactly_the_tokens_of_a_step(kind, lengths):
    rows = finetuning.draw_rows(kind, 2000, 1024, 500)
    assert sum(map(len, rows)) == 2000
    assert lengths is None or [len(row) for row in rows] == lengths


def test_an_unknown_engine_is_refused():
    with pytest.raises(UsageError, match="unknown engine 'trl'; use bareloop-float32"):
        finetuning.main(options("--engines", "trl"))
