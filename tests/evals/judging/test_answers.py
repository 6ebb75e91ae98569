"""Answers: FastChat's protocol through the chat's session, the same texts after an interruption, no false ERROR."""

from __future__ import annotations

import itertools
import json
from argparse import Namespace
from dataclasses import replace

import pytest

from chat.conversation.session import Session
from engine import LLM, SamplingParams
from engine.remote import client
from engine.remote.errors import RemoteError
from engine.runtime.errors import BareloopError
from evals.data.mt_bench import JudgedQuestion
from evals.judging import answers as module
from evals.judging.answer_file import MAX_FAILURES, describe, unanswered
from evals.judging.answers import Conversations, answer_questions
from evals.judging.settings import make_settings, model_id, settings_path
from evals.runs.judged import ERROR, Answer, answers_path, read_answers
from tests.chat.models.chat_server import ChatServer, words
from tests.engine.remote.fake_server import Answer as Served
from tests.engine.remote.fake_server import error, serving, sse, unused_url

QUESTIONS = [
    JudgedQuestion(81, "writing", ("Hello! My name is Ada.", "What is my name?")),
    JudgedQuestion(101, "reasoning", ("What is the capital of France?", "Is it large?")),
    JudgedQuestion(111, "math", ("My name is Tobin.", "What is my name?")),
    JudgedQuestion(131, "stem", ("What is the chemical symbol of lead?", "Thank you!")),
    JudgedQuestion(141, "elsewhere", ("Who are you?",)),
]
LONG = JudgedQuestion(150, "math", ("word " * 2000, "Again?"))
LONG_AFTER = JudgedQuestion(151, "math", ("Who are you?", "word " * 2000))
OPTIONS = Namespace(
    **{"quant": "auto", "dtype": "float32", "device": "cpu", "adapter": None, "allow_pickle": False},
    **{"no_history": False, "max_new_tokens": 24, "num_choices": 1, "batch_size": None, "concurrency": None},
    **{"url": None, "api_key_file": None, "fresh": False, "workers": None, "retry": False},
    **{"judge_url": None, "judge_api_key_file": None},
)


@pytest.fixture(scope="module")
def demo() -> LLM:
    return LLM.load("demo", dtype="float32", device="cpu")


@pytest.fixture(autouse=True)
def loaded_once(demo, monkeypatch):
    monkeypatch.setattr("engine.LLM.load", lambda *_, **__: demo)
    monkeypatch.setattr(client, "FIRST_WAIT", 0.0)


def options(**changes) -> Namespace:
    return Namespace(**{**vars(OPTIONS), **changes})


def ask(questions, folder, data="digest", **changes) -> dict[int, Answer]:
    return read_answers(answer_questions(questions, "demo", options(**changes), folder, data))


def texts(answers) -> dict[int, tuple[tuple[str, ...], ...]]:
    return {number: answer.choices for number, answer in answers.items()}


def reply(demo, messages, **sampling) -> str:
    """What the model says by itself, with no session and no neighbours."""
    ids = demo.chat_template.encode(messages)
    params = SamplingParams(max_new_tokens=24, **sampling)
    return demo.generate([ids], params)[0].text.strip()


def conversation(demo, turns, history=True, **sampling) -> tuple[str, ...]:
    messages, said = [], []
    for turn in turns:
        messages = [*(messages if history else []), {"role": "user", "content": turn}]
        said.append(reply(demo, messages, **sampling))
        messages.append({"role": "assistant", "content": said[-1]})
    return tuple(said)


def test_each_turn_is_the_model_s_reply_to_the_conversation_so_far(demo, tmp_path):
    answers = ask(QUESTIONS, tmp_path)
    by_id = {question.id: question for question in QUESTIONS}
    for number in (101, 111):
        assert answers[number].turns == conversation(demo, by_id[number].turns)
    assert answers[81].turns == conversation(demo, by_id[81].turns, temperature=0.7, seed=0)
    assert answers[131].turns == conversation(demo, by_id[131].turns, temperature=0.1, seed=0)
    assert answers[141].turns == conversation(demo, by_id[141].turns, temperature=0.7, seed=0)
    assert "Tobin" in answers[111].turns[1]
    for answer in answers.values():
        assert [usage["finish_reason"] for usage in answer.usage] == ["stop"] * len(answer.turns)
        assert all(usage["prompt_tokens"] > 0 < usage["completion_tokens"] <= 24 for usage in answer.usage)


def test_without_history_the_second_question_stands_alone(demo, tmp_path):
    (answer,) = ask(QUESTIONS[2:3], tmp_path, no_history=True).values()
    assert answer.turns == conversation(demo, QUESTIONS[2].turns, history=False)
    assert (tmp_path / "model_answer/demo-no-history.jsonl").exists()


def test_each_choice_has_its_own_seed(demo, tmp_path):
    (answer,) = ask(QUESTIONS[:1], tmp_path, num_choices=2).values()
    expected = [conversation(demo, QUESTIONS[0].turns, temperature=0.7, seed=seed) for seed in range(2)]
    assert answer.choices == tuple(expected)


def test_a_model_s_own_sampling_parameters_do_not_count(demo, tmp_path, monkeypatch):
    plain = texts(ask(QUESTIONS[:2], tmp_path / "a"))
    own = {"do_sample": True, "temperature": 1.5, "top_k": 1, "top_p": 0.2, "repetition_penalty": 1.9}
    monkeypatch.setitem(vars(demo), "default_params", own)  # where a cached property keeps its value
    assert demo.default_params == own
    assert texts(ask(QUESTIONS[:2], tmp_path / "b")) == plain


def test_a_run_that_is_killed_anywhere_gives_the_answers_of_one_that_is_not(tmp_path, monkeypatch):
    whole = ask(QUESTIONS, tmp_path / "whole")
    asked = []
    answer = Conversations.answers

    def killed(self, questions):
        asked.extend(question.id for question in questions)
        yield from itertools.islice(answer(self, questions), 2)
        raise KeyboardInterrupt

    monkeypatch.setattr(Conversations, "answers", killed)
    path = answers_path(tmp_path / "killed", "demo")
    with pytest.raises(KeyboardInterrupt, match=r"interrupted: saved in .*demo.jsonl: 2 new answers; to continue: "):
        ask(QUESTIONS, tmp_path / "killed")
    kept = path.read_bytes().splitlines(keepends=True)
    assert len(kept) == 2
    with path.open("ab") as file:
        file.write(kept[0][:40])  # the line that was being written
    monkeypatch.setattr(Conversations, "answers", answer)
    left = unanswered(QUESTIONS, read_answers(path))
    assert len(left) == 3
    continued = ask(left, tmp_path / "killed", batch_size=2)
    assert texts(continued) == texts(whole)
    assert [entry.answer_id for entry in continued.values()] == [entry.answer_id for entry in whole.values()]
    assert {*kept} < {*path.read_bytes().splitlines(keepends=True)}  # nothing was asked twice
    assert [*continued] == sorted(continued)


def test_a_message_that_does_not_fit_is_an_error_and_only_that(tmp_path):
    answers = ask([LONG, LONG_AFTER, QUESTIONS[2]], tmp_path)
    assert answers[LONG.id].turns == (ERROR, ERROR)
    assert answers[LONG_AFTER.id].turns == (answers[LONG_AFTER.id].turns[0], ERROR) != (ERROR, ERROR)
    assert "the message has 2,003 tokens" in answers[LONG.id].usage[0]["error"]
    assert ERROR not in answers[111].turns
    assert describe(answers.values()) == "3 answers; failed (--retry asks again): 2 answers"


def test_a_window_for_which_memory_is_short_is_told_and_saved(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(LLM, "affordable_length", lambda _: 600)
    ask(QUESTIONS[:2], tmp_path)
    told = "memory is enough for a window of 600 tokens, not 1,024; use a smaller model or dtype\n"
    assert capsys.readouterr().err.count(told) == 1
    assert json.loads(settings_path(answers_path(tmp_path, "demo")).read_text())["affordable_window"] == 600


def test_a_dropped_first_turn_is_counted(tmp_path):
    question = JudgedQuestion(152, "math", ("word " * 600, "word " * 600))
    (answer,) = ask([question], tmp_path).values()
    assert [usage["dropped_turns"] for usage in answer.usage] == [0, 1]
    assert "without the turn before, for which the window has no room: 1 turn" in describe([answer])


def test_nothing_is_written_if_every_question_fails(tmp_path):
    with pytest.raises(BareloopError, match="none of 1 questions could be answered: the message has"):
        ask([LONG], tmp_path)
    assert [*tmp_path.glob("*/*")] == []


def test_too_many_failures_in_a_row_end_the_run_without_a_trace_of_them(tmp_path, monkeypatch):
    good = Answer(1, "demo", (("yes",),), ({"finish_reason": "stop"},))
    bad = Answer(2, "demo", ((ERROR,),), ({"finish_reason": "error", "error": "bad logits"},))
    failing = [replace(bad, question_id=number) for number in range(2, 2 + MAX_FAILURES)]

    def answers(_, questions):
        yield from [good, *failing]

    monkeypatch.setattr(Conversations, "answers", answers)
    with pytest.raises(BareloopError, match="8 questions in a row have failed, the last one: bad logits; saved in "):
        ask(QUESTIONS, tmp_path)
    assert [*read_answers(answers_path(tmp_path, "demo"))] == [1]

    failing.insert(4, replace(good, question_id=99))
    assert len(ask(QUESTIONS, tmp_path)) == MAX_FAILURES + 2


def test_what_failed_is_missing_only_with_retry():
    failed = Answer(111, "demo", (("a", ERROR),))
    short = Answer(101, "demo", (("a",),))
    known = {111: failed, 101: short, 81: Answer(81, "demo", (("a", "b"),))}
    assert [question.id for question in unanswered(QUESTIONS[:3], known)] == [101]
    assert [question.id for question in unanswered(QUESTIONS[:3], known, retry=True)] == [101, 111]


def test_other_settings_are_refused_by_name_and_fresh_starts_over(tmp_path):
    path = answers_path(tmp_path, "demo")
    ask(QUESTIONS[:1], tmp_path)
    before = path.read_text()
    for changes, difference in (
        ({"max_new_tokens": 8}, "another max_new_tokens .24, now 8"),
        ({"num_choices": 2}, "another num_choices"),
        ({"data": "other"}, "other data"),
        ({"dtype": "bfloat16"}, "another dtype"),
    ):
        with pytest.raises(BareloopError, match=f"was started with {difference}.*--fresh"):
            ask(QUESTIONS[1:2], tmp_path, **changes)
        assert path.read_text() == before
    assert len(ask(QUESTIONS[1:2], tmp_path, max_new_tokens=8, fresh=True)) == 1
    assert json.loads(settings_path(path).read_text())["max_new_tokens"] == 8
    assert len([*tmp_path.glob("model_answer/demo.jsonl.*.old")]) == 1
    assert len([*tmp_path.glob("model_answer/demo.settings.json.*.old")]) == 1


def test_the_date_of_a_template_is_that_of_the_first_session(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(module, "Session", lambda *arguments: seen.append(arguments[2]) or Session(*arguments))
    path = answer_questions(QUESTIONS[:1], "demo", OPTIONS, tmp_path, "digest")
    settings = json.loads(settings_path(path).read_text())
    settings_path(path).write_text(json.dumps({**settings, "date": "2020-02-20T20:20:20"}))
    ask(QUESTIONS[1:2], tmp_path)
    assert [now.year for now in seen][1:] == [2020]
    assert json.loads(settings_path(path).read_text())["date"] == "2020-02-20T20:20:20"


def test_names_of_files_tell_what_differs(tmp_path):
    (tmp_path / "tiny.gguf").touch()
    assert model_id("org/Model-1.5", options()) == "org__Model-1.5"
    assert model_id(str(tmp_path / "tiny.gguf"), options(quant="gguf")) == "tiny"
    changes = {"quant": "int8", "adapter": "me/squad", "no_history": True}
    assert model_id("gpt2", options(**changes)) == "gpt2-int8+me__squad-no-history"


def remote_options(url, **changes) -> Namespace:
    return options(url=[url], max_new_tokens=50, **changes)


def test_a_server_is_asked_as_the_protocol_says(tmp_path):
    chat = ChatServer()
    with serving(chat.answer) as server:
        answers = read_answers(answer_questions(QUESTIONS, "small", remote_options(server.url), tmp_path, "digest"))
    assert answers[101].turns == tuple(f"You said: {text}" for text in QUESTIONS[1].turns)
    first, second = [body for body in chat.bodies if QUESTIONS[2].turns[0] in body["messages"][0]["content"]]
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "user"]
    assert second["messages"][1]["content"] == "You said: My name is Tobin."
    sent = {name: value for name, value in first.items() if name not in ("messages", "stream", "stream_options")}
    assert sent == {"model": "small", "temperature": 0.0, "top_p": 1.0, "seed": 0, "max_tokens": 50}
    settings = json.loads((tmp_path / "model_answer/small.settings.json").read_text())
    assert (settings["device"], settings["dtype"], settings["quant"]) == ("remote", "remote", "remote")


def test_a_refused_prompt_is_an_error_and_a_lost_server_is_not(tmp_path):
    chat = ChatServer()

    def refuse(body):
        text = body["messages"][-1]["content"]
        return error("no such words here", 400) if "France" in text else words("Yes.")

    chat.reply = refuse
    with serving(chat.answer) as server:
        flags = remote_options(server.url, concurrency=1)
        path = answer_questions(QUESTIONS[1:3], "small", flags, tmp_path, "digest")
        answers = read_answers(path)
        assert answers[101].turns == (ERROR, ERROR) and "no such words here" in answers[101].usage[0]["error"]
        assert answers[111].turns == ("Yes.", "Yes.")
        chat.reply = lambda body: error("quota", 403)
        with pytest.raises(RemoteError, match="quota"):
            answer_questions(QUESTIONS[3:], "small", flags, tmp_path, "digest")
    with pytest.raises(RemoteError, match="no server answers"):
        answer_questions(QUESTIONS[3:], "small", remote_options(unused_url()), tmp_path, "digest")
    assert [*read_answers(path)] == [101, 111]


def test_a_reply_that_breaks_off_is_asked_for_again(tmp_path):
    chat, broken = ChatServer(), []

    def reply_(body):
        if not broken:
            broken.append(body)
            return Served(sse(*words("You ")[:2], end=False))
        return words("Yes.")

    chat.reply = reply_
    with serving(chat.answer) as server:
        path = answer_questions(QUESTIONS[1:2], "small", remote_options(server.url), tmp_path, "digest")
    assert read_answers(path)[101].turns == ("Yes.", "Yes.")


def test_a_connection_that_stays_broken_is_told_without_hints_of_the_chat(tmp_path):
    chat = ChatServer(reply=lambda body: Served(sse(*words("You ")[:2], end=False)))
    with serving(chat.answer) as server, pytest.raises(RemoteError) as caught:
        answer_questions(QUESTIONS[1:2], "small", remote_options(server.url), tmp_path, "digest")
    assert str(caught.value).endswith("ended in the middle; ask again")
    assert len(chat.bodies) == module.TRIES


def test_the_second_turn_follows_the_answer_that_is_saved(tmp_path):
    chat = ChatServer(reply=lambda body: words("\n Well: ", "yes. \n\n"))
    with serving(chat.answer) as server:
        path = answer_questions(QUESTIONS[1:2], "small", remote_options(server.url), tmp_path, "digest")
    assert read_answers(path)[101].turns == ("Well: yes.", "Well: yes.")
    assert chat.bodies[1]["messages"][1] == {"role": "assistant", "content": "Well: yes."}


def test_after_ctrl_c_nothing_new_is_asked(tmp_path, monkeypatch):
    chat, stopping = ChatServer(), []
    converse = Conversations._reply

    def interrupted(self, session, text):
        reply = converse(self, session, text)
        self._is_stopping.set()  # while its own conversation goes on to the second turn
        stopping.append(text)
        return reply

    monkeypatch.setattr(Conversations, "_reply", interrupted)
    with serving(chat.answer) as server, pytest.raises(module._StoppedError):
        answer_questions(QUESTIONS[1:2], "small", remote_options(server.url, concurrency=1), tmp_path, "digest")
    assert len(chat.bodies) == 1 == len(stopping)


def test_settings_of_a_model_here_identify_its_files(demo):
    settings = make_settings("demo", OPTIONS, "digest")
    assert settings["window"] == demo.max_length == 1024
    assert {"weights", "config", "tokenizer", "machine", "date"} <= settings.keys()
    assert settings["sampling"]["top_p"] == 1.0
