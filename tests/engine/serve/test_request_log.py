"""The line of each request, JSON for programs, and the summary."""

from __future__ import annotations

import asyncio
import io
import json
import re
from pathlib import Path

import pytest

from engine.decoding.params import SamplingParams
from engine.decoding.scheduling.prefix_cache import Prompt
from engine.decoding.scheduling.request import QueueFullError, Request
from engine.runtime.errors import BareloopError
from engine.serve.metrics import Metrics
from engine.serve.protocol.errors import ApiError
from engine.serve.request_log import Observer, Served


def observer(quiet: bool = False, json_log: Path | None = None, timeout: float = 600.0) -> tuple[Observer, io.StringIO]:
    output = io.StringIO()
    log = None if json_log is None else str(json_log)
    return Observer(Metrics(["smollm2"]), quiet, log, timeout, output), output


def answered(log: Observer, **fields: object) -> Served:
    with log.started("POST", "/v1/chat/completions", "smollm2") as served:
        for name, value in fields.items():
            setattr(served, name, value)
    return served


def request(tokens: int, cached: int, admitted: float, first: float, finished: float, came: float = 100.0) -> Request:
    result = Request(Prompt(list(range(50)), [50]), SamplingParams(), True, lambda _: None, lambda: None)
    result.submitted, result.admitted, result.first_token, result.finished = came, admitted, first, finished
    result.completion_tokens, result.cached_tokens = tokens, cached
    return result


def test_a_line_says_what_was_asked_and_how_fast_it_was_answered():
    log, output = observer()
    counts = {"prompt_tokens": 77, "cached_tokens": 51, "completion_tokens": 129}
    answered(log, **counts, ttft=0.085, decode_seconds=4.0, finish_reasons=["stop"])
    line = output.getvalue()
    assert re.match(r"\d\d:\d\d:\d\d  200  POST /v1/chat/completions +smollm2 ", line)
    assert re.search(r"77 \(51 cached\) \+ 129 +tokens  TTFT +85 ms +32\.0 tokens/s  stop\n$", line)


def test_lines_of_different_requests_are_aligned():
    log, output = observer()
    for tokens, cached in ((5, 0), (1234, 1100)):
        answered(log, prompt_tokens=tokens, cached_tokens=cached, completion_tokens=9, ttft=0.2)
    first, second = output.getvalue().splitlines()
    assert first.index("tokens") == second.index("tokens")


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (ApiError(404, "no such model"), 404, "no such model"),
        (BareloopError("the prompt is empty"), 400, "the prompt is empty"),
        (ZeroDivisionError("oh"), 500, "ZeroDivisionError: oh"),
        (asyncio.CancelledError(), 499, "the client left"),
    ],
)
def test_an_error_is_reported_and_raised_on(error, status, text):
    log, output = observer()
    with pytest.raises(type(error)), log.started("POST", "/v1/completions", "smollm2"):
        raise error
    assert f"  {status}  " in output.getvalue()
    assert output.getvalue().rstrip().endswith(text)


def test_a_cancelled_request_is_told_apart_by_who_cancelled_it():
    for change, text in (({"timeout": 0.0}, "the time ran out"), ({"is_ending": True}, "the server ended")):
        log, output = observer()
        vars(log).update(change)
        with pytest.raises(asyncio.CancelledError), log.started("POST", "/v1/completions", "smollm2"):
            raise asyncio.CancelledError
        assert "  503  " in output.getvalue()
        assert text in output.getvalue()


def test_text_from_clients_cannot_control_the_terminal():
    log, output = observer()
    with pytest.raises(ApiError), log.started("PO\x1b[2JST", "/v1/\x1b]0;x\x07\n\r\u202e", "a\x9b31m"):
        raise ApiError(400, "bad \x1b[31m value\nsecond line")
    line = output.getvalue()
    assert line.count("\n") == 1
    assert line[:-1].isprintable()


def test_a_long_path_or_error_is_clipped():
    log, output = observer()
    with pytest.raises(ApiError), log.started("GET", "/x" * 5000, "smollm2"):
        raise ApiError(400, "e" * 100_000)
    assert len(output.getvalue()) < 500


def test_counts_and_times_of_several_choices_are_put_together():
    log, _ = observer()
    served = log.started("POST", "/v1/completions", "smollm2")
    served.began = 99.0
    served.note([request(10, 0, 101.0, 103.0, 110.0), request(20, 48, 104.0, 105.0, 106.0)], 50)
    assert (served.prompt_tokens, served.completion_tokens, served.cached_tokens) == (50, 30, 48)
    assert (served.ttft, served.queue_seconds, served.prefill_seconds, served.decode_seconds) == (4.0, 4.0, 2.0, 7.0)


def test_quiet_prints_no_requests_but_notes_and_the_summary():
    log, output = observer(quiet=True)
    answered(log)
    assert output.getvalue() == ""
    log.note("serving smollm2")
    log.close()
    assert re.fullmatch(r"\S+  serving smollm2\n\S+  1 request in 0\.\d s\n", output.getvalue())


def test_the_json_log_has_an_object_for_each_request_and_is_appended_to(tmp_path):
    path = tmp_path / "logs" / "requests.jsonl"
    for finish in ("stop", "length"):
        log, _ = observer(json_log=path)
        answered(log, prompt_tokens=5, completion_tokens=2, ttft=0.25, finish_reasons=[finish])
        entries = [json.loads(line) for line in path.read_text().splitlines()]  # flushed before it is closed
        log.close()
    assert [entry["finish_reasons"] for entry in entries] == [["stop"], ["length"]]
    assert entries[0]["path"] == "/v1/chat/completions"
    assert (entries[0]["status"], entries[0]["prompt_tokens"], entries[0]["ttft"]) == (200, 5, 0.25)


def test_a_line_that_a_kill_cut_off_does_not_swallow_the_next(tmp_path):
    path = tmp_path / "requests.jsonl"
    path.write_text('{"time": "2026')
    log, _ = observer(json_log=path)
    answered(log)
    assert json.loads(path.read_text().splitlines()[1])["status"] == 200


def test_a_log_that_cannot_be_opened_is_an_error_and_one_that_fails_later_is_not(tmp_path):
    with pytest.raises(BareloopError, match="cannot write the log"):
        observer(json_log=tmp_path)
    full = Path("/dev/full")
    if full.exists():
        log, output = observer(json_log=full)
        answered(log)
        answered(log)
        assert output.getvalue().count("the log of requests ends here") == 1


def test_the_summary_counts_requests_errors_tokens_and_percentiles():
    log, _ = observer()
    for number in range(1, 101):
        answered(log, prompt_tokens=10, cached_tokens=4, completion_tokens=3, ttft=number / 1000)
    with pytest.raises(QueueFullError), log.started("POST", "/v1/completions", "smollm2"):
        raise QueueFullError("full")
    summary = log.summary()
    assert summary.startswith("101 requests in ")
    assert ", 1 error: 1,000 + 300 tokens, 40% of the prompts cached, " in summary
    assert summary.endswith(" tokens/s while busy, TTFT p50 50 ms, p99 99 ms")
