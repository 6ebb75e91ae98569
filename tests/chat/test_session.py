"""The session: what is cached, what is dropped, and that nothing is lost however a reply is left."""

from __future__ import annotations

import pytest

from chat.context import ContextOverflowError
from chat.events import Notice, Piece, Reply, Settings
from chat.session import Session, stuck
from engine import LLM
from engine.decoding.loop import Event
from engine.runtime.errors import BareloopError, UsageError

TALK = (
    *("Hi, I'm Zorvan.", "How are you?", "What is the capital of France?", "And of Italy?", "My dog is called Rex."),
    *("What is my name?", "Thanks!", "What is the unit of power?", "I live in Rome.", "What is my dog called?"),
)


@pytest.fixture(scope="module")
def llm(shared) -> LLM:
    """A tiny story teller: a base model, so that the conversation is a play."""
    return LLM.load(shared / "checkpoints" / "llama-tinystories-656k", dtype="float32")


@pytest.fixture(scope="module")
def knowing() -> LLM:
    """The embedded model, which answers as one would."""
    return LLM.load("demo", dtype="float32")


def said(events) -> tuple[list[Notice], Reply]:
    """What a turn yields: its notices, and the reply, which its pieces end."""
    listed = list(events)
    (reply,) = [event for event in listed if isinstance(event, Reply)]
    assert reply.text.endswith("".join(event.text for event in listed if isinstance(event, Piece)))
    return [event for event in listed if isinstance(event, Notice)], reply


def test_each_turn_reads_only_what_is_new(knowing):
    session = Session(knowing)
    for text in TALK:
        _, reply = said(session.send(text))
        assert reply.prompt_tokens - reply.cached_tokens <= len(knowing.tokenizer.encode(text)) + 4


def test_it_remembers_a_name_unless_history_is_off(knowing):
    for name in ("Zorvan", "Mirela", "Tobin", "Anna", "Kusari"):
        session = Session(knowing)
        said(session.send(f"Hi, I'm {name}."))
        assert name in said(session.send("What is my name?"))[1].text
        session.configure(history=False)
        assert name not in said(session.send("What is my name?"))[1].text
        assert len(session.turns) == 3


def test_evictions_are_announced_and_nothing_is_taken_from_the_log(llm):
    session = Session(llm, Settings(window=160, sampling={"max_new_tokens": 30}))
    told = [notice for text in TALK for notice in said(session.send(text))[0]]
    assert [message["content"] for turn in session.turns for message in turn[:1]] == list(TALK)
    assert sum(int(notice.text.split()[1]) for notice in told if notice.kind == "dropped") == session.start > 0
    assert "tokens; " in told[0].text


def test_a_summary_keeps_what_is_dropped(llm):
    session = Session(llm, Settings(window=200, strategy="summarise", sampling={"max_new_tokens": 30}))
    told = [notice for text in TALK for notice in said(session.send(text))[0]]
    assert any(notice.kind == "summary" for notice in told)
    assert session.summary in session.shown()[0]["content"]


def test_a_reply_that_is_left_keeps_what_it_said_and_the_next_turn_is_valid(llm):
    session = Session(llm)
    events = session.send("Who are you?")
    first = next(events)
    events.close()
    assert session.turns[-1][1] == {"role": "assistant", "content": first.text, "finish_reason": "cancelled"}
    assert said(session.proceed())[1].text.startswith(first.text)
    said(session.send("What is my name?"))
    assert [message["role"] for message in session.shown()] == ["user", "assistant"] * 2


def test_a_message_that_is_left_before_a_word_came_is_as_if_unsaid(llm, monkeypatch):
    session = Session(llm)
    said(session.send("Who are you?"))

    def interrupted(ids):
        raise KeyboardInterrupt

    monkeypatch.setattr(session.sequence, "feed", interrupted)
    for attempt in (session.send("Hello!"), session.retry(), session.edit("Hi!")):
        with pytest.raises(KeyboardInterrupt):
            list(attempt)
        assert [turn[0]["content"] for turn in session.turns] == ["Who are you?"]
        assert len(session.turns[0]) == 2


def test_history_off_shows_the_current_message_alone(llm):
    session = Session(llm, Settings(history=False, sampling={"max_new_tokens": 5}))
    for text in TALK[:3]:
        said(session.send(text))
        assert [message["content"] for message in session.shown()[:1]] == [text]
    session.configure(history=True)
    assert len(session.shown()) == 6


def test_a_message_that_is_left_at_an_eviction_is_as_if_unsaid(llm):
    session = Session(llm, Settings(window=160, sampling={"max_new_tokens": 30}))
    for number, text in enumerate(TALK * 2):
        events = session.send(text)
        if isinstance(next(events), Notice):
            events.close()
            assert len(session.turns) == number
            assert [message["role"] for message in session.shown()] == ["user", "assistant"] * (number - session.start)
            return
        list(events)
    pytest.fail("nothing was ever dropped")


def test_undo_edit_and_clear(llm):
    session = Session(llm, Settings(system="Be polite."))
    said(session.send("Hello!"))
    said(session.send("What is the capital of France?"))
    said(session.edit("What is the capital of Italy?"))
    assert session.undo() == "What is the capital of Italy?"
    assert len(session.turns) == 1
    session.clear()
    assert (session.turns, session.settings.system) == ([], "Be polite.")
    with pytest.raises(UsageError, match="nothing has been said yet"):
        session.undo()


def test_too_long_a_message_is_refused_and_nothing_has_changed(llm):
    session = Session(llm, Settings(window=100))
    said(session.send("Hello!"))
    with pytest.raises(ContextOverflowError, match="room for 75"):
        list(session.send("word " * 200))
    assert len(session.turns) == 1
    with pytest.raises(ContextOverflowError, match="a reserve of 200 tokens"):
        session.configure(reserve=200)
    assert session.settings.reserve is None


def test_a_reply_that_repeats_itself_is_stuck():
    assert stuck([1, 2, 3] * 16)
    assert stuck([7] * 48)
    assert not stuck(list(range(100)))
    assert not stuck([7] * 40)


def test_reasoning_is_folded_and_kept_out_of_history(llm, monkeypatch):
    session = Session(llm)
    words = ["<think>", "hm", "</th", "ink>", "\n\n", "Yes", "."]
    events = [Event(0, 5, word, finish_reason="stop" if word == "." else None) for word in words]
    monkeypatch.setattr(session.sequence, "decode", lambda params, continues: iter(events))
    notices, reply = said(session.send("Well?"))
    assert (reply.text, reply.reasoning) == ("Yes.", "hm")
    assert [notice.kind for notice in notices] == ["reasoning"]
    assert session.shown()[-1] == {"role": "assistant", "content": "Yes."}
    assert session.turns[-1][1]["reasoning"] == "hm"


def test_the_window_is_no_larger_than_memory(llm, monkeypatch):
    monkeypatch.setattr("engine.llm.free_memory", lambda device: 2 * 100 * llm.model.new_state().row_bytes(1))
    session = Session(llm)
    assert session.budget.window == 100
    assert "memory holds a window of 100 tokens" in session.warnings[-1].text


def test_a_window_that_the_model_has_not_is_told(llm):
    session = Session(llm, Settings(window=10**6))
    assert session.budget.window == llm.max_length
    assert f"holds {llm.max_length:,} tokens, not 1,000,000" in session.warnings[-1].text


def test_memory_that_runs_out_in_mid_reply_keeps_what_was_said(llm, monkeypatch):
    session = Session(llm)

    def decode(params, continues):
        yield Event(0, 5, "So far")
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(session.sequence, "decode", decode)
    with pytest.raises(BareloopError, match="no memory for more; what was said is kept"):
        list(session.send("Well?"))
    assert session.turns[-1][1] == {"role": "assistant", "content": "So far", "finish_reason": "cancelled"}
    monkeypatch.undo()
    assert said(session.proceed())[1].text.startswith("So far")


def test_a_window_that_overflows_at_once_is_summed_up_too(llm):
    """From below the mark at which a summary is asked for to beyond the room in one turn."""
    session = Session(llm, Settings(window=300, strategy="summarise", sampling={"max_new_tokens": 30}))
    told = []
    for text in ("Hi, I'm Zorvan. " * 6, "I see. " * 14, "I see. " * 30):
        told += said(session.send(text))[0]
    assert session.statistics.dropped_turns
    assert {notice.kind for notice in told} & {"summary", "warning"}


def test_a_reply_that_is_complete_is_not_gone_on_with(llm):
    session = Session(llm, Settings(sampling={"max_new_tokens": 4}))
    said(session.send("Hello!"))
    session.turns[-1][1].pop("finish_reason", None)
    with pytest.raises(UsageError, match="the reply is complete"):
        list(session.proceed())
