"""Chats with the models of servers: never over the window, nothing lost, whatever the server can and cannot do."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator

import pytest

from chat.context import STRATEGIES, ContextOverflowError
from chat.conversation.events import Notice, Piece, Reply, Settings
from chat.conversation.session import Session
from chat.conversation.streaming import LOOP_CHARACTERS
from chat.models.remote import Server
from engine.runtime.errors import BareloopError, UsageError
from tests.chat.models.chat_server import REFUSALS, ChatServer, chunk, words
from tests.engine.remote.fake_server import Answer, FakeServer, error, serving, sse


@contextlib.contextmanager
def chatting(
    chat: ChatServer, settings: Settings | None = None, window: int | None = None
) -> Iterator[tuple[Session, FakeServer]]:
    """A session with the server's first model."""
    with serving(chat.answer) as server:
        remote = Server(f"{server.url}/v1", window=window)
        yield Session(remote.load(remote.first()), settings), server


def collect(events) -> tuple[list[Notice], Reply]:
    """The notices and the reply of a turn; the pieces are the end of the reply's text."""
    events = list(events)
    (reply,) = [event for event in events if isinstance(event, Reply)]
    assert reply.text.endswith("".join(event.text for event in events if isinstance(event, Piece)))
    return [event for event in events if isinstance(event, Notice)], reply


def test_a_reply_has_the_server_s_counts_and_only_the_user_s_settings_are_sent():
    chat = ChatServer()
    settings = Settings(system="Be kind.", sampling={"top_p": 0.5, "stop": ["x"], "logprobs": 2})
    with chatting(chat, settings) as (session, _):
        notices, reply = collect(session.send("Hi there!"))
    assert (notices, reply.text, reply.finish_reason) == ([], "You said: Hi there!", "stop")
    assert (reply.prompt_tokens, reply.completion_tokens, reply.cached_tokens) == (12, 3, 6)
    assert reply.window == 1000 and reply.ttft > 0
    assert session.turns[0][1] == {"role": "assistant", "content": "You said: Hi there!"}
    assert chat.bodies == [
        {
            "model": "small",
            "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi there!"}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": 256,
            "top_p": 0.5,
            "stop": ["x"],
            "logprobs": True,
            "top_logprobs": 2,
        }
    ]


@pytest.mark.parametrize("tokenizes", ["messages", "text", "nothing"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_long_conversation_never_exceeds_the_window(tokenizes, strategy):
    """With exact counts the server refuses nothing, with others each refusal makes room."""
    chat, draws = ChatServer(window=120, tokenizes=tokenizes), random.Random(0)
    settings = Settings(system="Be kind.", strategy=strategy, sampling={"max_new_tokens": 20})
    with chatting(chat, settings) as (session, _):
        for number in range(40):
            message = f"{number} " + " ".join(draws.choices(("hi", "1234", "tomorrow"), k=draws.randrange(20)))
            try:
                _, reply = collect(session.send(message))
            except ContextOverflowError as full:
                assert strategy == "none" and "start a new conversation" in str(full)
                break
            sent = chat.bodies[-1]["messages"]
            assert reply.text == f"You said: {message}" == f"You said: {sent[-1]['content']}"
            assert sent[0]["content"].startswith("Be kind.")
            assert [message["role"] for message in sent[1:]] == ["user", "assistant"] * (len(sent) // 2 - 1) + ["user"]
        else:
            assert strategy != "none" and session.statistics.dropped_turns > 0
            assert session.statistics.summaries > 0 or strategy != "summarise"
        assert session.model.counts_exactly == (tokenizes == "messages")
    assert chat.refused <= (0 if tokenizes == "messages" else 10)


@pytest.mark.parametrize("refusal", REFUSALS)
def test_what_the_server_finds_too_long_is_made_shorter_and_sent_again(refusal):
    """The window is not told, so it is learned from the refusals, of whatever wording."""
    chat = ChatServer(window=100, tells_window=False, tokenizes="nothing", refusal=refusal)
    with chatting(chat, Settings(sampling={"max_new_tokens": 10})) as (session, _):
        (warning,) = session.warnings
        assert "4,096 tokens are assumed" in warning.text
        for number in range(12):
            _, reply = collect(session.send(f"{number} " + "word " * 15))
            assert reply.text.startswith(f"You said: {number} ")
        with pytest.raises(ContextOverflowError, match="shorten the message"):
            list(session.send("word " * 200))
        assert len(session.turns) == 12
        assert session.model.limit <= 140
    assert 0 < chat.refused <= 12


def test_with_strategy_none_a_refusal_is_the_overflow_of_a_full_window():
    chat = ChatServer(window=60, tells_window=False)
    with chatting(chat, Settings(strategy="none", sampling={"max_new_tokens": 10})) as (session, _):
        with pytest.raises(ContextOverflowError, match="start a new conversation, or use /strategy sliding"):
            for _ in range(9):
                list(session.send("word " * 8))
        assert len(session.turns) == 2 and all(len(turn) == 2 for turn in session.turns)


def test_the_user_s_window_is_taken_where_the_server_tells_none():
    with chatting(ChatServer(tells_window=False), Settings(window=500), window=500) as (session, _):
        assert session.budget.window == 500 and session.warnings == []
    with chatting(ChatServer(window=300), Settings(window=500), window=500) as (session, _):
        assert session.budget.window == 300
        assert session.warnings[0].text == "the model's window is 300 tokens, not 500"


@pytest.mark.parametrize(("tokenizes", "requests"), [("messages", 4 + 5), ("text", 2 + 9), ("nothing", 3)])
def test_nothing_is_counted_twice(tokenizes, requests):
    """After two to four that find out what the server and its template can do: a request per prompt, or per text."""
    with chatting(ChatServer(tokenizes=tokenizes)) as (session, server):
        for number in range(5):
            collect(session.send(f"message {number}"))
            collect(session.retry())
        assert server.paths().count("/tokenize") == requests


def test_an_abandoned_reply_closes_the_connection_keeps_its_part_and_continues():
    closed = threading.Event()

    class Endless(list):
        def __iter__(self):
            try:
                yield from sse(*words("So", " far"), end=False)[:3]
                while True:
                    yield ": ping\n\n"
            finally:
                closed.set()

    chat = ChatServer(reply=lambda body: Answer(Endless()))
    with chatting(chat) as (session, _):
        events = session.send("Well?")
        assert [next(events).text, next(events).text] == ["So", " far"]
        events.close()
        assert closed.wait(60)
        assert session.turns == [
            [
                {"role": "user", "content": "Well?"},
                {"role": "assistant", "content": "So far", "finish_reason": "cancelled"},
            ]
        ]
        chat.reply = lambda body: words(", so good", finish_reason="length")
        _, reply = collect(session.proceed())
    assert (reply.text, reply.finish_reason) == ("So far, so good", "length")
    assert chat.bodies[-1]["messages"][-1] == {"role": "assistant", "content": "So far"}
    assert chat.bodies[-1]["continue_final_message"] is True
    assert chat.bodies[-1]["add_generation_prompt"] is False


def test_a_server_that_goes_away_costs_only_the_rest_of_the_reply():
    broken = Answer(sse(*words("So", " far")[:-1], end=False), breaks=True)
    with chatting(ChatServer(reply=lambda body: broken)) as (session, server):
        with pytest.raises(BareloopError, match="what came of the reply is kept: /continue, or /retry"):
            list(session.send("Well?"))
        assert session.turns[0][1] == {"role": "assistant", "content": "So far", "finish_reason": "cancelled"}
        server.close()
        with pytest.raises(BareloopError, match="no server answers"):
            list(session.send("And now?"))
        assert len(session.turns) == 1


def test_a_connection_that_breaks_after_the_end_of_the_reply_costs_only_its_counts():
    with chatting(ChatServer(reply=lambda body: Answer(sse(*words("Yes."), end=False), breaks=True))) as (session, _):
        _, reply = collect(session.send("Well?"))
    assert (reply.text, reply.finish_reason, reply.completion_tokens) == ("Yes.", "stop", 1)


@pytest.mark.parametrize(
    "deltas",
    [
        [{"reasoning_content": "h"}, {"reasoning_content": "m"}, {"content": "Yes"}, {"content": "."}],
        [{"reasoning": "hm"}, {"content": "Yes."}],
        [{"content": "<thi"}, {"content": "nk>hm</think>\n\nY"}, {"content": "es."}],
    ],
    ids=["reasoning_content", "reasoning", "tags"],
)
def test_reasoning_is_split_off_in_every_form(deltas):
    with chatting(ChatServer(reply=lambda body: [*map(chunk, deltas), chunk({}, "stop")])) as (session, _):
        notices, reply = collect(session.send("Well?"))
        assert (reply.text, reply.reasoning) == ("Yes.", "hm")
        assert [notice.kind for notice in notices] == ["reasoning"]
        assert session.visible_messages()[-1] == {"role": "assistant", "content": "Yes."}


def test_a_reply_that_repeats_itself_is_stopped():
    with chatting(ChatServer(reply=lambda body: words("Well, ", *["I see. "] * 500))) as (session, _):
        notices, reply = collect(session.send("Well?"))
    assert reply.finish_reason == "loop" and notices[-1].kind == "loop"
    assert len(reply.text) < LOOP_CHARACTERS + 20


def test_retry_and_edit_replace_the_last_message():
    chat = ChatServer()
    with chatting(chat) as (session, _):
        collect(session.send("One."))
        assert collect(session.retry())[0] == []  # whether the temperature is 0, only the server knows
        collect(session.edit("Two."))
        assert [message["content"] for message in session.turns[0]] == ["Two.", "You said: Two."]
        session.configure(sampling={"temperature": 0.0})
        assert "the reply will hardly differ" in collect(session.retry())[0][0].text
        chat.reply = lambda body: error("no", 400)
        with pytest.raises(BareloopError, match='answered 400: "no"'):
            list(session.edit("Three."))
        assert session.turns[0][0]["content"] == "Two."


def test_a_summary_that_fails_is_reported_and_the_conversation_goes_on():
    def reply(body):
        summary = body["messages"][-1]["content"].startswith("Summarise")
        return error("not now", 400) if summary else words("word " * 10)

    settings = Settings(strategy="summarise", sampling={"max_new_tokens": 10})
    with chatting(ChatServer(window=100, reply=reply), settings) as (session, _):
        notices = [notice for _ in range(8) for notice in collect(session.send("word " * 8))[0]]
    assert any(notice.text.startswith("no summary, so old turns are dropped without one") for notice in notices)
    assert session.statistics.dropped_turns > 0


def test_models_that_want_another_name_of_the_length_get_it():
    def reply(body):
        if "max_tokens" in body:
            return error("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", 400)
        return words("Yes.")

    chat = ChatServer(reply=reply)
    with chatting(chat) as (session, _):
        for _ in range(2):
            assert collect(session.send("Well?"))[1].text == "Yes."
    assert [body.get("max_completion_tokens") for body in chat.bodies] == [None, 256, 256]


def test_tokens_and_probabilities_come_from_the_server_or_one_line_says_that_they_do_not():
    top = [{"token": "Yes", "logprob": -0.1}, {"token": "No", "logprob": -2.5}]
    content = [{"token": "Yes", "logprob": -0.1, "bytes": None, "top_logprobs": top}]
    likely = [chunk({"content": "Yes"}, logprobs={"content": content}), chunk({}, "stop")]
    with chatting(ChatServer(reply=lambda body: likely)) as (session, _):
        _, reply = collect(session.send("Hi!"))
        (token,) = reply.tokens
        assert (token.text, token.logprob) == ("Yes", -0.1)
        assert token.alternatives == (("Yes", -0.1), ("No", -2.5))
        assert session.tokens()[:2] == [(0, "w0"), (1, "w1")]
        assert session.prompt_text().startswith("w0 w1 w2")
    with chatting(ChatServer(tokenizes="text")) as (session, _):
        _, reply = collect(session.send("Hi!"))
        assert [token.logprob for token in reply.tokens] == [None] * 3
        for show in (session.tokens, session.prompt_text):
            with pytest.raises(BareloopError, match="does not show its prompts; this needs a model loaded here"):
                show()


def test_answers_of_the_wrong_type_break_nothing():
    odd = [
        {"choices": None, "usage": 5},
        {"choices": [None, {"delta": None}, {"delta": {"content": 5}, "logprobs": {"content": [None, {}]}}]},
        chunk({"content": "Yes."}),
        {"usage": {"prompt_tokens": "many", "prompt_tokens_details": None}},
    ]
    with chatting(ChatServer(reply=lambda body: Answer(sse(*odd, chunk({}, "stop"))))) as (session, _):
        assert collect(session.send("Hi!"))[1].text == "Yes."


def test_an_unknown_model_is_refused_with_the_names_of_the_known_ones():
    with serving(ChatServer().answer) as server, pytest.raises(BareloopError, match="it has 'small', 'org/large'"):
        Server(server.url).load("big")
    with serving(ChatServer(names=[]).answer) as server, pytest.raises(BareloopError, match="name one with -m"):
        Server(server.url).first()


def test_an_empty_message_is_not_sent():
    chat = ChatServer()
    with chatting(chat) as (session, _), pytest.raises(UsageError, match="the message is empty"):
        list(session.send("  "))
    assert chat.bodies == []


def test_a_tokenizer_that_fails_costs_only_exact_counts():
    chat = ChatServer()
    chat_answer = chat.answer

    def answer(asked):
        return error("internal error", 500) if asked.path == "/tokenize" else chat_answer(asked)

    with serving(answer) as server:
        session = Session(Server(server.url).load("small"))
        assert collect(session.send("Hi!"))[1].text == "You said: Hi!"
        assert not session.model.counts_exactly


@pytest.mark.parametrize("kind", ["content", "reasoning_content"])
@pytest.mark.parametrize(
    ("texts", "whole"),
    [
        (("smile \ud83d", "\ude00", " end"), "smile \N{GRINNING FACE} end"),
        (("smile \ud83d", " end"), "smile \ufffd end"),
        (("smile \ude00", "\ud83d"), "smile \ufffd\ufffd"),
    ],
)
def test_halves_of_utf_16_pairs_are_joined_or_replaced(kind, texts, whole):
    entry = {"token": "\ud83d", "logprob": -0.1, "top_logprobs": [{"token": "\ude00", "logprob": -0.1}]}
    chunks = [chunk({kind: text}, logprobs={"content": [entry]}) for text in texts]
    with chatting(ChatServer(reply=lambda body: [*chunks, chunk({}, "stop")])) as (session, _):
        _, reply = collect(session.send("Well?"))
    assert (reply.text or reply.reasoning) == whole
    assert {reply.tokens[0].text, reply.tokens[0].alternatives[0][0]} == {"\ufffd"}


def test_a_reply_that_ends_without_a_reason_ends_in_whole_characters():
    with chatting(ChatServer(reply=lambda body: words("So \ud83d")[:-1])) as (session, _):
        assert collect(session.send("Well?"))[1].text == "So \ufffd"


def test_no_token_is_made_up_if_the_server_tells_the_tokens_before_their_text():
    def entries(*tokens: str) -> dict[str, object]:
        return {"content": [{"token": token, "logprob": -0.1, "top_logprobs": []} for token in tokens]}

    parts = [chunk({"content": " I"}, logprobs=entries(" I", " help", " you")), *words(" help", " you")]
    with chatting(ChatServer(reply=lambda body: parts)) as (session, _):
        _, reply = collect(session.send("Well?"))
    assert reply.text == " I help you"
    assert [token.text for token in reply.tokens] == [" I", " help", " you"]
