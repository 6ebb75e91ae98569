"""A reply of a server is stopped from another thread, whatever the server does meanwhile; its tokens are known."""

from __future__ import annotations

import threading

import pytest

from chat.conversation.events import Notice, Piece, Reply
from engine.runtime.errors import BareloopError, UsageError
from tests.chat.models.chat_server import ChatServer, chunk, words
from tests.chat.models.test_remote import chatting, collect
from tests.engine.remote.fake_server import Answer, sse


class Endless(list):
    """Chunks, and then a connection that stays open: silent, or with pings."""

    def __init__(self, *texts: str, pings: bool) -> None:
        super().__init__()
        self.texts, self.pings = texts, pings
        self.closed, self.released = threading.Event(), threading.Event()

    def __iter__(self):
        try:
            yield from sse(*words(*self.texts)[:-1], end=False)
            while self.pings and not self.released.is_set():
                yield ": ping\n\n"
            self.released.wait(60)
        finally:
            self.closed.set()


@pytest.mark.parametrize("pings", [True, False])
def test_stop_ends_a_reply_that_waits_for_its_next_word_and_closes_the_connection(pings):
    endless = Endless("So", " far", pings=pings)
    with chatting(ChatServer(reply=lambda body: Answer(endless))) as (session, _):
        events = session.send("Well?")
        assert [next(events).text, next(events).text] == ["So", " far"]
        stopper = threading.Timer(0, session.stop)
        stopper.start()
        notice, reply = list(events)
        endless.released.set()
        assert (notice.kind, reply.finish_reason, reply.text) == ("stopped", "cancelled", "So far")
        assert session.turns[0][1]["finish_reason"] == "cancelled"
        if pings:
            assert endless.closed.wait(60)


def test_stop_ends_a_reply_that_the_server_has_not_begun():
    asked, released = threading.Event(), threading.Event()

    def reply(body):
        asked.set()
        released.wait(60)
        return words("Yes.")

    chat = ChatServer(reply=reply)
    with chatting(chat) as (session, _):
        stopper = threading.Thread(target=lambda: (asked.wait(60), session.stop()))
        stopper.start()
        events = list(session.send("Well?"))
        released.set()
        assert [event.text for event in events] == ["stopped before a reply"]
        assert session.turns == []
        assert collect(session.send("Well?"))[1].text == "Yes."


def test_many_replies_that_are_stopped_at_any_moment_leave_a_conversation_that_goes_on():
    chat = ChatServer(reply=lambda body: words(*[f"{number} " for number in range(50)]))
    with chatting(chat) as (session, _):
        for number in range(30):
            stopper = threading.Timer(number / 5000, session.stop)
            stopper.start()
            events = list(session.send(f"Count {number}!"))
            stopper.join()
            assert isinstance(events[-1], Reply) or events[-1].text == "stopped before a reply"
        assert all(len(turn) == 2 for turn in session.turns)
        assert collect(session.send("Again!"))[1].finish_reason == "stop"


def test_tokens_are_pieces_of_text_or_what_the_server_tells():
    """Without log-probabilities a chunk is a token; with them a chunk may have several."""
    with chatting(ChatServer()) as (session, _):
        _, reply = collect(session.send("Hi there!"))
        assert [token.piece for token in reply.tokens] == ["You ", "said: ", "Hi there!"]
        assert {(token.logprob, token.id, len(token.alternatives)) for token in reply.tokens} == {(None, None, 0)}
        assert session.tokens_of(0) == list(reply.tokens)
        with pytest.raises(UsageError, match="token 1 has no alternatives; /set logprobs 5"):
            list(session.fork(0, 0, 0))
        session.tree.node(0).tokens = None
        for show in (lambda: session.tokens_of(0), lambda: session.window_tokens(scored=True)):
            with pytest.raises(BareloopError, match="does not tell the probabilities of a text"):
                show()


def entry(token: str, *others: str) -> dict[str, object]:
    top = [{"token": text, "logprob": -float(rank)} for rank, text in enumerate((token, *others), 1)]
    return {"token": token, "logprob": -1.0, "top_logprobs": top}


def test_a_fork_continues_on_the_server():
    two = {"content": [entry("Yes", "No"), entry(", ", "!")]}
    first = [
        chunk({"content": "Yes, "}, logprobs=two),
        chunk({"content": "sir"}, logprobs={"content": [entry("sir", "</s>")]}),
    ]
    chat = ChatServer(reply=lambda body: [*first, chunk({}, "stop")])
    with chatting(chat) as (session, _):
        _, reply = collect(session.send("Well?"))
        assert [token.piece for token in reply.tokens] == ["Yes", ", ", "sir"]
        chat.reply = lambda body: words(" sir")
        _, reply = collect(session.fork(0, 1, 1))
        assert (reply.text, [token.piece for token in reply.tokens]) == ("Yes! sir", ["Yes", "!", " sir"])
        assert chat.bodies[-1]["messages"][-1] == {"role": "assistant", "content": "Yes!"}
        assert chat.bodies[-1]["continue_final_message"] is True
        session.choose(0, 0)
        (ended,) = session.fork(0, 2, 1)
        assert (ended.text, len(chat.bodies)) == ("Yes, ", 2)


def test_reasoning_comes_in_pieces():
    deltas = [{"reasoning_content": "h"}, {"reasoning_content": "m"}, {"content": "Yes"}, {"content": "."}]
    with chatting(ChatServer(reply=lambda body: [*map(chunk, deltas), chunk({}, "stop")])) as (session, _):
        events = [event for event in session.send("Well?") if not isinstance(event, Notice)]
    pieces = [(event.text, event.reasoning) for event in events if isinstance(event, Piece)]
    assert pieces == [("", "h"), ("", "m"), ("Yes", ""), (".", "")]
    assert [(token.text, token.piece) for token in events[-1].tokens] == [
        ("h", ""),
        ("m", ""),
        ("Yes", "Yes"),
        (".", "."),
    ]
