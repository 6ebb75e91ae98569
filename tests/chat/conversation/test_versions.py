"""Versions of turns, tokens with their probabilities, going on from other tokens, and stopping."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from chat.conversation.events import Piece, Reply, Settings
from chat.conversation.session import Session
from chat.models.interface import TokenProbability
from chat.models.local import LocalModel
from engine.decoding.loop import Event
from engine.runtime.errors import UsageError
from tests.chat.conversation.test_session import TALK, FakeGeneration, collect

SHORT = Settings(sampling={"max_new_tokens": 6})


def spoken(session: Session) -> list[str]:
    """The messages of the chosen path."""
    return [turn[0]["content"] for turn in session.turns]


def test_edit_retry_and_undo_keep_the_other_versions(llm):
    session = Session(LocalModel(llm), SHORT)
    for text in TALK[:3]:
        collect(session.send(text))
    first = [turn[1]["content"] for turn in session.turns]
    collect(session.edit("My cat is big.", 1))
    assert spoken(session) == [TALK[0], "My cat is big."]
    assert session.tree.version(1) == (1, 2)
    collect(session.retry(0))
    assert spoken(session) == [TALK[0]]
    session.choose(0, 0)
    assert spoken(session) == [TALK[0], "My cat is big."]
    session.choose(1, 0)
    assert (spoken(session), [turn[1]["content"] for turn in session.turns]) == (list(TALK[:3]), first)
    assert (session.undo(), session.undo()) == (TALK[2], TALK[1])
    assert spoken(session) == [TALK[0], "My cat is big."]
    assert session.undo() == "My cat is big."
    assert spoken(session) == [TALK[0]] and session.tree.version(0) == (0, 2)
    for call, line in (
        (lambda: session.choose(6, 0), "message 7: this conversation has 1"),
        (lambda: session.choose(0, 4), "version 5: message 1 has 2"),
        (lambda: list(session.retry(3)), "message 4: this conversation has 1"),
        (lambda: list(session.edit(" ", 0)), "the message is empty"),
        (lambda: session.tokens_of(-1), "message 0: this conversation has 1"),
    ):
        with pytest.raises(UsageError) as refused:
            call()
        assert str(refused.value) == line


def test_a_version_that_gets_no_token_leaves_the_old_one_chosen(llm, monkeypatch):
    session = Session(LocalModel(llm, record=2), SHORT)
    for text in TALK[:3]:
        collect(session.send(text))
    before = list(session.turns)

    def broken(*args, **kwargs):
        raise RuntimeError("broken")

    monkeypatch.setattr(session.model, "generate", broken)
    choice = next(n for n, (text, _) in enumerate(session.tokens_of(1)[2].alternatives) if not session.model.ends(text))
    for attempt in (session.retry(0), session.edit("Hm.", 1), session.fork(1, 2, choice)):
        with pytest.raises(RuntimeError, match="broken"):
            list(attempt)
        assert session.turns == before
        assert [session.tree.version(index) for index in range(3)] == [(0, 1)] * 3


def test_another_version_of_a_dropped_turn_brings_back_the_others(llm):
    session = Session(LocalModel(llm), Settings(window=160, sampling={"max_new_tokens": 30}))
    for text in TALK[:6]:
        collect(session.send(text))
    assert session.start > 0
    session.summary = "They met."
    collect(session.edit("Let us start again.", 0))
    assert (session.start, session.summary, len(session.turns)) == (0, "", 1)
    session.choose(0, 0)
    assert (session.start, len(session.turns)) == (0, 6)
    collect(session.send("Hello?"))
    start = session.start
    assert start > 1
    session.choose(6, 0)
    assert session.start == start
    collect(session.retry(6))
    session.choose(6, 0)
    assert session.start == start


def test_pieces_carry_every_token_with_what_it_added(demo):
    session = Session(LocalModel(demo, record=3), Settings(sampling={"stop": ["\nX"], "max_new_tokens": 30}))
    events = list(session.send("What is my name?"))
    reply = events[-1]
    tokens = [token for event in events if isinstance(event, Piece) for token in event.tokens]
    assert tokens == list(reply.tokens) == session.tokens_of(0) == session.tree.node(0).tokens
    assert "".join(token.piece for token in tokens) == reply.text
    assert len(tokens) == reply.completion_tokens
    assert demo.tokenizer.control_tokens[tokens[-1].text] in demo.eos_token_ids
    assert tokens[-1].piece == ""
    assert all(len(token.alternatives) == 3 and token.seconds >= 0 and token.logprob <= 0 for token in tokens)
    assert sum(token.seconds for token in tokens) == pytest.approx(reply.ttft + reply.seconds)


def test_a_continued_reply_has_the_tokens_of_all_its_parts(llm):
    session = Session(LocalModel(llm, record=2), Settings(sampling={"max_new_tokens": 5}))
    collect(session.send("Hello!"))
    _, reply = collect(session.proceed())
    assert (reply.completion_tokens, len(reply.tokens)) == (5, 10)
    assert "".join(token.piece for token in reply.tokens) == reply.text == session.turns[0][1]["content"]


def test_a_reply_without_probabilities_is_scored(demo):
    session = Session(LocalModel(demo), Settings(sampling={"temperature": 0.0, "logprobs": 3}))
    for text in ("Hi, I'm Zorvan.", "What is my name?", "Thanks!"):
        collect(session.send(text))
    recorded = [session.tokens_of(index) for index in range(3)]
    for index in range(3):
        session.tree.node(index).tokens = None
    session.start = 1  # the first reply was made with a prompt that begins before
    scored = [session.tokens_of(index) for index in range(3)]
    for index in (0, 2):
        for one, other in zip(scored[index], recorded[index], strict=False):
            assert (one.id, one.piece) == (other.id, other.piece)
    for one, other in zip(scored[0], recorded[0], strict=False):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)
    assert "".join(token.piece for token in scored[1]) == session.turns[1][1]["content"]
    assert session.tokens_of(1) is scored[1]
    assert len(session.window_tokens()) == session.count(session.visible_messages())
    window = session.window_tokens(scored=True)
    assert [token.id for token in window] == [token.id for token in session.window_tokens()]
    assert all(token.logprob is not None for token in window[1:])


def test_scored_tokens_keep_the_times_at_which_they_came(demo):
    session = Session(LocalModel(demo))
    _, reply = collect(session.send("Hi, I'm Zorvan."))
    assert all(token.logprob is None and token.alternatives == () for token in reply.tokens)
    scored = session.tokens_of(0)
    assert all(token.logprob is not None for token in scored)
    assert [token.seconds for token in scored] == [token.seconds for token in reply.tokens][: len(scored)]


def test_a_fork_goes_on_from_another_token(demo):
    session = Session(LocalModel(demo, record=4), Settings(sampling={"temperature": 0.0}))
    collect(session.send("Hi, I'm Zorvan."))
    collect(session.send("What is my name?"))
    collect(session.send("Thanks!"))
    tokens = session.tokens_of(1)
    text = session.turns[1][1]["content"]
    same = [token for token, _ in tokens[2].alternatives].index(tokens[2].text)
    _, reply = collect(session.fork(1, 2, same))
    assert (reply.text, reply.finish_reason, session.tree.version(1)) == (text, "stop", (1, 2))
    assert len(session.turns) == 2
    other = next(
        n for n, (word, _) in enumerate(tokens[2].alternatives) if n != same and not session.model.is_control(word)
    )
    session.choose(1, 0)
    _, reply = collect(session.fork(1, 2, other))
    word, logprob = tokens[2].alternatives[other]
    assert reply.text.startswith("".join(token.piece for token in tokens[:2]) + word)
    assert reply.tokens[:2] == tokens[:2]
    assert (reply.tokens[2].text, reply.tokens[2].logprob) == (word, logprob)
    assert "".join(token.piece for token in reply.tokens) == reply.text
    assert session.tokens_of(1) == list(reply.tokens)
    session.choose(1, 0)
    assert len(session.turns) == 3
    for call, line in (
        ((1, 99, 0), f"token 100: this reply has {len(tokens)}"),
        ((1, 0, 7), "choice 8: token 1 has 4 alternatives"),
        ((5, 0, 0), "message 6: this conversation has 3"),
    ):
        with pytest.raises(UsageError, match=line):
            list(session.fork(*call))


def given_reply(session: Session, content: str, tokens: list[TokenProbability], **marks: str) -> None:
    """A conversation of one turn, whose reply has these tokens."""
    session.turns = [[{"role": "user", "content": "Well?"}, {"role": "assistant", "content": content, **marks}]]
    session.tree.node(0).tokens = tokens


def test_a_fork_at_an_end_token_ends_the_reply_and_one_in_the_middle_of_something_is_refused(demo):
    session = Session(LocalModel(demo))
    end = next(name for name, token in demo.tokenizer.control_tokens.items() if token in demo.eos_token_ids)
    begin = next(name for name, token in demo.tokenizer.control_tokens.items() if token not in demo.eos_token_ids)
    others = [(end, -1.0), (begin, -2.0), ("\ufffd", -3.0), ("no", -4.0)]
    token = TokenProbability("Yes", -0.5, others, "Yes")
    given_reply(session, "Yes, Yes", [token, TokenProbability(", ", -0.5, (), ", "), token])
    (ended,) = session.fork(0, 2, 0)
    assert (ended.text, ended.finish_reason) == ("Yes, ", "stop")
    assert session.turns[0][1] == {"role": "assistant", "content": "Yes, "}
    assert [token.text for token in session.tokens_of(0)] == ["Yes", ", ", end]
    session.choose(0, 0)
    refusals = {
        (0, 1): "is a control token",
        (0, 2): "is only a part of a character",
        (1, 0): "token 2 has no alternatives",
    }
    for (index, choice), line in refusals.items():
        with pytest.raises(UsageError, match=line):
            list(session.fork(0, index, choice))
    part = TokenProbability("\ufffd", -0.5, others)
    given_reply(session, "é", [part, replace(part, piece="é"), token])
    session.turns[0][1]["content"] = "éYes"
    with pytest.raises(UsageError, match="token 2 is inside a character"):
        list(session.fork(0, 1, 3))
    assert collect(session.fork(0, 2, 3))[1].text.startswith("éno")
    given_reply(session, "Yes", [replace(token, piece=""), token], reasoning="hm")
    with pytest.raises(UsageError, match="token 1 is inside the reasoning"):
        list(session.fork(0, 0, 3))
    assert collect(session.fork(0, 1, 3))[1].reasoning == "hm"
    assert session.turns[0][1]["reasoning"] == "hm"


def test_text_that_is_held_back_belongs_to_its_tokens(llm, monkeypatch):
    """A stop string that may have begun, a character of two tokens, a reasoning."""
    session = Session(LocalModel(llm))
    texts = {
        1: "<think>",
        2: "hm",
        3: "</think>",
        4: "\n\n",
        5: "A.",
        6: "\n",
        7: "B",
        8: "\ufffd",
        9: "\ufffd",
        10: "<end>",
    }
    monkeypatch.setattr(session.model, "_decode", texts.get)
    emitted = [
        (1, "<think>"),
        (2, "hm"),
        (3, "</think>"),
        (4, "\n\n"),
        (5, "A."),
        (6, ""),
        (7, "\nB"),
        (8, ""),
        (9, "é"),
        (10, ""),
    ]
    events = [Event(0, token, text, finish_reason="stop" if token == 10 else None) for token, text in emitted]
    monkeypatch.setattr(session.model, "generate", lambda messages, sampling, continues: FakeGeneration(iter(events)))
    found = list(session.send("Well?"))
    pieces = [event for event in found if isinstance(event, Piece)]
    assert "".join(piece.reasoning for piece in pieces) == "hm"
    tokens = [token for piece in pieces for token in piece.tokens]
    assert [token.id for token in tokens] == list(range(1, 11))
    assert [token.piece for token in tokens] == ["", "", "", "", "A.", "\n", "B", "", "é", ""]
    assert found[-1].text == "A.\nBé"


@pytest.mark.parametrize("after", [0, 1, 3])
def test_stop_from_another_thread_keeps_the_part(llm, after):
    session = Session(LocalModel(llm), Settings(sampling={"max_new_tokens": 400}))
    stopper = threading.Thread(target=session.stop)
    events = session.send("Hello!")
    session.on_begin = stopper.start if after == 0 else session.on_begin
    seen = [next(events) for _ in range(after)]
    if after:
        stopper.start()
        stopper.join()
    rest = list(events)
    stopper.join()
    if after == 0 and not session.turns:
        assert [event.text for event in rest] == ["stopped before a reply"]
        return
    assert isinstance(rest[-1], Reply)
    assert (rest[-1].finish_reason, rest[-2].kind) == ("cancelled", "stopped")
    text = "".join(event.text for event in [*seen, *rest] if isinstance(event, Piece))
    assert session.turns[0][1] == {"role": "assistant", "content": text, "finish_reason": "cancelled"}
    assert len(rest) <= 4
    assert collect(session.send("And you?"))[1].finish_reason != "cancelled"


def test_stop_during_a_summary_sends_nothing(llm, monkeypatch):
    session = Session(LocalModel(llm), Settings(window=200, strategy="summarise", sampling={"max_new_tokens": 30}))
    generate = session.model.generate

    def stopped(messages, sampling, continues):
        if "Summarise" in messages[-1]["content"]:
            session.stop()
        return generate(messages, sampling, continues)

    monkeypatch.setattr(session.model, "generate", stopped)
    for number, text in enumerate(TALK):
        events = list(session.send(text))
        if not isinstance(events[-1], Reply):
            assert [event.text for event in events] == ["stopped before a reply"]
            assert (len(session.turns), session.summary) == (number, "")
            return
    pytest.fail("no summary was asked for")


def test_a_very_long_reply_takes_linear_time(llm, monkeypatch):
    """Work per token must not grow: fifty thousand tokens would take hours."""
    session = Session(LocalModel(llm))
    count = 50_000
    events = (
        Event(0, number % 97, f"{number} ", finish_reason="stop" if number == count else None)
        for number in range(count + 1)
    )
    monkeypatch.setattr(session.model, "generate", lambda messages, sampling, continues: FakeGeneration(events))
    *_, reply = session.send("Count!")
    assert len(reply.tokens) == count + 1
    assert "".join(token.piece for token in reply.tokens) == reply.text


def test_kept_tokens_are_those_of_the_tree_only_and_their_texts_are_shared(demo):
    session = Session(LocalModel(demo, record=2), SHORT)
    collect(session.send("Hi, I'm Zorvan."))
    collect(session.retry())
    one, other = session.tree.versions(0)
    for node in (one, other):
        assert node.reply.tokens == () and node.tokens
    assert session.statistics.last.tokens == ()
    assert (session.statistics.replies, session.statistics.completion_tokens) == (
        2,
        len(one.tokens) + len(other.tokens),
    )
    first, again = one.tokens[0], LocalModel(demo, record=2).probabilities([Event(0, one.tokens[0].id, "")])[0]
    assert first.text is again.text
    assert first.piece is first.text


def test_tokens_that_have_come_before_their_text_are_not_taken_for_those_of_the_last_part(demo):
    session = Session(LocalModel(demo))
    token = TokenProbability(" I", -0.1, ((" I", -0.1), (" You", -2.0)), " I")
    given_reply(session, " I help", [token, TokenProbability(" help", -0.2, ((" help", -0.2),))])
    with pytest.raises(UsageError, match="the tokens of this reply are not known exactly"):
        list(session.fork(0, 0, 1))
