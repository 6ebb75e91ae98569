"""Decoding beside busy processes, on the smallest shape."""

from __future__ import annotations

import json

import pytest

from bench import busy
from engine.runtime.errors import UsageError
from tests.bench.workers import SharedWorker


def options(*flags: str):
    return busy.parser().parse_args(list(flags))


def test_every_engine_has_its_share_of_the_quiet_speed(tiny_shape, tmp_path, capsys, monkeypatch):
    """Beside a real busy process; the engine is in this one."""
    monkeypatch.setattr(busy, "Worker", SharedWorker)
    monkeypatch.setattr(busy, "SETTLE", 0.0)
    flags = ["-m", "tiny", "--engines", "bareloop-float32", "--busy", "1", "--rounds", "2", "--new-tokens", "4"]
    busy.main(options(*flags, "--output-dir", str(tmp_path)))
    rates = json.loads((tmp_path / "tiny.json").read_text())["tokens_per_second"]["bareloop-float32"]
    assert rates.keys() == {"0", "1"} and all(len(values) == 2 for values in rates.values())
    assert "%)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--busy", "0"], "--busy 0: use 1 or more; 0 is always measured"),
        (["--rounds", "0"], "--rounds 0: use 1 or more"),
        (["--engines", "vllm"], "unknown engine 'vllm'; use bareloop-bfloat16"),
    ],
)
def test_wrong_flags_are_refused(flags, message):
    with pytest.raises(UsageError, match=message):
        busy.main(options(*flags))
