"""The page with a memory: what was recalled is told, the commands work, and a snapshot says how much there is."""

from __future__ import annotations

from chat.conversation.recall import Memory
from chat.memory.store import MemoryStore


def test_the_page_tells_what_was_recalled_and_all_conversations_share_the_memory(page, browser, tmp_path):
    with MemoryStore.open(tmp_path / "memory.db") as store:
        page.library.memory = Memory(store, name="mine")
        first = browser.new()
        tab = browser.listen(first)
        page.script.say("Fine name.")
        browser.line(first, "My boat is called Argo.")
        assert tab.rest(lambda value: value["turns"])["memory"] == {"recalled": 0, "tokens": 0}
        second = browser.new()
        tab = browser.listen(second)
        page.script.say("Argo.")
        browser.line(second, "What is my boat called?")
        value = tab.rest(lambda value: value["turns"])
        (notice,) = value["turns"][0]["notices"]
        assert notice["kind"] == "recalled" and notice["text"].startswith("recalled 1 memory, ")
        assert value["turns"][0]["memories"] == [1]
        assert value["memory"]["recalled"] == 1 and value["memory"]["tokens"] > 0
        browser.line(second, "/forget 1")
        tab.rest(lambda value: value["memory"]["recalled"] == 0)
        assert store.count() == 1
        browser.line(second, "/recall boat")
        shown = tab.wait(lambda tab: [event for event in tab.of("notice") if "this conversation" in event["text"]])
        assert "> User: What is my boat called?" in shown[-1]["text"]


def test_a_deleted_conversation_takes_its_turns_out_of_the_memory_and_leaves_notes(page, browser, tmp_path):
    with MemoryStore.open(tmp_path / "memory.db") as store:
        page.library.memory = Memory(store, name="mine")
        ids = [browser.new(), browser.new()]
        for id in ids:
            tab = browser.listen(id)
            page.script.say("Fine name.")
            browser.line(id, f"The boat of {id} is called Argo.")
            tab.rest(lambda value: value["turns"])
        browser.line(ids[0], "/remember The boat has a note.")
        tab = browser.listen(ids[0])
        tab.wait(lambda tab: store.count() == 3)
        assert browser.post(f"conversations/{ids[0]}/delete") == {"forgotten": 1}
        assert {piece.kind for piece in store.pieces()} == {"note", "turn"} and store.count() == 2
        browser.post(f"conversations/{ids[0]}/restore")
        assert browser.post(f"conversations/{ids[0]}/delete") == {"forgotten": 0}


def test_without_a_memory_a_snapshot_says_so(page, browser):
    id = browser.new()
    assert browser.listen(id).next("snapshot")["value"]["memory"] is None
