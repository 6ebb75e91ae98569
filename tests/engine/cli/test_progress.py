"""Progress on stderr."""

from __future__ import annotations

import re

from engine.cli.progress import Progress, duration


def test_progress_without_a_terminal_is_plain_lines(capsys, monkeypatch):
    with Progress("work", total=5, done=2) as progress:
        progress.advance(1, "hidden")
        progress.advance(2, "fine")
    assert re.fullmatch(r"work: 5/5, [\d.]+/s, 0.0 s left, fine\n", capsys.readouterr().err)
    monkeypatch.setattr("engine.cli.progress.PLAIN_INTERVAL", 0.0)
    with Progress("work", total=500) as progress:
        progress.advance(1)
    assert "work: 1/500" in capsys.readouterr().err


def test_durations_use_readable_units():
    assert [duration(seconds) for seconds in (0.04, 12.34, 59.9, 245, 3723)] == [
        "0.0 s", "12.3 s", "59.9 s", "4:05 min", "1:02:03 h",
    ]  # fmt: skip
