"""What happens while something waits: for a model, for another request, for a tab. And what a failure leaves behind."""

from __future__ import annotations

import threading

import pytest

from chat import store
from chat.web import library, streams
from tests.chat.web import scripted
from tests.chat.web.scripted import GUARD, refuse


def in_background(work):
    """Run in a thread. -> what waits for its end, and returns the result"""
    results = []
    thread = threading.Thread(target=lambda: results.append(work()), daemon=True)
    thread.start()

    def join():
        thread.join(GUARD)
        return results[0]

    return join


def running(browser, id):
    return [row["running"] for row in browser.get("conversations")["conversations"] if row["id"] == id] == [True]


def test_the_first_message_streams_to_a_tab_that_comes_after_it(page, browser):
    page.script.hold()
    id = browser.new()
    browser.line(id, "hello my world")
    tab = browser.listen(id)  # returns when the stream has begun
    assert tab.next("snapshot")["value"]["running"]["message"] == "hello my world"
    page.script.let(1)
    tab.wait(lambda tab: tab.text() == "hello")
    page.script.go()
    assert tab.rest(lambda value: value["turns"])["turns"][0]["reply"] == "hello my world"


def test_a_change_of_the_model_can_be_stopped(page, browser):
    id = browser.new()
    browser.chat(id, "hi")
    tab = browser.listen(id)
    page.models.may_load.clear()
    browser.line(id, "/model other")
    tab.next("loading")
    browser.post(f"conversations/{id}/stop", 202)
    assert tab.next("notice")["text"] == "stopped; the model is still scripted"
    assert tab.rest(lambda value: True)["model"] == "scripted"
    assert not running(browser, id)
    page.models.may_load.set()
    assert len(browser.chat(id, "more")["turns"]) == 2


def test_a_line_that_waits_for_another_request_can_be_stopped(page, browser):
    id = browser.new()
    tab = browser.listen(id)
    tab.next("snapshot")
    page.models.may_load.clear()
    costs = in_background(lambda: browser.http.get(f"/web/conversations/{id}/costs").status_code)
    tab.next("loading")
    browser.line(id, "hello")
    browser.post(f"conversations/{id}/stop", 202)
    assert tab.next("notice")["text"] == "stopped before a reply"
    assert tab.next("draft")["text"] == "hello"
    assert not running(browser, id)
    page.models.may_load.set()
    assert costs() == 200
    assert len(browser.chat(id, "hello")["turns"]) == 1


def test_a_message_is_in_its_file_while_the_model_is_loaded(page, browser):
    id = browser.new()
    tab = browser.listen(id)
    page.models.may_load.clear()
    browser.line(id, "hello")
    tab.next("loading")
    assert store.load(store.folder() / f"{id}.json").turns == [[{"role": "user", "content": "hello"}]]
    page.models.may_load.set()
    assert [turn["message"] for turn in tab.rest(lambda value: value["turns"])["turns"]] == ["hello"]
    assert len(store.load(store.folder() / f"{id}.json").turns) == 1


def test_an_open_conversation_can_be_stopped_while_another_is_opened(page, browser, monkeypatch):
    id, other = browser.new(), browser.new()
    browser.chat(other, "hi")
    page.library._open.pop(other)
    may_read, load = threading.Event(), library.PageAgent.open_file

    def slow(agent, path):
        assert may_read.wait(GUARD)
        return load(agent, path)

    monkeypatch.setattr(library.PageAgent, "open_file", slow)
    tab = browser.listen(id)
    page.script.hold()
    browser.line(id, "x y z")
    export = in_background(lambda: browser.http.get(f"/web/conversations/{other}/export").status_code)
    browser.post(f"conversations/{id}/stop", 202)
    tab.rest(lambda value: True)
    may_read.set()
    page.script.go()
    assert export() == 200


@pytest.mark.parametrize("line", ["hello", "/retry", "/branch 1 other"])
def test_an_error_in_the_middle_of_a_reply_keeps_its_part(page, browser, monkeypatch, line):
    id = browser.new()
    if line != "hello":
        browser.chat(id, "first")
    tab = browser.listen(id)
    tab.next("snapshot")

    def broken(generation):
        yield scripted.Event("one ", 1)
        yield scripted.Event("two", 2)
        raise refuse("the connection broke")

    monkeypatch.setattr(scripted.Generation, "__iter__", broken)
    browser.line(id, line)
    assert tab.next("notice")["text"] == "the connection broke"
    value = tab.rest(lambda value: value["turns"] and value["turns"][0]["reply"] == "one two")
    assert value["turns"][0]["finish_reason"] == "cancelled"
    monkeypatch.undo()
    browser.line(id, "/title the end")
    tab.rest(lambda value: value["title"])
    assert tab.of("draft") == []


def test_notices_stay_with_a_part_that_an_error_has_ended(data, monkeypatch):
    page = scripted.RunningPage(window=40, reserve=10)
    from tests.chat.web.conftest import Browser

    browser = Browser(page.base)
    try:
        id = browser.new()
        browser.chat(id, *["several words that fill the window"] * 3)
        tab = browser.listen(id)

        def broken(generation):
            yield scripted.Event("part", 1)
            raise refuse("the connection broke")

        monkeypatch.setattr(scripted.Generation, "__iter__", broken)
        browser.line(id, "word " * 20)
        value = tab.rest(lambda value: value["turns"] and value["turns"][-1]["reply"] == "part")
        assert [notice["kind"] for notice in value["turns"][-1]["notices"]] == ["dropped"]
    finally:
        browser.close()
        page.close()


@pytest.mark.parametrize("has_tab", [True, False])
def test_a_message_that_was_deleted_before_its_reply_comes_back(page, browser, has_tab):
    id = browser.new()
    browser.chat(id, "hi")
    tab = browser.listen(id) if has_tab else None
    page.script.hold()
    browser.line(id, "unanswered")
    browser.post(f"conversations/{id}/delete")
    browser.post(f"conversations/{id}/restore")
    tab = tab or browser.listen(id)
    assert tab.next("draft")["text"] == "unanswered"
    assert tab.next("snapshot")


def test_a_draft_waits_for_a_tab_whatever_commands_come_first(page, browser, monkeypatch):
    monkeypatch.setattr(streams, "SURE", 0.0)
    id = browser.new()
    page.script.failure = refuse("no answer")
    browser.line(id, "unanswered words")
    while page.library._open[id].run is not None:
        browser.get("conversations")
    browser.line(id, "/title x")
    while page.library._open[id].run is not None:
        browser.get("conversations")
    assert browser.listen(id).next("draft")["text"] == "unanswered words"
    while page.library._open[id].agent.draft:
        browser.get("conversations")
    second = browser.listen(id)  # the browser has it
    second.next("snapshot")
    browser.line(id, "/title y")
    second.rest(lambda value: value["title"] == "y")
    assert second.of("draft") == []


def test_a_line_during_a_deletion_is_refused(page, browser, monkeypatch):
    id = browser.new()
    browser.chat(id, "hi")
    tab = browser.listen(id)
    begun, may_move, move = threading.Event(), threading.Event(), library.move

    def slow(path, target):
        begun.set()
        assert may_move.wait(GUARD)
        move(path, target)

    monkeypatch.setattr(library, "move", slow)
    deletion = in_background(lambda: browser.http.post(f"/web/conversations/{id}/delete", json={}).status_code)
    assert begun.wait(GUARD)
    assert "is being deleted" in browser.line(id, "too late", 409)["error"]["message"]
    may_move.set()
    assert deletion() == 200
    assert tab.next("deleted")
    monkeypatch.undo()


def test_a_deletion_that_fails_changes_nothing(browser, monkeypatch):
    id = browser.new()
    browser.chat(id, "hi")

    def fail(path, target):
        raise refuse("cannot move it")

    monkeypatch.setattr(library, "move", fail)
    assert browser.post(f"conversations/{id}/delete", 400)["error"]["message"] == "cannot move it"
    assert len(browser.chat(id, "more")["turns"]) == 2


def test_cached_tokens_are_told_only_while_the_window_begins_with_the_last_prompt(browser):
    id = browser.new()
    browser.chat(id, "A a a a", "B b b")

    def counts():
        window = browser.get(f"conversations/{id}/window")
        return window["cached"], window["prompt"]

    tab = browser.listen(id)
    tab.next("snapshot")

    def after(line):
        seen = len(tab.of("snapshot"))
        browser.line(id, line)
        tab.wait(lambda tab: len(tab.of("snapshot")) > seen and tab.of("snapshot")[-1]["value"]["running"] is None)
        return counts()

    assert counts() == (8, 16)
    assert after("/history off") == (None, None)
    assert after("/history on") == (8, 16)
    assert after("/system Be kind.") == (None, None)
    assert after("/retry") == (10, 20)
    assert after("/version 2 1") == (None, None)
    assert after("/version 2 2") == (10, 20)
    assert after("/model other") == (None, None)


def test_a_draft_is_not_offered_again_after_its_tab_went_on(page, browser):
    id = browser.new()
    tab = browser.listen(id)
    page.script.failure = refuse("no answer")
    browser.line(id, "hello", tab="one")
    assert tab.next("draft")["tab"] == "one"
    other = browser.listen(id)  # the first tab may be gone
    assert other.next("draft") == {
        "type": "draft", "conversation": id, "text": "hello", "images": [], "tab": None,
    }  # fmt: skip
    browser.line(id, "hello", tab="one")
    tab.rest(lambda value: value["turns"])
    third = browser.listen(id)
    third.next("snapshot")
    browser.line(id, "/title x")
    third.rest(lambda value: value["title"])
    assert third.of("draft") == []
