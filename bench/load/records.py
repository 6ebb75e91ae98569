"""What was measured: a run of settings, a setting of requests. Files of runs. Loads without torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from engine.runtime.errors import BareloopError
from engine.runtime.files import read_json, write_atomic

OK = "ok"
FORMAT = "bareloop load 1"


@dataclass
class Record:
    """One request. Times are in seconds since its setting began.

    `status`: ok, an HTTP status, timeout, broken (the connection), stream (an error in mid-stream), or cut off (no
    finish reason).
    """

    due: float  # when it was to be sent
    sent: float
    chunks: list[float] = field(default_factory=list)  # arrival of each chunk with text
    ended: float = 0.0  # arrival of the last chunk with a choice
    status: str = OK
    error: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int | None = None  # None: the server does not say
    has_usage: bool = True  # False: `completion_tokens` is the number of chunks

    @property
    def ttft(self) -> float | None:
        """Time to the first token: from sending to the first chunk with text. None: there was no text."""
        return self.chunks[0] - self.sent if self.chunks else None

    @property
    def tpot(self) -> float | None:
        """Mean time of each token after the first. None: there are fewer than two."""
        if self.completion_tokens < 2 or not self.chunks:
            return None
        return (self.ended - self.chunks[0]) / (self.completion_tokens - 1)

    @property
    def gaps(self) -> list[float]:
        """Times between chunks: the inter-token latencies."""
        return [after - before for before, after in pairwise(self.chunks)]

    @property
    def latency(self) -> float:
        """From sending to the last chunk."""
        return self.ended - self.sent

    def meets(self, ttft: float, tpot: float) -> bool:
        """Whether it succeeded within these times. A reply of one token has no TPOT to miss."""
        return self.status == OK and self.ttft is not None and self.ttft <= ttft and (self.tpot or 0.0) <= tpot


@dataclass
class Setting:
    """The requests at one concurrency or rate."""

    kind: str  # concurrency or rate
    value: float
    records: list[Record] = field(default_factory=list)
    cpu_seconds: float = 0.0  # of this process

    @property
    def label(self) -> str:
        """For messages: "4 clients" or "0.5/s"."""
        if self.kind == "rate":
            return f"{self.value:g}/s"
        return f"{self.value:g} client{'s' if self.value != 1 else ''}"

    @property
    def good(self) -> list[Record]:
        """The requests that succeeded."""
        return [record for record in self.records if record.status == OK]

    @property
    def seconds(self) -> float:
        """From the first request to the end of the last."""
        if not self.records:
            return 0.0
        return max(record.ended for record in self.records) - min(record.sent for record in self.records)

    @property
    def lateness(self) -> float:
        """The longest time that a request was sent after it was due."""
        return max((record.sent - record.due for record in self.records), default=0.0)


@dataclass
class Run:
    """All settings measured with one server."""

    label: str
    url: str
    model: str
    endpoint: str
    ttft_target: float
    tpot_target: float
    started: str = ""  # ISO 8601
    options: dict[str, Any] = field(default_factory=dict)
    settings: list[Setting] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Write everything as JSON."""
        write_atomic(path, json.dumps({"format": FORMAT, **asdict(self)}) + "\n")

    @classmethod
    def read(cls, path: Path) -> Run:
        """Read what `write` wrote. Raises `BareloopError` for any other file."""
        content = read_json(path)
        if content.pop("format", None) != FORMAT:
            raise BareloopError(f"{path} is not a file written by python -m bench.load --json")
        try:
            run = cls(**content)
            run.settings = [Setting(**entry) for entry in content["settings"]]
            for setting in run.settings:
                setting.records = [Record(**entry) for entry in setting.records]  # type: ignore[arg-type]
        except (TypeError, KeyError) as error:
            names = ", ".join(entry.name for entry in fields(cls))
            raise BareloopError(f"{path} lacks something of {names}: {error}") from None
        return run
