"""Server-sent events: what any cut of the bytes gives is what the whole gives."""

from __future__ import annotations

import pytest

from engine.remote import sse
from engine.remote.sse import events
from engine.runtime.errors import BareloopError

STREAM = (
    b": ping\n\ndata: one\n\ndata: two\r\ndata:lines\r\n\r\nevent: x\rid: 3\rdata:  three\r\rretry: 5\n\n\n\n"
    + "data: Grüße\u2028\x0b\x85und 🙂\n\nno colon\n\ndata\n\n".encode()
)
DATA = ["one", "two\nlines", " three", "Grüße\u2028\x0b\x85und 🙂", ""]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_any_cut_of_the_bytes_gives_the_same_events(size):
    assert list(events(STREAM[i : i + size] for i in range(0, len(STREAM), size))) == DATA


def test_an_event_comes_with_its_last_byte():
    stream = events(iter([b"data: a\n", b"\n", b"data: b\r", b"\r", b""]))
    assert [next(stream), next(stream)] == ["a", "b"]


def test_the_last_event_needs_a_complete_line_but_no_empty_one():
    assert list(events([b"data: a\n\ndata: [DONE]\n"])) == ["a", "[DONE]"]
    assert list(events([b"data: a\n\ndata: {"])) == ["a"]


def test_bytes_that_are_not_text_are_replaced():
    assert list(events([b"data: \xff\n\n"])) == ["\ufffd"]


def test_an_endless_event_is_refused(monkeypatch):
    monkeypatch.setattr(sse, "MAX_EVENT", 100)
    for piece in (b"data: x", b"data: x\n"):
        with pytest.raises(BareloopError, match="more than 100 characters"):
            list(events([piece] * 200))
