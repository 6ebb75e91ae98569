"""The client against servers that do known things at known times."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.load.client import Client, read_answer, timed_events
from bench.load.records import Record
from engine.runtime.errors import BareloopError, UsageError
from tests.bench.load.fake_server import FakeServer, event, in_virtual_time


def send(server: FakeServer, prompt="a b c", **options):
    async def work():
        async with server.client(**options) as client:
            client.begin()
            return await client.ask(prompt)

    return in_virtual_time(work)


def answer(*pieces: bytes) -> Record:
    """The record of an answer whose pieces arrive after 1, 2, … seconds."""
    record = Record(0.0, 0.0, ended=99.0)
    read_answer(record, [(float(now), piece) for now, piece in enumerate(pieces, 1)])
    return record


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_known_times_are_reported_exactly(endpoint):
    record = send(FakeServer(prefill=0.5, step=0.125, cached=3), endpoint=endpoint)
    assert record.status == "ok" and record.ttft == 0.5
    assert record.gaps == [0.125] * 4 and record.tpot == 0.125 and record.latency == 1.0
    assert (record.prompt_tokens, record.completion_tokens, record.cached_tokens) == (4, 5, 3)


def test_tokens_are_those_of_the_usage_and_not_the_chunks():
    record = send(FakeServer(prefill=0.5, step=0.125, tokens_per_chunk=2))
    assert len(record.chunks) == 3 and record.completion_tokens == 5 and record.has_usage
    assert record.ttft == 0.625 and record.gaps == [0.25, 0.125]
    assert record.tpot == (1.0 - 0.625) / 4


def test_without_usage_chunks_are_counted_and_the_record_says_so():
    record = send(FakeServer(has_usage=False))
    assert record.completion_tokens == 5 and not record.has_usage and record.cached_tokens is None


def test_a_chunk_without_text_is_no_token():
    role = event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
    thought = event({"choices": [{"delta": {"reasoning_content": "so"}}]})
    call = event({"choices": [{"delta": {"tool_calls": [{"index": 0}]}}]})
    end = event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    record = answer(role, b": ping\n\n", thought, call, end, event(b"[DONE]"))
    assert record.chunks == [3, 4] and record.ended == 5 and record.status == "ok"
    assert record.ttft == 3


def test_an_answer_of_no_text_has_no_time_to_the_first_token():
    record = answer(event({"choices": [{"text": "", "finish_reason": "stop"}]}))
    assert record.status == "ok" and record.ttft is None and record.tpot is None and record.gaps == []
    assert not record.meets(100, 100)


CHUNKS = [json.dumps({"number": number, "text": "é\u2028"}, ensure_ascii=False) for number in range(4)]


@settings(max_examples=40)
@given(st.lists(st.integers(1, 200), max_size=8), st.sampled_from(["\n", "\r\n"]))
def test_events_are_the_same_however_they_are_split_and_come_with_the_read_that_ends_them(cuts, newline):
    text = "".join(f": ping{newline}{newline}data: {chunk}{newline}{newline}" for chunk in CHUNKS).encode()
    places = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    reads = [(number, text[start:end]) for number, (start, end) in enumerate(pairwise(places))]
    found = list(timed_events(reads))
    assert [data for _, data in found] == CHUNKS
    end = 0
    for now, data in found:
        end = text.index(data.encode(), end) + len(data.encode()) + len(newline) + 1  # a CR ends a line, too
        assert places[now] < end <= places[now + 1]


def test_several_chunks_of_one_read_arrive_together():
    text = event({"choices": [{"text": "a"}]})
    record = answer(text * 3, text + event({"choices": [{"text": "", "finish_reason": "length"}]}))
    assert record.chunks == [1, 1, 1, 2] and record.gaps == [0, 0, 1]


@pytest.mark.parametrize(
    ("pieces", "status", "error"),
    [
        ([event({"error": {"message": "the engine ended"}})], "stream", '"the engine ended"'),
        ([b"data: {nonsense\n\n"], "stream", "not a chunk: '{nonsense'"),
        ([b"data: 17\n\n"], "stream", "not a chunk: '17'"),
        ([event({"choices": [], "usage": {"completion_tokens": 3}})], "stream", "not a chunk: '{"),
        ([], "cut off", "the answer ended without a finish reason"),
        ([event({"choices": [{"text": "a"}]})], "cut off", "the answer ended without a finish reason"),
    ],
)
def test_a_fault_in_the_middle_of_an_answer_is_an_error(pieces, status, error):
    record = answer(*pieces)
    assert record.status == status and record.error.startswith(error)
    assert not record.meets(1e9, 1e9)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"error": {"message": "too many requests"}}', '"too many requests"'),
        ('{"error": "no such model"}', '"no such model"'),
        ("<html>", '"<html>"'),
    ],
)
def test_a_refusal_is_counted_by_status_with_its_message(body, message):
    record = send(FakeServer(answers={0: (429, body)}))
    assert (record.status, record.error) == ("429", message)


@pytest.mark.parametrize(
    ("error", "status"), [(httpx2.ConnectError("refused"), "broken"), (httpx2.ReadTimeout(""), "timeout")]
)
def test_a_connection_that_fails_is_an_error_of_one_request(error, status):
    def fail(_):
        raise error

    async def work():
        async with Client("http://fake", "m", transport=httpx2.MockTransport(fail)) as client:
            record = await client.ask("a")
            assert record.status == status and record.error in ("refused", "ReadTimeout")
            assert await client.count_tokens("a") is None
            with pytest.raises(BareloopError, match="cannot reach http://fake: "):
                await client.models()

    asyncio.run(work())


@pytest.mark.parametrize(("is_new", "status"), [(False, "ok"), (True, "broken")])
def test_a_request_on_a_connection_that_the_server_had_closed_is_sent_again_once(is_new, status):
    asked = []

    async def whole():
        yield event({"choices": [{"text": "a", "finish_reason": "length"}]})

    async def answer_second(request):
        asked.append(request)
        if is_new:
            await request.extensions["trace"]("connection.connect_tcp.started", {})
        if len(asked) == 1:
            raise httpx2.RemoteProtocolError("disconnected")
        return httpx2.Response(200, content=whole())

    async def work():
        async with Client("http://fake", "m", transport=httpx2.MockTransport(answer_second)) as client:
            assert (await client.ask("a")).status == status

    asyncio.run(work())
    assert len(asked) == (1 if is_new else 2)


def test_an_answer_that_breaks_is_not_asked_for_again():
    asked = []

    async def begin():
        yield event({"choices": [{"text": "a"}]})
        raise httpx2.ReadError("reset")

    def answer(request):
        asked.append(request)
        return httpx2.Response(200, content=begin())

    async def work():
        async with Client("http://fake", "m", transport=httpx2.MockTransport(answer)) as client:
            record = await client.ask("a")
            assert (record.status, record.error) == ("broken", "reset")

    asyncio.run(work())
    assert len(asked) == 1


def test_fields_that_a_server_refuses_are_left_out_or_renamed():
    server = FakeServer(refused=("ignore_eos", "stream_options"))

    async def work():
        async with server.client() as client:
            while (record := await client.ask("a")).status != "ok":
                assert client.adapt(record)
            refused = Record(0, 0, status="400", error="Use 'max_completion_tokens' instead of 'max_tokens'.")
            assert client.adapt(refused) and not client.adapt(refused)
            await client.ask("a")
            assert not client.adapt(Record(0, 0, status="400", error="the prompt is too long"))
            assert not client.adapt(Record(0, 0, status="500", error="ignore_eos"))

    in_virtual_time(work)
    first, second = server.bodies
    assert "ignore_eos" not in first and "stream_options" not in first and first["max_tokens"] == 5
    assert "max_tokens" not in second and second["max_completion_tokens"] == 5


@pytest.mark.parametrize("url", ["ftp://host", "", "http://"])
def test_an_address_without_http_is_refused(url):
    with pytest.raises(UsageError, match="is not the address of a server"):
        Client(url)
