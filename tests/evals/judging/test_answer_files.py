"""Files of answers: whose they are is known, a kill leaves nothing mixed, two terminals do not answer twice."""

from __future__ import annotations

import json
from contextlib import contextmanager

import pytest

from engine.runtime.errors import BareloopError
from evals.judging.answer_file import AnswerFile
from evals.judging.answers import answer_questions
from evals.judging.settings import AFFORDABLE, make_settings, settings_path
from evals.runs.judged import Answer, answers_path, as_line, read_answers
from tests.evals.judging.test_answers import OPTIONS, QUESTIONS, options


def answer(number: int, text: str = "yes") -> Answer:
    return Answer(number, "demo", ((text, "no"),), ({"finish_reason": "stop"},) * 2)


class Talker:
    """Answers without a model."""

    def __init__(self, text="yes", warnings=(), window=None):
        self.text, self.warnings, self.window, self.asked = text, warnings, window, []

    def answers(self, questions):
        for question in questions:
            self.asked.append(question.id)
            yield answer(question.id, self.text)

    @contextmanager
    def open(self, *_):
        yield self


def ask(folder, talker, questions=QUESTIONS, **changes):
    return answer_questions(questions, "demo", options(**changes), folder, "digest", talker.open)


@pytest.fixture
def path(tmp_path):
    return answers_path(tmp_path, "demo")


def test_what_another_process_answers_meanwhile_is_not_answered_again(tmp_path, path):
    ask(tmp_path, Talker(), QUESTIONS[:3])
    ask(tmp_path, talker := Talker("again"))  # `QUESTIONS` were missing when it was planned
    assert talker.asked == [question.id for question in QUESTIONS[3:]]
    ask(tmp_path, talker := Talker("again"))
    assert talker.asked == []
    assert [entry.turns[0] for entry in read_answers(path).values()].count("again") == 2


def test_answers_of_unknown_origin_are_not_completed(tmp_path, path):
    path.parent.mkdir()
    path.write_text(as_line(answer(81)))
    with pytest.raises(BareloopError, match=r"demo\.jsonl lacks answers, and nothing tells where the others are from"):
        ask(tmp_path, talker := Talker())
    assert (talker.asked, path.read_text()) == ([], as_line(answer(81)))
    assert not settings_path(path).exists()
    ask(tmp_path, talker, fresh=True)
    assert len(read_answers(path)) == len(QUESTIONS)


def test_a_kill_while_starting_over_leaves_no_answers_beside_the_settings_of_others(tmp_path, path, monkeypatch):
    ask(tmp_path, Talker("old"))
    old = settings_path(path).read_text()

    def killed(*_):
        raise KeyboardInterrupt

    for name in ("rename_to_old", "write_settings"):
        with monkeypatch.context() as patch:
            patch.setattr(f"evals.judging.answer_file.{name}", killed)
            with pytest.raises(KeyboardInterrupt):
                ask(tmp_path, Talker("new"), max_new_tokens=8, fresh=True)
        assert not path.exists() and len([*tmp_path.glob("*/demo.jsonl.*.old")]) == 1
    ask(tmp_path, Talker("new"), max_new_tokens=8)
    assert json.loads(settings_path(path).read_text())["max_new_tokens"] == 8
    (kept,) = tmp_path.glob("*/demo.settings.json.*.old")
    assert kept.read_text() == old


def test_settings_without_answers_are_kept_and_bind_nobody(tmp_path, path):
    ask(tmp_path, Talker())
    path.rename(tmp_path / "elsewhere")
    ask(tmp_path, Talker(), max_new_tokens=8)
    assert len([*tmp_path.glob("*/demo.settings.json.*.old")]) == 1


def test_less_memory_than_before_is_told_and_not_refused(tmp_path, path, capsys):
    ask(tmp_path, Talker(warnings=["memory is short"], window=900), QUESTIONS[:1])
    assert capsys.readouterr().err.startswith("memory is short\n")
    assert json.loads(settings_path(path).read_text())[AFFORDABLE] == 900
    ask(tmp_path, Talker(window=1000), QUESTIONS[:2])
    assert "memory" not in capsys.readouterr().err
    ask(tmp_path, Talker(window=500), QUESTIONS[:3])
    assert "was started with memory for a window of 900 tokens, and now there is for 500" in capsys.readouterr().err
    assert json.loads(settings_path(path).read_text())[AFFORDABLE] == 900


def test_a_password_in_an_address_is_not_saved():
    settings = make_settings("small", options(url=["http://me:secret@127.0.0.1:9/v1"]), "digest")
    assert settings["url"] == "http://127.0.0.1:9"
    assert "secret" not in json.dumps(settings)


def test_a_refused_file_is_not_kept_locked(path):
    path.parent.mkdir()
    path.write_text("{\n")
    for _ in range(2):
        with pytest.raises(BareloopError, match="nothing tells where"):
            AnswerFile(path, make_settings("demo", OPTIONS, ""))
