"""The process that renders chat templates is ended if it does not answer in time."""

from __future__ import annotations

import signal
import subprocess
import sys

from engine.text import template_renderer
from engine.text.template_renderer import Watchdog


def test_a_process_is_ended_at_its_deadline(monkeypatch):
    monkeypatch.setattr(template_renderer, "TIMEOUT", 0.01)
    command = [sys.executable, "-I", "-S", "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        watchdog = Watchdog(process)
        watchdog.start()
        assert process.poll() is None
        with watchdog:
            assert process.wait() == -signal.SIGKILL
    watchdog.join()
