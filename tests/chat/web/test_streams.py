"""What a tab is told when it reads slowly."""

from __future__ import annotations

import asyncio
import json

from chat.web.streams import MANY_WAITING, MAX_WAITING, Event, PieceEvent, Tab, encode, event


def taken(tab: Tab) -> list[dict]:
    text = asyncio.run(tab.take()).decode()
    return [json.loads(part.removeprefix("data: ")) for part in text.split("\n\n") if part]


def piece(id: str, text: str, *tokens: bytes) -> PieceEvent:
    return PieceEvent("piece", id, text=text, tokens=tokens)


def test_pieces_that_wait_are_sent_as_one():
    tab = Tab(["a", "b"], lambda _: None)
    tab.push(piece("a", "1", b'["1"]'))
    tab.push(piece("a", "2", b'["2"]', b'["3"]'))
    tab.push(piece("b", "3"))
    tab.push(event("notice", "b", text="\u2028\n"))
    tab.push(piece("b", "4"))
    assert taken(tab) == [
        {"type": "piece", "conversation": "a", "text": "12", "reasoning": "", "tokens": [["1"], ["2"], ["3"]]},
        {"type": "piece", "conversation": "b", "text": "3", "reasoning": "", "tokens": []},
        {"type": "notice", "conversation": "b", "text": "\u2028\n"},
        {"type": "piece", "conversation": "b", "text": "4", "reasoning": "", "tokens": []},
    ]


def test_a_snapshot_replaces_what_waits_for_a_slow_tab_but_no_notices():
    tab = Tab(["a", "b"], lambda _: None)
    for number in range(MANY_WAITING):
        tab.push(piece("a", "text"))
        tab.push(event("notice", "a", text=number))
    tab.push(piece("b", "other"))
    tab.push(Event("snapshot", "a", b'"value":1'))
    events = taken(tab)
    assert [each["type"] for each in events] == ["notice"] * MANY_WAITING + ["piece", "snapshot"]


def test_a_tab_that_falls_behind_gets_the_whole_state():
    tab = Tab(["a"], lambda tab: tab.push(Event("snapshot", "a", b'"value":1')))
    for number in range(MAX_WAITING + 1):
        tab.push(event("notice", "a", text=number))
    assert [each["type"] for each in taken(tab)] == ["snapshot"]


def test_a_closed_tab_is_told_what_waits():
    tab = Tab([], lambda _: None)
    tab.push(event("deleted", "a"))
    tab.close()
    assert [each["type"] for each in taken(tab)] == ["deleted"]
    assert tab.is_closed


def test_pieces_of_conversations_that_alternate_are_joined_in_order():
    tab = Tab(["a", "b"], lambda _: None)
    for number in range(5 * MAX_WAITING):
        tab.push(piece("ab"[number % 2], str(number % 10)))
        if number == 5:
            tab.push(event("notice", "a", text="in between"))
    events = taken(tab)
    assert [(each["type"], each["conversation"]) for each in events] == [
        ("piece", "a"), ("piece", "b"), ("notice", "a"), ("piece", "a"),
    ]  # fmt: skip
    assert events[0]["text"] == "024"
    assert events[1]["text"].startswith("1357913579")
    assert len(events[0]["text"] + events[3]["text"]) == len(events[1]["text"]) == 5 * MAX_WAITING // 2


def test_a_tab_that_falls_behind_keeps_what_no_snapshot_tells():
    greeted = []
    tab = Tab(["a"], greeted.append)
    tab.push(Event("draft", "a", b'"text":"precious"', is_lasting=True))
    for number in range(MAX_WAITING - 1):
        tab.push(event("notice", "a", text=number))
    tab.push(Event("notice", "a", b'"text":"an error"', is_lasting=True))
    assert greeted == [tab]
    assert [each["text"] for each in taken(tab)] == ["precious", "an error"]


def test_a_tab_that_never_reads_does_not_grow():
    tab = Tab(["a"], lambda tab: tab.push(Event("snapshot", "a", b'"value":1')))
    for number in range(3 * MAX_WAITING):
        tab.push(Event("notice", "a", encode({"text": number})[1:-1], is_lasting=True))
    events = taken(tab)
    assert len(events) <= MAX_WAITING
    assert events[-1]["text"] == 3 * MAX_WAITING - 1


def test_what_was_sent_is_known():
    sent = []
    tab = Tab(["a"], lambda _: None)
    tab.push(Event("draft", "a", on_sent=lambda: sent.append(1)))
    taken(tab)
    (call,) = tab.sent()
    assert (sent, tab.sent()) == ([], [])
    call()
    assert sent == [1]
