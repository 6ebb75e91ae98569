"""Files that others have put there, moved, changed or broken; search, and what was deleted."""

from __future__ import annotations

import json
import logging
import os
import threading

import pytest

from chat import store
from chat.web import library
from chat.web.files import has_text
from tests.chat.web.scripted import GUARD
from tests.chat.web.test_library import ids, terminal


@pytest.fixture
def quick(monkeypatch):
    """The watcher looks at the files all the time."""
    monkeypatch.setattr(library, "POLL", 0.01)


@pytest.fixture
def full(monkeypatch):
    """A disk that can be full. -> a function that says whether it is"""
    save, state = store.save, {"full": False}

    def write(conversation, path):
        if state["full"]:
            raise store.BareloopError(f"cannot write {path}: No space left on device")
        save(conversation, path)

    monkeypatch.setattr(store, "save", write)
    return lambda is_full: state.update(full=is_full)


def messages(value):
    return [turn["message"] for turn in value["turns"]]


def in_file(path):
    return [turn[0]["content"] for turn in store.load(path).turns]


def test_a_file_that_breaks_the_rules_hides_no_others(quick, browser, data):
    id = browser.new()
    browser.chat(id, "hi")
    folder = data / "conversations"
    content = json.loads((folder / f"{id}.json").read_text())
    (folder / "damaged.json").write_text(json.dumps(content | {"title": "\ud800"}))
    (folder / os.fsdecode(b"x\xff.json")).write_text(json.dumps(content))
    rows = {row["id"]: row["title"] for row in browser.get("conversations")["conversations"]}
    assert rows.keys() == {id, "damaged"}
    assert rows[id] == "hi"
    assert rows["damaged"].startswith("(") and "damaged" in rows["damaged"]
    tab = browser.listen(id)
    browser.line(id, "/title new name")
    assert tab.wait(lambda tab: [row for row in tab.listed() if row["title"] == "new name"])


def test_the_watcher_survives_an_error_and_logs_it_once(quick, page, browser, monkeypatch, caplog):
    tab = browser.listen()
    tab.next("conversations")
    looks = threading.Semaphore(0)

    def fail():
        looks.release()
        raise ZeroDivisionError("once")

    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR, "bareloop.chat"):
        patch.setattr(page.library._files, "rows", fail)
        assert all(looks.acquire(timeout=GUARD) for _ in range(3))
    assert [record.getMessage() for record in caplog.records] == ["the list of conversations: ZeroDivisionError: once"]
    list(terminal().handle("after the error"))
    assert tab.wait(lambda tab: tab.listed())[0]["title"] == "after the error"


def test_a_file_that_was_removed_is_written_again(browser, data):
    id = browser.new()
    browser.chat(id, "first")
    path = data / "conversations" / f"{id}.json"
    path.unlink()
    (row,) = browser.get("conversations")["conversations"]
    assert (row["id"], row["title"], row["turns"]) == (id, "first", 1)
    assert messages(browser.chat(id, "second", "third")) == ["first", "second", "third"]
    assert in_file(path) == ["first", "second", "third"]
    assert ids(browser) == [id]


def test_what_the_terminal_says_appears_in_an_open_tab(quick, browser):
    id = browser.new()
    browser.chat(id, "from the page")
    tab = browser.listen(id)
    tab.next("snapshot")
    agent = terminal()
    list(agent.load(store.find(id)))
    list(agent.handle("from the terminal"))
    assert messages(tab.rest(lambda value: len(value["turns"]) == 2)) == ["from the page", "from the terminal"]


def test_a_line_after_a_change_by_another_program_is_told_after_its_turns(page, browser, monkeypatch):
    monkeypatch.setattr(library, "POLL", GUARD)
    id = browser.new()
    browser.chat(id, "first")
    tab = browser.listen(id)
    tab.next("snapshot")
    agent = terminal()
    list(agent.load(store.find(id)))
    page.script.hold()
    agent.session.model.script.go()
    list(agent.handle("second"))
    browser.line(id, "third")
    tab.wait(lambda tab: any(each["turn"] == 2 for each in tab.of("started")))
    told = [event for event in tab.events if event["type"] in ("snapshot", "started")]
    last = max(number for number, each in enumerate(told) if each["type"] == "started")
    assert len(told[last - 1]["value"]["turns"]) == 2
    page.script.go()
    assert messages(tab.rest(lambda value: len(value["turns"]) == 3)) == ["first", "second", "third"]


def test_nothing_unsaved_is_replaced_by_what_another_program_wrote(browser, data, full):
    id = browser.new()
    browser.chat(id, "first")
    full(True)
    value = browser.chat(id, "precious")
    assert any("not saved" in text for text in value["warnings"])
    path = data / "conversations" / f"{id}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"title": "by the terminal"}))
    tab = browser.listen(id)
    assert messages(tab.next("snapshot")["value"]) == ["first", "precious"]
    full(False)
    browser.line(id, "more")
    notice = tab.wait(lambda tab: [each for each in tab.of("notice") if "another program" in each["text"]])[0]
    assert tab.rest(lambda value: value["title"])["title"] == "by the terminal"
    (other,) = [each for each in ids(browser) if each != id]
    assert other in notice["text"]
    assert in_file(data / "conversations" / f"{other}.json") == ["first", "precious", "more"]


def test_a_file_that_became_nonsense_replaces_nothing(browser, data):
    id = browser.new()
    browser.chat(id, "first")
    path = data / "conversations" / f"{id}.json"
    path.write_text("nonsense")
    value = browser.listen(id).next("snapshot")["value"]
    assert messages(value) == ["first"]
    assert "is not JSON" in value["warnings"][0]
    assert path.read_text() == "nonsense"
    assert messages(browser.chat(id, "second")) == ["first", "second"]


def test_what_was_not_saved_survives_its_deletion(browser, full):
    id = browser.new()
    browser.chat(id, "first")
    full(True)
    browser.chat(id, "precious")
    browser.post(f"conversations/{id}/delete")
    full(False)
    assert [row["id"] for row in browser.get("deleted")["conversations"]] == [id]
    browser.post(f"conversations/{id}/restore")
    assert messages(browser.listen(id).next("snapshot")["value"]) == ["first", "precious"]
    browser.chat(id, "more")
    assert in_file(store.find(id)) == ["first", "precious", "more"]


def test_an_import_or_a_model_that_cannot_be_saved_says_so(browser, full):
    full(True)
    content = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    id = browser.post("import", name="f", content=content)["id"]
    tab = browser.listen(id)
    assert "No space left" in tab.next("snapshot")["value"]["warnings"][0]
    browser.line(id, "/model other")
    assert (
        "not saved" in tab.wait(lambda tab: [each for each in tab.of("notice") if each["kind"] == "warning"])[0]["text"]
    )
    full(False)
    browser.line(id, "/title saved")
    assert tab.rest(lambda value: value["title"])["warnings"] == []


def test_what_could_not_be_saved_is_saved_at_the_end(page, browser, full):
    id = browser.new()
    full(True)
    browser.chat(id, "precious")
    full(False)
    page.close()
    assert in_file(store.find(id)) == ["precious"]


def test_search(page, browser, data, full):
    first, second, third = browser.new(), browser.new(), browser.new()
    browser.chat(first, 'The "Öl" in\nthe user\'s car')
    browser.chat(second, "something else")
    tab = browser.listen(second)
    browser.line(second, "/edit nothing of it")
    tab.rest(lambda value: value["turns"][0]["version"][1] == 2)
    browser.line(second, "/title Straße")
    tab.rest(lambda value: value["title"])
    full(True)
    browser.chat(third, "only in memory")
    (data / "conversations" / "damaged.json").write_text('{"messages": 7, "title": "car"}')
    (data / "conversations" / "ascii.json").write_text(json.dumps([{"role": "user", "content": "größe"}]))

    def search(text):
        return browser.http.get("/web/search", params={"q": text}).json()["ids"]

    assert search('"öl" IN\nthe') == [first]
    assert search("SOMETHING") == [second]  # of a version that is not shown
    assert search("strasse") == [second]
    assert search("in memory") == [third]
    assert search("GRÖSSE") == ["ascii"]
    assert search("car") == [first]
    assert search("assistant") == search("scripted") == []  # names in the file are not what was said
    assert set(search("")) == {first, second, third, "ascii"}
    message = browser.http.get("/web/search", params={"q": "x" * 2001}).json()["error"]["message"]
    assert message == "the text to search for has 2,001 characters: use up to 2,000"


def test_search_needs_no_fields():
    assert has_text([{"role": "user", "content": "Hi"}], "hi")
    assert not has_text({"messages": []}, "hi")


def test_deleted_conversations_are_listed(browser):
    first, second = browser.new(), browser.new()
    browser.chat(first, "one")
    browser.chat(second, "two")
    path = store.find(first)
    os.utime(path, (1e9, 1e9))
    for id in (first, second):
        browser.post(f"conversations/{id}/delete")
    assert [(row["id"], row["title"]) for row in browser.get("deleted")["conversations"]] == [
        (second, "two"),
        (first, "one"),
    ]
    browser.post(f"conversations/{first}/restore")
    assert [row["id"] for row in browser.get("deleted")["conversations"]] == [second]
    assert ids(browser) == [first]


def test_a_copy_is_listed_and_written_when_something_changes_in_it(browser, data):
    id = browser.new()
    browser.chat(id, "first words")
    copies = [browser.new(copy_of=id) for _ in range(3)]
    tabs = [browser.listen(copy) for copy in copies]
    assert {tab.next("snapshot")["value"]["title"] for tab in tabs} == {"first words (copy)"}
    browser.line(copies[0], "/stats")
    tabs[0].next("notice")
    assert ids(browser) == [id]
    assert len(list((data / "conversations").glob("*.json"))) == 1
    browser.line(copies[1], "/history off")
    tabs[1].rest(lambda value: not value["settings"]["history"])
    browser.line(copies[2], "more")
    tabs[2].rest(lambda value: len(value["turns"]) == 2)
    assert set(ids(browser)) == {id, *copies[1:]}
    assert store.load(store.find(copies[2])).title == "first words (copy)"


@pytest.mark.parametrize("name", ["talk.json", "{id}.json", "../{id}.json"])
def test_an_import_of_what_is_there_is_told_from_it(browser, name):
    id = browser.new()
    browser.chat(id, "hello")
    content = browser.http.get(f"/web/conversations/{id}/export?format=json").json()
    other = browser.post("import", name=name.format(id=id), content=content)["id"]
    assert browser.listen(other).next("snapshot")["value"]["title"] == "hello (imported)"
    content["title"] = "other"
    third = browser.post("import", name="other.json", content=content)["id"]
    assert browser.listen(third).next("snapshot")["value"]["title"] == "other"
    assert len(set(ids(browser))) == 3
