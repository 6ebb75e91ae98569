"""The list of conversations, and what can be done with them."""

from __future__ import annotations

import json
import os
import stat

import pytest

from chat import store
from chat.agent import Agent
from chat.conversation.events import Settings
from chat.web import library
from tests.chat.web.conftest import Browser
from tests.chat.web.scripted import RunningPage, Script, ScriptedModel


def ids(browser):
    return [row["id"] for row in browser.get("conversations")["conversations"]]


def terminal(script=None):
    """An agent of another program, with the same model."""
    return Agent(lambda name: ScriptedModel(script or Script(), name, 4096), "scripted", Settings())


@pytest.fixture
def quick(monkeypatch) -> None:
    """The server looks at the folder often."""
    monkeypatch.setattr(library, "POLL", 0.05)


def test_a_conversation_has_a_file_from_its_first_message_on(page, browser, data, quick):
    id = browser.new()
    assert ids(browser) == []
    tab = browser.listen(id)
    assert tab.next("conversations")["conversations"] == []
    page.script.hold()
    browser.line(id, "What is the capital of France?")
    assert tab.wait(lambda tab: tab.listed())[0]["running"]
    page.script.go()
    tab.rest(lambda value: value["turns"])
    (row,) = browser.get("conversations")["conversations"]
    assert row | {"updated": ""} == {
        "id": id, "title": "What is the capital of France?", "updated": "", "turns": 1, "running": False,
    }  # fmt: skip
    path = data / "conversations" / f"{id}.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert tab.wait(lambda tab: tab.listed() == [row])


def test_the_page_and_the_terminal_have_the_same_conversations(page, browser):
    agent = terminal()
    list(agent.handle("from the terminal"))
    id = agent.path.stem
    assert ids(browser) == [id]
    value = browser.chat(id, "from the page")
    assert [turn["message"] for turn in value["turns"]] == ["from the terminal", "from the page"]
    assert value["warnings"] == []
    other = terminal()
    list(other.load(agent.path))
    list(other.handle("from the terminal again"))
    value = browser.chat(id, "from the page again")
    assert [turn["message"] for turn in value["turns"]] == [
        "from the terminal", "from the page", "from the terminal again", "from the page again",
    ]  # fmt: skip
    assert ids(browser) == [id]


def test_a_conversation_goes_on_with_the_model_that_wrote_it_last(browser):
    id = browser.new()
    browser.chat(id, "first")
    agent = terminal()
    list(agent.load(store.find(id)))
    agent.name = "other"
    list(agent.handle("second"))
    tab = browser.listen(id)
    assert tab.next("snapshot")["value"]["model"] == "other"
    agent.name = agent.session.model.name = "unknown here"
    list(agent.handle("third"))
    value = browser.listen(id).next("snapshot")["value"]
    assert (value["model"], len(value["turns"])) == ("other", 3)
    assert value["warnings"] == ["it was written with unknown here, and the current model is other"]


def test_what_another_program_wrote_during_a_reply_is_kept_and_so_is_the_reply(page, browser):
    id = browser.new()
    browser.chat(id, "first")
    tab = browser.listen(id)
    page.script.hold()
    browser.line(id, "second")
    page.script.wait_for_prompts(2)
    agent = terminal()
    list(agent.load(store.find(id)))
    list(agent.handle("from the terminal"))
    page.script.go()
    notice = tab.wait(lambda tab: [each for each in tab.of("notice") if "another program" in each["text"]])[0]
    value = tab.rest(lambda value: len(value["turns"]) == 2)
    assert [turn["message"] for turn in value["turns"]] == ["first", "from the terminal"]
    saved = [[turn[0]["content"] for turn in store.load(store.find(each)).turns] for each in ids(browser)]
    assert sorted(saved) == [["first", "from the terminal"], ["first", "second"]]
    assert notice["kind"] == "warning"


def test_the_list_shows_what_other_programs_write(browser, quick):
    tab = browser.listen()
    agent = terminal()
    list(agent.handle("hello from the terminal"))
    row = tab.wait(lambda tab: tab.listed())[0]
    assert (row["id"], row["title"]) == (agent.path.stem, "hello from the terminal")


def test_the_newest_is_first(browser, data):
    first, second = browser.new(), browser.new()
    browser.chat(second, "b")
    browser.chat(first, "a")
    os.utime(data / "conversations" / f"{second}.json", (1e9, 1e9))
    assert ids(browser) == [first, second]


@pytest.mark.parametrize("id", ["nothing", "../page-key", "..%2Fpage-key", "%2e%2e%2fpage-key", "a/b", "*", "[a-z]*"])
def test_an_id_is_never_a_path(browser, data, id):
    browser.chat(browser.new(), "hello")
    (data / "page-key.json").write_text("[]")
    for path in (f"conversations/{id}/export", f"events?conversation={id}"):
        assert browser.http.get(f"/web/{path}").status_code == 404
    for action in ("line", "stop", "delete", "restore"):
        assert browser.http.post(f"/web/conversations/{id}/{action}", json={"line": "x"}).status_code == 404
    assert (data / "page-key.json").exists()


def test_delete_and_restore(page, browser, data):
    id = browser.new()
    browser.chat(id, "keep me")
    tab = browser.listen(id)
    page.script.hold()
    page.script.say("a", " b")
    browser.line(id, "and this")
    page.script.let(1)
    tab.wait(lambda tab: tab.text() == "a")
    browser.post(f"conversations/{id}/delete")
    assert tab.next("deleted") == {"type": "deleted", "conversation": id}
    assert ids(browser) == []
    assert (data / "conversations" / "deleted" / f"{id}.json").is_file()
    browser.line(id, "too late", 404)
    browser.post(f"conversations/{id}/delete", 404)
    browser.post(f"conversations/{id}/restore")
    browser.post(f"conversations/{id}/restore", 404)
    assert ids(browser) == [id]
    for each in (tab, browser.listen(id)):
        value = each.rest(lambda value: len(value["turns"]) == 2)
        assert [turn["reply"] for turn in value["turns"]] == ["keep me", "a"]


def test_a_model_that_is_unloaded_is_let_go_and_comes_back(page, browser):
    id = browser.new()
    browser.chat(id, "first")
    agent = page.library._open[id].agent
    assert agent.has_model
    page.library.release("other")
    assert agent.has_model
    page.library.release("scripted")
    assert not agent.has_model
    value = browser.chat(id, "second")
    assert [turn["reply"] for turn in value["turns"]] == ["first", "second"]
    assert agent.has_model


def test_export_and_import(browser, data):
    id = browser.new(settings={"system": "Be kind."})
    browser.chat(id, "Question *one*", "two")
    tab = browser.listen(id)
    browser.line(id, "/edit three")
    tab.rest(lambda value: len(value["turns"]) == 2 and value["turns"][1]["version"] == [1, 2])
    browser.line(id, "/title A fine talk")
    tab.rest(lambda value: value["title"])
    answer = browser.http.get(f"/web/conversations/{id}/export?format=json")
    assert answer.headers["content-disposition"] == 'attachment; filename="A-fine-talk.json"'
    assert answer.content == (data / "conversations" / f"{id}.json").read_bytes()
    other = browser.post("import", name="talk.json", content=answer.json())["id"]
    assert other != id
    first, second = (browser.listen(each).rest(lambda value: value["turns"] and value["limit"]) for each in (id, other))
    for value in (first, second):
        for turn in value["turns"]:
            for name in ("key", "recorded", "statistics"):
                del turn[name]
        del value["id"]
    assert (first.pop("title"), second.pop("title")) == ("A fine talk", "A fine talk (imported)")
    assert first == second
    text = browser.http.get(f"/web/conversations/{id}/export?format=markdown")
    assert text.headers["content-type"] == "text/markdown; charset=utf-8"
    assert text.text == (
        f"# A fine talk\n\n*scripted, {id[:10]}*\n\n**System**\n\nBe kind.\n\n**User**\n\nQuestion *one*\n\n"
        "**Assistant**\n\nQuestion *one*\n\n"
        "**User**\n\nthree\n\n**Assistant**\n\nthree\n"
    )
    assert "format 'pdf'" in browser.get(f"conversations/{id}/export?format=pdf", 400)["error"]["message"]


def test_a_list_of_messages_can_be_imported(browser):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Ho"},
        {"role": "user", "content": "unanswered"},
    ]
    id = browser.post("import", name="list.json", content=messages)["id"]
    tab = browser.listen(id)
    value = tab.next("snapshot")["value"]
    assert value["settings"]["system"] == "Be brief."
    assert [turn["message"] for turn in value["turns"]] == ["Hi"]
    assert tab.next("draft")["text"] == "unanswered"
    assert ids(browser) == [id]


@pytest.mark.parametrize(
    "content", [None, 7, "text", {}, [1], {"format": "bareloop conversation", "version": 99}, [[[]]]]
)
def test_garbage_is_not_imported(browser, content):
    message = browser.post("import", 400, name="bad.json", content=content)["error"]["message"]
    assert message.startswith("bad.json")
    assert "\n" not in message
    assert ids(browser) == []


def test_bodies_that_are_no_request(browser):
    id = browser.new()
    for body in (b"{", b"[]", b'{"line": 7}', b'{"line": "\\ud800"}', b'{"line": "\xff"}', b"[" * 100_000, b"{}"):
        answer = browser.http.post(
            f"/web/conversations/{id}/line", content=body, headers={"content-type": "application/json"}
        )
        assert answer.status_code == 400, body[:20]
        assert "\n" not in answer.json()["error"]["message"]


def test_a_copy_has_what_was_said_and_other_settings(browser):
    id = browser.new()
    browser.chat(id, "first")
    copy = browser.new(copy_of=id, model="other", settings={"history": False})
    value = browser.listen(copy).next("snapshot")["value"]
    assert (value["model"], value["settings"]["history"]) == ("other", False)
    assert [turn["reply"] for turn in value["turns"]] == ["first"]
    browser.chat(copy, "second")
    assert len(browser.listen(id).next("snapshot")["value"]["turns"]) == 1
    assert sorted(ids(browser)) == sorted([id, copy])


@pytest.mark.parametrize(
    "body",
    [
        {"model": "nobody"},
        {"copy_of": "nothing"},
        {"settings": []},
        {"settings": {"colour": 1}},
        {"settings": {"history": 1}},
        {"settings": {"window": "large"}},
        {"settings": {"strategy": "slide"}},
        {"settings": {"sampling": {"heat": 1}}},
        {"settings": {"sampling": {"top_p": 2}}},
    ],
)
def test_what_cannot_be_created_is_one_line(browser, body):
    answer = browser.http.post("/web/conversations", json=body)
    assert answer.status_code in (400, 404)
    assert "\n" not in answer.json()["error"]["message"]


def test_without_saving_nothing_is_written(data):
    page = RunningPage(autosave=False)
    browser = Browser(page.base)
    try:
        id = browser.new()
        browser.chat(id, "secret")
        assert ids(browser) == [id]
        browser.post(f"conversations/{id}/delete")
        assert ids(browser) == []
        browser.post(f"conversations/{id}/restore")
        assert ids(browser) == [id]
        assert len(browser.chat(id, "more")["turns"]) == 2
        assert not list(data.rglob("*.json"))
    finally:
        browser.close()
        page.close()


def test_a_damaged_file_is_in_the_list_and_says_what_is_wrong(browser, data):
    (data / "conversations").mkdir(parents=True)
    (data / "conversations" / "bad.json").write_text("{")
    (row,) = browser.get("conversations")["conversations"]
    assert "is not JSON" in row["title"]
    assert "is not JSON" in browser.get("events?conversation=bad", 400)["error"]["message"]
    browser.post("conversations/bad/delete")
    assert ids(browser) == []


def test_the_tokens_of_a_reply_and_of_the_window(browser):
    id = browser.new()
    browser.chat(id, "one two three")
    tokens = browser.get(f"conversations/{id}/tokens?turn=0")
    assert tokens["first"] == 0
    assert [token[1] for token in tokens["tokens"]] == ["one", " two", " three"]
    window = browser.get(f"conversations/{id}/window?scored=1")
    assert (window["cached"], window["prompt"], len(window["tokens"])) == (2, 5, 9)
    assert window["tokens"][0][2] is None
    assert window["tokens"][1][2] == 0.5
    unscored = browser.get(f"conversations/{id}/window")
    assert [token[0] for token in unscored["tokens"]] == [token[0] for token in window["tokens"]]
    assert unscored["tokens"][1][2] is None
    assert browser.get(f"conversations/{id}/costs") == {
        "bytes_per_token": 1_000_900, "bandwidth": 2e9, "device": "cpu", "dtype": "words", "weights_bytes": 1000,
    }  # fmt: skip
    for turn in ("7", "-1", "x", "1" * 30):
        assert "\n" not in browser.get(f"conversations/{id}/tokens?turn={turn}", 400)["error"]["message"]


def test_the_state_is_what_the_page_is_drawn_from(browser):
    state = browser.get("state")
    assert [model["name"] for model in state["models"]] == ["scripted", "other"]
    names = {command["name"] for command in state["commands"]}
    assert {"retry", "branch", "version", "fork", "title", "model"} <= names
    assert not {"quit", "save", "load"} & names
    parameters = {parameter["name"]: parameter for parameter in state["parameters"]}
    assert parameters["temperature"] == {"name": "temperature", "kind": "number", "default": 0.0, "help": "0 is greedy"}
    assert parameters["seed"]["kind"] == "integer"
    assert all(parameter["help"] for parameter in parameters.values())
    assert json.dumps(state["api"]) == "null"
