"""Rendering chat templates in a process of its own, within limits (engine/text/template_worker.py)."""

from __future__ import annotations

import atexit
import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.runtime.errors import BareloopError, TemplateError

CPU_LIMIT = 0.8  # seconds of CPU time per rendering; real templates take milliseconds
TIMEOUT = 60.0  # seconds of real time for the worker to start, or to answer, however busy the machine is


def render(source: str, variables: Mapping[str, Any], now: str) -> str:
    """The text of a Jinja template. `now` (ISO 8601) is what `strftime_now` returns.

    Raises `TemplateError` with the template's message if it rejects the messages, else `BareloopError`.
    """
    return RENDERER.render({"source": source, "variables": variables, "now": now, "cpu_limit": CPU_LIMIT})


class Watchdog(threading.Thread):
    """Kills a process at its deadline (of `time.monotonic`). One thread for all requests: most take less than a start.

    A deadline is `TIMEOUT` after it is set, so that it is seen by a thread that never sleeps longer.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        super().__init__(daemon=True)
        self.process, self.deadline = process, math.inf

    def run(self) -> None:
        while self.process.poll() is None:
            left = self.deadline - time.monotonic()
            if left <= 0:
                self.process.kill()
                return
            time.sleep(min(left, TIMEOUT))

    def __enter__(self) -> None:
        self.deadline = time.monotonic() + TIMEOUT

    def __exit__(self, *_: object) -> None:
        self.deadline = math.inf


class Renderer:
    """The worker process, started on first use, and again after a worker that had to be killed."""

    watchdog: Watchdog  # of the process

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.lock = threading.Lock()

    def render(self, request: Mapping[str, Any]) -> str:
        """Render one template, within `CPU_LIMIT`."""
        try:
            line = json.dumps(request) + "\n"
        except (TypeError, ValueError) as error:
            raise BareloopError(f"messages may only have text, numbers, lists and objects: {error}") from error
        with self.lock:
            answer = self._ask(line)
        if answer is None:
            raise BareloopError(f"the chat template did not finish within {CPU_LIMIT} seconds or used too much memory")
        if "refusal" in answer:
            raise TemplateError(f"the chat template rejects these messages: {answer['refusal']}")
        if "error" in answer:
            raise BareloopError(f"the chat template fails on these messages: {answer['error']}")
        return str(answer["text"])

    def _ask(self, line: str) -> dict[str, Any] | None:
        process = self._start()
        assert process.stdin is not None
        try:
            with self.watchdog:
                process.stdin.write(line)
                process.stdin.flush()
                return self._read(process)
        except OSError:
            self._kill(process)
            return None
        except BaseException:  # an interrupt: the pending answer must not be read by the next request
            self._kill(process)
            raise

    def _start(self) -> subprocess.Popen[str]:
        if self.process is not None and self.process.poll() is None:
            return self.process
        program = Path(__file__).with_name("template_worker.py")
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(program)],
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # so that Ctrl-C in a terminal does not reach it
        )
        atexit.register(self.process.kill)
        self.watchdog = Watchdog(self.process)
        self.watchdog.start()
        assert self.process.stdout is not None
        with self.watchdog:
            ready = self.process.stdout.readline()
        if not ready:
            assert self.process.stderr is not None
            reason = self.process.stderr.read().strip().splitlines()[-1:] or ["no reason given"]
            raise BareloopError(f"cannot render chat templates: {reason[0]}")
        return self.process

    def _kill(self, process: subprocess.Popen[str]) -> None:
        process.kill()
        process.wait()
        self.process = None

    def _read(self, process: subprocess.Popen[str]) -> dict[str, Any] | None:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.endswith("\n"):
            self._kill(process)
            return None
        answer = json.loads(line)
        return answer if isinstance(answer, dict) else None


RENDERER = Renderer()
