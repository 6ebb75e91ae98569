"""The session: what is cached, what is dropped, and that an abandoned reply loses nothing."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from chat import store
from chat.context import ContextOverflowError
from chat.conversation.events import Notice, Piece, Reply, Settings
from chat.conversation.session import Session
from chat.conversation.streaming import is_stuck
from chat.models.local import LocalModel
from engine.decoding.loop import Event
from engine.runtime.errors import BareloopError, UsageError

TALK = (
    *("Hi, I'm Zorvan.", "How are you?", "What is the capital of France?", "And of Italy?", "My dog is called Rex."),
    *("What is my name?", "Thanks!", "What is the unit of power?", "I live in Rome.", "What is my dog called?"),
)


def collect(events) -> tuple[list[Notice], Reply]:
    """The notices and the reply of a turn; the pieces are the end of the reply's text."""
    events = list(events)
    (reply,) = [event for event in events if isinstance(event, Reply)]
    assert reply.text.endswith("".join(event.text for event in events if isinstance(event, Piece)))
    return [event for event in events if isinstance(event, Notice)], reply


def test_each_turn_computes_only_its_new_tokens(demo):
    session = Session(LocalModel(demo))
    for text in TALK:
        _, reply = collect(session.send(text))
        assert reply.prompt_tokens - reply.cached_tokens <= len(demo.tokenizer.encode(text)) + 4


def test_the_demo_recalls_a_name_only_with_history(demo):
    for name in ("Zorvan", "Mirela", "Tobin", "Anna", "Kusari"):
        session = Session(LocalModel(demo))
        collect(session.send(f"Hi, I'm {name}."))
        assert name in collect(session.send("What is my name?"))[1].text
        session.configure(history=False)
        assert name not in collect(session.send("What is my name?"))[1].text
        assert len(session.turns) == 3


def test_evictions_are_announced_and_all_turns_are_kept(llm):
    session = Session(LocalModel(llm), Settings(window=160, sampling={"max_new_tokens": 30}))
    notices = [notice for text in TALK for notice in collect(session.send(text))[0]]
    assert [message["content"] for turn in session.turns for message in turn[:1]] == list(TALK)
    assert sum(int(notice.text.split()[1]) for notice in notices if notice.kind == "dropped") == session.start > 0
    assert "tokens; " in notices[0].text


def test_the_summary_of_dropped_turns_is_in_the_system_prompt(llm):
    session = Session(LocalModel(llm), Settings(window=200, strategy="summarise", sampling={"max_new_tokens": 30}))
    notices = [notice for text in TALK for notice in collect(session.send(text))[0]]
    assert any(notice.kind == "summary" for notice in notices)
    assert session.summary in session.visible_messages()[0]["content"]


def test_an_abandoned_reply_keeps_its_text_and_the_next_turn_is_valid(llm):
    session = Session(LocalModel(llm))
    events = session.send("Who are you?")
    first = next(events)
    events.close()
    assert session.turns[-1][1] == {"role": "assistant", "content": first.text, "finish_reason": "cancelled"}
    assert collect(session.proceed())[1].text.startswith(first.text)
    collect(session.send("What is my name?"))
    assert [message["role"] for message in session.visible_messages()] == ["user", "assistant"] * 2


def test_a_message_interrupted_before_the_first_token_is_removed(llm, monkeypatch):
    session = Session(LocalModel(llm))
    collect(session.send("Who are you?"))

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(session.model.llm.model, "forward", interrupted)
    for attempt in (session.send("Hello!"), session.retry(), session.edit("Hi!")):
        with pytest.raises(KeyboardInterrupt):
            list(attempt)
        assert [turn[0]["content"] for turn in session.turns] == ["Who are you?"]
        assert len(session.turns[0]) == 2


def test_without_history_the_prompt_has_only_the_current_message(llm):
    session = Session(LocalModel(llm), Settings(history=False, sampling={"max_new_tokens": 5}))
    for text in TALK[:3]:
        collect(session.send(text))
        assert [message["content"] for message in session.visible_messages()[:1]] == [text]
    session.configure(history=True)
    assert len(session.visible_messages()) == 6


def test_a_message_abandoned_at_an_eviction_is_removed(llm):
    session = Session(LocalModel(llm), Settings(window=160, sampling={"max_new_tokens": 30}))
    for number, text in enumerate(TALK * 2):
        events = session.send(text)
        if isinstance(next(events), Notice):
            events.close()
            assert len(session.turns) == number
            assert [message["role"] for message in session.visible_messages()] == ["user", "assistant"] * (
                number - session.start
            )
            return
        list(events)
    pytest.fail("no turn was ever dropped")


def test_undo_edit_and_clear(llm):
    session = Session(LocalModel(llm), Settings(system="Be polite."))
    collect(session.send("Hello!"))
    collect(session.send("What is the capital of France?"))
    collect(session.edit("What is the capital of Italy?"))
    assert session.undo() == "What is the capital of Italy?"
    assert session.undo() == "What is the capital of France?"  # the version before it, which was shown again
    assert len(session.turns) == 1
    session.clear()
    assert (session.turns, session.settings.system) == ([], "Be polite.")
    with pytest.raises(UsageError, match="there are no messages yet"):
        session.undo()


def test_a_message_that_is_too_long_is_refused_and_changes_nothing(llm):
    session = Session(LocalModel(llm), Settings(window=100))
    collect(session.send("Hello!"))
    with pytest.raises(ContextOverflowError, match="room for 75"):
        list(session.send("word " * 200))
    assert len(session.turns) == 1
    with pytest.raises(ContextOverflowError, match="a reserve of 200 tokens"):
        session.configure(reserve=200)
    assert session.settings.reserve is None


def test_a_reply_is_continued_up_to_the_end_of_the_window_and_one_line_says_when_that_is_full(llm):
    session = Session(LocalModel(llm), Settings(window=100, sampling={"max_new_tokens": 30, "ignore_eos": True}))
    collect(session.send("Hello!"))
    for _ in range(10):
        try:
            collect(session.proceed())
        except ContextOverflowError as error:
            assert str(error).startswith("the reply fills the window: it ends at token 100 of 100, so there is no room")
            break
        text = session.turns[0][1]["content"]
        used = session.count(session.visible_messages())
    assert 75 < used == 100
    assert session.turns[0][1]["content"] == text
    collect(session.send("Go on."))


def test_a_message_without_a_reply_is_kept_until_another_one_is_sent(llm, monkeypatch):
    session = Session(LocalModel(llm), Settings(sampling={"max_new_tokens": 3}))
    collect(session.send("Hello!"))
    collect(session.edit("Good day!"))

    def written() -> list[str]:
        return [turn[0]["content"] for turn in session.written()[0]]

    def broken(*args, **kwargs):
        raise BareloopError("broken")

    generate = session.model.generate
    for attempt, kept in ((session.send("Who?"), "Who?"), (session.retry(), "Who?"), (session.edit("Hm."), "Hm.")):
        monkeypatch.setattr(session.model, "generate", broken)
        with pytest.raises(BareloopError):
            list(attempt)
        assert written() == ["Good day!", kept]
    (branch,) = session.written()[1]
    assert (branch["after"], branch["place"]) == (-1, 0)
    monkeypatch.setattr(session.model, "generate", generate)
    collect(session.retry())
    assert written() == ["Good day!", "Hm."]
    collect(session.send("And you?"))
    assert written() == ["Good day!", "And you?"]


def test_what_is_written_during_a_reply_is_that_of_one_that_was_stopped(llm):
    session = Session(LocalModel(llm), Settings(sampling={"max_new_tokens": 6}))
    collect(session.send("Hello!"))
    messages = []
    session.on_message = lambda: messages.append([len(turn) for turn in session.written()[0]])
    for events in (session.send("Who are you?"), session.proceed()):
        before = session.turns[1][1]["content"] if len(session.turns) > 1 else ""
        first = next(events)
        reply = {"role": "assistant", "content": before + first.text, "finish_reason": "cancelled"}
        assert session.written()[0][1] == [session.turns[1][0], reply]
        list(events)
        assert session.written()[0] == session.turns
    assert messages == [[2, 1]]


def test_a_reader_sees_a_path_and_its_branches_at_one_moment(llm):
    session, ended, counts = Session(LocalModel(llm), Settings(sampling={"max_new_tokens": 2})), threading.Event(), []
    for text in TALK[:4]:
        collect(session.send(text))

    def read() -> None:
        while not ended.is_set():
            turns, branches = session.written()
            store.Conversation(turns, branches=branches).tree()
            counts.append(sum(map(len, turns)) + sum(len(branch["messages"]) for branch in branches))

    with ThreadPoolExecutor(1) as threads:
        reader = threads.submit(read)
        try:
            for number in range(20):
                collect(session.send("Well?"))
                collect(session.edit(f"What is {number}?", number % 3))
        finally:
            ended.set()
    reader.result()
    assert counts == sorted(counts)  # nothing is missing at any moment


def test_a_reply_that_repeats_itself_is_stuck():
    assert is_stuck([1, 2, 3] * 16)
    assert is_stuck([7] * 48)
    assert not is_stuck(list(range(100)))
    assert not is_stuck([7] * 40)


class FakeGeneration:
    """A reply whose events are given."""

    in_reasoning = False
    prompt_tokens = completion_tokens = cached_tokens = 0

    def __init__(self, events):
        self.events = events

    def __iter__(self):
        return self.events

    def cancel(self):
        self.events = iter(())


def test_reasoning_is_split_off_and_kept_out_of_the_prompt(llm, monkeypatch):
    session = Session(LocalModel(llm))
    pieces = ["<think>", "hm", "</th", "ink>", "\n\n", "Yes", "."]
    events = [Event(0, 5, word, finish_reason="stop" if word == "." else None) for word in pieces]
    monkeypatch.setattr(session.model, "generate", lambda messages, sampling, continues: FakeGeneration(iter(events)))
    notices, reply = collect(session.send("Well?"))
    assert (reply.text, reply.reasoning) == ("Yes.", "hm")
    assert [notice.kind for notice in notices] == ["reasoning"]
    assert session.visible_messages()[-1] == {"role": "assistant", "content": "Yes."}
    assert session.turns[-1][1]["reasoning"] == "hm"


def test_the_window_is_limited_by_free_memory(llm, monkeypatch):
    monkeypatch.setattr(
        "engine.decoding.scheduling.states.free_memory", lambda device: 2 * 100 * llm.model.new_state().row_bytes(1)
    )
    session = Session(LocalModel(llm))
    assert session.budget.window == 100
    assert "memory is enough for a window of 100 tokens" in session.warnings[-1].text


def test_a_window_beyond_the_model_s_is_reported(llm):
    session = Session(LocalModel(llm), Settings(window=10**6))
    assert session.budget.window == llm.max_length
    assert f"window is {llm.max_length:,} tokens, not 1,000,000" in session.warnings[-1].text


def test_out_of_memory_during_a_reply_keeps_its_text(llm, monkeypatch):
    session = Session(LocalModel(llm))

    def decode():
        yield Event(0, 5, "So far")
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(session.model, "generate", lambda messages, sampling, continues: FakeGeneration(decode()))
    with pytest.raises(BareloopError, match="out of memory; the conversation is kept"):
        list(session.send("Well?"))
    assert session.turns[-1][1] == {"role": "assistant", "content": "So far", "finish_reason": "cancelled"}
    monkeypatch.undo()
    assert collect(session.proceed())[1].text.startswith("So far")


def test_a_conversation_that_overflows_in_one_turn_is_summarised_or_warns(llm):
    """One turn takes the prompt from below the high-water mark to beyond the room."""
    session = Session(LocalModel(llm), Settings(window=300, strategy="summarise", sampling={"max_new_tokens": 30}))
    notices = []
    for text in ("Hi, I'm Zorvan. " * 6, "I see. " * 14, "I see. " * 30):
        notices += collect(session.send(text))[0]
    assert session.statistics.dropped_turns
    assert {notice.kind for notice in notices} & {"summary", "warning"}


def test_a_complete_reply_cannot_be_continued(llm):
    session = Session(LocalModel(llm), Settings(sampling={"max_new_tokens": 4}))
    collect(session.send("Hello!"))
    session.turns[-1][1].pop("finish_reason", None)
    with pytest.raises(UsageError, match="the reply is complete"):
        list(session.proceed())
