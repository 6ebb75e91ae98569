"""One conversation: its events, its snapshots, and what several tabs see of it."""

from __future__ import annotations

import json

import pytest

from tests.chat.web.scripted import refuse


def test_a_message_is_told_as_it_happens(page, browser):
    id = browser.new()
    tab = browser.listen(id)
    assert tab.next("snapshot")["value"]["turns"] == []
    page.script.say("Good", " day")
    browser.line(id, "Hello there")
    assert tab.next("started") == {
        "type": "started", "conversation": id, "turn": 0, "message": "Hello there", "images": [], "beginning": "",
        "reasoning": "",
    }  # fmt: skip
    value = tab.rest(lambda value: value["turns"])
    turn = value["turns"][0]
    assert tab.text() == turn["reply"] == "Good day"
    assert (turn["message"], turn["version"], turn["finish_reason"], turn["recorded"]) == (
        "Hello there", [0, 1], "stop", True,
    )  # fmt: skip
    assert turn["statistics"]["prompt_tokens"] == 4
    assert value["used"] == 7
    assert (value["limit"], value["reserve"], value["counts_exactly"], value["can_score"]) == (4096, 256, True, True)
    assert value["defaults"] == {"temperature": 0.5}
    pieces = [token for event in tab.of("piece") for token in event["tokens"]]
    assert [token[:4] for token in pieces] == [
        ["Good", "Good", 0.5, [["Good", 0.5], [" other", 0.25], ["<|end|>", 0.0625]]],
        [" day", " day", 0.5, [[" day", 0.5], [" other", 0.25], ["<|end|>", 0.0625]]],
    ]


def test_two_tabs_see_the_same_and_one_that_comes_in_the_middle_sees_all(page, browser):
    id = browser.new()
    page.script.hold()
    page.script.say("a", " b", " c", " d")
    first, second = browser.listen(id), browser.listen(id)
    browser.line(id, "letters please")
    page.script.let(2)
    first.wait(lambda tab: tab.text() == "a b")
    late = browser.listen(id)
    running = late.next("snapshot")["value"]["running"]
    assert (running["turn"], running["message"], running["text"]) == (0, "letters please", "a b")
    assert [token[0] for token in running["tokens"]] == ["a", " b"]
    page.script.go()
    tabs = [first, second, late]
    assert len({json.dumps(tab.rest(lambda value: value["turns"])) for tab in tabs}) == 1
    assert {tab.text() for tab in tabs} == {"a b c d"}


def test_a_reply_goes_on_when_all_tabs_are_closed(page, browser):
    id = browser.new()
    page.script.hold()
    page.script.say("it", " goes", " on")
    tab = browser.listen(id)
    browser.line(id, "go")
    page.script.let(1)
    tab.wait(lambda tab: tab.text() == "it")
    tab.close()
    page.script.go()
    value = browser.listen(id).rest(lambda value: value["turns"])
    assert value["turns"][0]["reply"] == "it goes on"


def test_stop_keeps_the_part_and_continue_goes_on(page, browser):
    id = browser.new()
    tab = browser.listen(id)
    page.script.hold()
    page.script.say("one", " two", " three")
    browser.line(id, "count")
    page.script.let(2)
    tab.wait(lambda tab: tab.text() == "one two")
    browser.post(f"conversations/{id}/stop", 202)
    turn = tab.rest(lambda value: value["turns"])["turns"][0]
    assert (turn["reply"], turn["finish_reason"]) == ("one two", "cancelled")
    assert [event["kind"] for event in tab.of("notice")] == ["stopped"]
    page.script.go()
    page.script.say(" three")
    browser.line(id, "/continue")
    value = tab.rest(lambda value: value["turns"][0]["finish_reason"] == "stop")
    assert value["turns"][0]["reply"] == "one two three"
    started = tab.of("started")[-1]
    assert (started["turn"], started["beginning"]) == (0, "one two")
    browser.post(f"conversations/{id}/stop", 202)  # nothing runs


def test_stop_before_the_first_token_gives_the_message_back(page, browser):
    id = browser.new()
    tab = browser.listen(id)
    page.script.hold()
    browser.line(id, "never mind")
    tab.next("started")
    browser.post(f"conversations/{id}/stop", 202)
    assert tab.next("draft") == {
        "type": "draft", "conversation": id, "text": "never mind", "images": [], "tab": "me",
    }  # fmt: skip
    assert tab.rest(lambda value: True)["turns"] == []


def test_a_message_without_a_reply_waits_for_a_tab(page, browser):
    id = browser.new()
    page.script.hold()
    browser.line(id, "is somebody there?")
    browser.post(f"conversations/{id}/stop", 202)
    tab = browser.listen(id)
    assert tab.next("draft")["text"] == "is somebody there?"
    tab.rest(lambda value: not value["turns"])


def test_a_second_line_is_refused_while_a_reply_runs(page, browser):
    id = browser.new()
    tab = browser.listen(id)
    page.script.hold()
    browser.line(id, "first")
    tab.next("started")
    assert "a reply is running" in browser.line(id, "second", 409)["error"]["message"]
    for path in ("tokens?turn=0", "window", "costs"):
        assert "a reply is running" in browser.get(f"conversations/{id}/{path}", 409)["error"]["message"]
    page.script.go()
    assert len(tab.rest(lambda value: value["turns"])["turns"]) == 1


def test_edit_branch_version_and_fork(page, browser):
    id = browser.new()
    page.script.say("old", " reply")
    value = browser.chat(id, "first", "second")
    tab = browser.listen(id)
    browser.line(id, "/branch 1 another beginning")
    value = tab.rest(lambda value: value["turns"] and value["turns"][0]["version"] == [1, 2])
    assert [turn["message"] for turn in value["turns"]] == ["another beginning"]
    key = value["turns"][0]["key"]
    browser.line(id, "/version 1 1")
    value = tab.rest(lambda value: value["turns"][0]["version"] == [0, 2])
    assert [turn["message"] for turn in value["turns"]] == ["first", "second"]
    assert value["turns"][0]["key"] != key
    browser.line(id, "/fork 1 2 2")  # in the place of " reply" comes " other"
    value = tab.rest(lambda value: value["turns"][0]["version"] == [2, 3])
    assert value["turns"][0]["reply"].startswith("old other")
    assert tab.of("started")[-1]["beginning"] == "old other"
    browser.line(id, "/retry")
    tab.rest(lambda value: value["turns"][0]["version"] == [3, 4])
    browser.line(id, "/edit edited")
    value = tab.rest(lambda value: value["turns"][0]["version"] == [4, 5])
    assert value["turns"][0]["message"] == "edited"


def test_bad_commands_are_notices_for_the_tab_that_gave_them(page, browser):
    id = browser.new()
    tab = browser.listen(id)
    for number, (line, text) in enumerate(
        (
            ("/nonsense", "unknown command '/nonsense'"),
            ("/retry", "there are no messages yet"),
            ("/model nobody", "there is no model 'nobody' here; use one of: scripted, other"),
            ("/quit", "quit"),
            ("/set top_p 7", "top_p = 7.0: use more than 0, up to 1"),
        ),
        1,
    ):
        browser.line(id, line, tab="that one")
        notice = tab.next("notice", number)
        tab.next("snapshot", number + 1)
        assert (notice["kind"], notice["tab"]) == ("error", "that one")
        assert text in notice["text"]


def test_failures_are_one_line_and_give_the_message_back(page, browser):
    id = browser.new()
    tab = browser.listen(id)
    page.script.failure = refuse("the server cannot be reached")
    browser.line(id, "hello")
    assert tab.next("notice")["text"] == "the server cannot be reached"
    assert tab.next("draft")["text"] == "hello"
    page.script.failure = ZeroDivisionError("secret")
    browser.line(id, "hello again")
    assert tab.next("notice", 2)["text"] == "internal error, see the program's output: ZeroDivisionError"
    assert tab.next("draft", 2)["text"] == "hello again"
    browser.line(id, "/branch 1 lost?")
    assert tab.next("draft", 3)["text"] == "/branch 1 lost?"


def test_settings_are_commands(page, browser):
    id = browser.new(settings={"system": "Be brief.", "sampling": {"temperature": 0.1}})
    tab = browser.listen(id)
    for number, line in enumerate(
        ("/set top_k 5", "/set temperature default", "/system", "/history off", "/strategy none", "/title My talk"), 2
    ):
        browser.line(id, line)
        tab.next("snapshot", number)
    value = tab.rest(lambda value: value["title"])
    assert value["title"] == "My talk"
    assert value["settings"] == {
        "system": "Be brief.", "strategy": "none", "history": False, "window": None, "reserve": None,
        "sampling": {"top_k": 5},
    }  # fmt: skip


@pytest.mark.parametrize("autosave", [True, False])
def test_a_model_is_changed_with_what_was_said(data, autosave):
    from tests.chat.web.conftest import Browser
    from tests.chat.web.scripted import RunningPage

    page = RunningPage(autosave=autosave)
    browser = Browser(page.base)
    try:
        id = browser.new()
        browser.chat(id, "first")
        tab = browser.listen(id)
        page.models.may_load.clear()
        browser.line(id, "/model other")
        loading = tab.wait(lambda tab: [each for each in tab.of("loading") if each["model"] == "other"])[0]
        assert (loading["bytes"], loading["done"]) == (1000, False)
        page.models.may_load.set()
        value = tab.rest(lambda value: value["model"] == "other")
        assert value["turns"][0]["reply"] == "first"
        assert value["turns"][0]["statistics"] is not None
        page.models.loaded.discard("scripted")
        page.models.load_failure = refuse("no room for scripted")
        browser.line(id, "/model scripted")
        tab.wait(lambda tab: "no room for scripted" in [each["text"] for each in tab.of("notice")])
        assert tab.rest(lambda value: value["model"] == "other")
        browser.line(id, "second")
        assert len(tab.rest(lambda value: len(value["turns"]) == 2)["turns"]) == 2
    finally:
        browser.close()
        page.close()


def test_a_load_that_takes_long_can_be_stopped(page, browser):
    id = browser.new()
    tab = browser.listen(id)
    page.models.may_load.clear()
    browser.line(id, "hello")
    tab.next("loading")
    browser.post(f"conversations/{id}/stop", 202)
    assert tab.next("draft")["text"] == "hello"
    assert tab.next("notice")["text"] == "stopped before a reply"
    page.models.may_load.set()
