"""Judging is resumable by line, survives failures, and never asks for what stands in the files."""

from __future__ import annotations

import json
import signal
import threading
from collections import Counter

import pytest

from engine.remote import client
from engine.runtime.errors import BareloopError
from evals.judging.judges import PromptTooLongError, RemoteJudge
from evals.judging.judgments import judge_matches, plan
from evals.runs.judged import judgments_path, read_judgments, read_pair_judgments
from tests.engine.remote.fake_server import unused_url
from tests.evals.judging.judge_server import BROKEN, CUT, NO_KEY, judging
from tests.evals.judging.scripted import Scripted, failing_for, pairs, singles


@pytest.fixture(autouse=True)
def no_keys_and_no_waiting(monkeypatch):
    for name in ("BARELOOP_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(client, "FIRST_WAIT", 0.0)


def scores(folder, judge="scripted", number=1):
    found = read_judgments(judgments_path(folder, judge, "single", number))
    return {row.question_id: row.score for row in found}


def test_a_server_judges_every_match_once_and_a_second_run_asks_nothing(tmp_path):
    with judging(says={"Q81?": "Poor. [[2]]", "Q82?": "No idea."}) as (url, server), RemoteJudge(url, "judge") as judge:
        judge_matches(singles(), judge, tmp_path, "single")
        assert scores(tmp_path, "judge") == {81: 2, 82: -1} | dict.fromkeys(range(83, 89), 5)
        assert Counter(body["messages"][-1]["content"] for body in server.bodies) == Counter(
            f"Q{number}? -> a's answer to {number}" for number in range(81, 89)
        )
        judge_matches(singles(), judge, tmp_path, "single")
        assert len(server.bodies) == 8
        path = judgments_path(tmp_path, "judge", "single")
        assert path == tmp_path / "model_judgment" / "judge_single.jsonl"
        row = next(row for row in map(json.loads, path.read_text().splitlines()) if row["question_id"] == 81)
        assert row.pop("tstamp") > 1.7e9
        assert row == {
            "question_id": 81,
            "model": "a",
            "judge": ["judge", "single-v1"],
            "user_prompt": "Q81? -> a's answer to 81",
            "judgment": "Poor. [[2]]",
            "score": 2,
            "turn": 1,
        }


def test_nothing_is_started_if_nothing_is_missing(tmp_path):
    first, second = Scripted(), Scripted()
    judge_matches(singles(), first, tmp_path, "single")
    judge_matches(singles()[:3], second, tmp_path, "single")
    assert (first.started, second.started, second.asked) == (1, 0, [])


def test_other_models_in_the_file_stay(tmp_path):
    judge_matches(singles("b"), Scripted(), tmp_path, "single")
    judge = Scripted(lambda prompt, number: "[[9]]")
    judge_matches(singles("a", "b"), judge, tmp_path, "single")
    assert all(prompt.endswith(f"a's answer to {prompt[1:3]}") for _, prompt in judge.asked)
    found = read_judgments(judgments_path(tmp_path, "scripted", "single"))
    assert Counter((row.model, row.score) for row in found) == {("b", 5): 8, ("a", 9): 8}


def test_passes_have_files_and_numbers_of_their_own(tmp_path):
    judge = Scripted(lambda prompt, number: f"[[{number}]]")
    judge_matches(singles(), judge, tmp_path, "single", passes=1)
    judge_matches(singles(), judge, tmp_path, "single", passes=3)
    assert Counter(number for number, _ in judge.asked) == {1: 8, 2: 8, 3: 8}
    assert [set(scores(tmp_path, number=number).values()) for number in (1, 2, 3)] == [{1}, {2}, {3}]
    assert sorted(path.name for path in (tmp_path / "model_judgment").iterdir()) == [
        "scripted.settings.json",
        "scripted_single.jsonl",
        "scripted_single.pass2.jsonl",
        "scripted_single.pass3.jsonl",
    ]


def test_the_order_of_arrival_does_not_matter(tmp_path):
    """The first match is answered last: it waits until all others are in the file."""
    path = judgments_path(tmp_path, "scripted", "single")
    others = threading.Semaphore(0)

    def script(prompt, number):
        if "Q81" in prompt:
            for _ in range(7):
                others.acquire()
            return "[[1]]"
        others.release()
        return f"[[{prompt[2]}]]"

    judge_matches(singles(), Scripted(script), tmp_path, "single", concurrency=2)
    assert scores(tmp_path) == {number: number % 10 for number in range(81, 89)}
    assert len(path.read_text().splitlines()) == 8
    assert json.loads(path.read_text().splitlines()[0])["question_id"] != 81


def test_a_failure_is_written_counted_and_asked_for_again_only_on_request(tmp_path, capsys):
    judge_matches(singles(), Scripted(failing_for("Q83", "Q86")), tmp_path, "single", concurrency=1)
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == "2 of 8 judgments failed (the last: no answer came); --retry asks for them again"
    found = {row.question_id: row for row in read_judgments(judgments_path(tmp_path, "scripted", "single"))}
    assert [(found[n].judgment, found[n].score) for n in (83, 86)] == [("$ERROR$", -1)] * 2
    again = Scripted(lambda prompt, number: "[[8]]")
    judge_matches(singles(), again, tmp_path, "single")
    assert again.asked == []
    judge_matches(singles(), again, tmp_path, "single", retry=True)
    assert sorted(again.asked) == [(1, "Q83? -> a's answer to 83"), (1, "Q86? -> a's answer to 86")]
    assert scores(tmp_path) == dict.fromkeys(range(81, 89), 7) | {83: 8, 86: 8}


def test_a_judgment_without_a_score_is_asked_for_again_only_on_request(tmp_path):
    judge_matches(singles(), Scripted(lambda prompt, number: "?" if "Q81" in prompt else "[[4]]"), tmp_path, "single")
    judge = Scripted()
    judge_matches(singles(), judge, tmp_path, "single")
    assert judge.asked == []
    judge_matches(singles(), judge, tmp_path, "single", retry=True)
    assert len(judge.asked) == 1
    assert scores(tmp_path)[81] == 5


def test_failures_of_a_server_do_not_end_the_run(tmp_path, capsys):
    says = {"Q82?": BROKEN, "Q84?": CUT, "Q86?": [BROKEN, "[[6]]"]}
    with judging(says=says) as (url, server), RemoteJudge(url, "judge") as judge:
        judge_matches(singles(), judge, tmp_path, "single", concurrency=1)
        assert scores(tmp_path, "judge") == dict.fromkeys(range(81, 89), 5) | {82: -1, 84: -1, 86: 6}
        assert server.asked_about("Q82?") == server.asked_about("Q84?") == client.TRIES
        assert "2 of 8 judgments failed" in capsys.readouterr().err


def test_five_failures_in_a_row_end_the_run(tmp_path):
    judge = Scripted(failing_for("Q"))
    line = r"^5 judgments in a row failed \(no answer came\); 5 of 8 .*; to continue: python .* --retry$"
    with pytest.raises(BareloopError, match=line):
        judge_matches(singles(), judge, tmp_path, "single", concurrency=1)
    assert len(scores(tmp_path)) == 5


def test_prompts_that_are_too_long_do_not_end_the_run(tmp_path, capsys):
    judge_matches(singles(), Scripted(failing_for("Q", kind=PromptTooLongError)), tmp_path, "single")
    assert set(scores(tmp_path).values()) == {-1}
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.endswith("; too long for this judge: 8 prompts")  # and --retry cannot help
    assert line.startswith("8 of 8 judgments failed")


def test_a_refused_key_ends_the_run_at_once_and_keeps_what_has_come(tmp_path):
    said = ["[[3]]", "[[3]]", NO_KEY]
    with judging(says={"Q": said}) as (url, server), RemoteJudge(url, "judge") as judge:
        with pytest.raises(BareloopError, match=r"asks for a key: .*; 2 of 8 judgments are saved in .*to continue: "):
            judge_matches(singles(), judge, tmp_path, "single", concurrency=1)
        assert (len(scores(tmp_path, "judge")), len(server.bodies)) == (2, 3)
        server.says = {}
        judge_matches(singles(), judge, tmp_path, "single", concurrency=1)
        assert (len(scores(tmp_path, "judge")), len(server.bodies)) == (8, 9)


def test_what_is_in_flight_is_not_waited_for_if_nothing_can_succeed(tmp_path):
    go_on, waits = threading.Event(), threading.Event()

    def slow():
        waits.set()
        go_on.wait(60)
        return "[[1]]"

    def refused():
        waits.wait(60)
        return NO_KEY

    with judging(says={"Q81?": slow, "Q82?": refused}) as (url, _), RemoteJudge(url, "judge") as judge:
        with pytest.raises(BareloopError, match="asks for a key"):
            judge_matches(singles(), judge, tmp_path, "single", concurrency=2)
        assert not go_on.is_set()
        assert not judgments_path(tmp_path, "judge", "single").exists()
        go_on.set()


@pytest.mark.parametrize("model", ["judge", "none"])
def test_a_missing_server_or_model_is_said_before_anything_is_written(tmp_path, model):
    with judging() as (url, server):
        line = "has no model 'none'; it has 'judge', 'org/judge'" if model == "none" else "no server answers at"
        with (
            RemoteJudge(url if model == "none" else unused_url(), model) as judge,
            pytest.raises(BareloopError, match=line),
        ):
            judge_matches(singles(), judge, tmp_path, "single")
        assert (server.bodies, [*tmp_path.iterdir()]) == ([], [])


def test_pairs_are_asked_in_both_orders_and_written_together(tmp_path):
    def script(prompt, number):
        shown_first = prompt.partition("-> ")[2][0]
        verdicts = {"81": "AB"[shown_first == "b"], "82": "A", "83": "C"}
        return f"[[{verdicts.get(prompt[1:3], 'B')}]]"

    judge = Scripted(script)
    judge_matches(pairs(), judge, tmp_path, "pair")
    found = {row.question_id: row for row in read_pair_judgments(judgments_path(tmp_path, "scripted", "pair"))}
    assert (len(judge.asked), len(set(judge.asked)), len(found)) == (16, 16, 8)
    assert found[81].winners == ("model_1", "model_1")
    assert found[82].winners == ("model_1", "model_2")
    assert found[83].winners == ("tie", "tie")
    assert found[84].winners == ("model_2", "model_1")
    assert [found[81].user_prompts, found[81].judgments] == [
        ("Q81? -> a's answer to 81 or b's answer to 81", "Q81? -> b's answer to 81 or a's answer to 81"),
        ("[[A]]", "[[B]]"),
    ]
    judge_matches(pairs(), judge, tmp_path, "pair")
    assert len(judge.asked) == 16


def test_of_a_pair_only_the_order_that_failed_is_asked_for_again(tmp_path):
    path = judgments_path(tmp_path, "scripted", "pair")
    judge_matches(pairs(), Scripted(failing_for("> b's answer to 85", verdict="[[A]]")), tmp_path, "pair")
    found = {row.question_id: row for row in read_pair_judgments(path)}
    assert (found[85].winners, found[85].judgments) == (("model_1", "error"), ("[[A]]", "$ERROR$"))
    judge_matches(pairs(), judge := Scripted(lambda prompt, number: "[[B]]"), tmp_path, "pair")
    assert judge.asked == []
    judge_matches(pairs(), judge, tmp_path, "pair", retry=True)
    assert judge.asked == [(1, "Q85? -> b's answer to 85 or a's answer to 85")]
    found = {row.question_id: row for row in read_pair_judgments(path)}
    assert (found[85].winners, found[85].judgments) == (("model_1", "model_1"), ("[[A]]", "[[B]]"))


@pytest.mark.parametrize("again", ["retry", "fresh"])
def test_judgments_of_other_answers_are_never_taken_for_those_of_the_present_ones(tmp_path, again):
    judge_matches(singles("a", "b"), Scripted(), tmp_path, "single")
    changed = singles("a", text="other answer")
    judge = Scripted(lambda prompt, number: "[[9]]")
    with pytest.raises(BareloopError, match=r"has 8 judgments of other answers.* \(question 81, a, turn 1\); --retry"):
        judge_matches(changed, judge, tmp_path, "single")
    assert judge.asked == []
    judge_matches(changed, judge, tmp_path, "single", **{again: True})
    assert Counter(prompt for _, prompt in judge.asked) == Counter(match.user_prompts[0] for match in changed)
    rows = [json.loads(line) for line in judgments_path(tmp_path, "scripted", "single").read_text().splitlines()]
    assert Counter((row["model"], row["score"]) for row in rows) == {("a", 9): 8, ("b", 5): 8}
    (old,) = (tmp_path / "model_judgment").glob("*.old")
    assert Counter((row["model"], row["score"]) for row in map(json.loads, old.read_text().splitlines())) == {
        ("a", 5): 8
    }


def test_fresh_judges_everything_again_and_keeps_the_old_lines(tmp_path):
    judge_matches(singles(), Scripted(), tmp_path, "single")
    judge_matches(singles()[:2], judge := Scripted(lambda prompt, number: "[[9]]"), tmp_path, "single", fresh=True)
    assert len(judge.asked) == 2
    assert scores(tmp_path) == dict.fromkeys(range(81, 89), 5) | {81: 9, 82: 9}
    (old,) = (tmp_path / "model_judgment").glob("*.old")
    assert len(old.read_text().splitlines()) == 2


def test_a_killed_run_asks_nothing_twice(tmp_path):
    judge_matches(singles(), Scripted(), tmp_path, "single", concurrency=1)
    path = judgments_path(tmp_path, "scripted", "single")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:40])  # as a power cut leaves it
    assert [len(part.missing) for part in plan(singles(), "scripted", tmp_path, "single")] == [5]
    judge_matches(singles(), judge := Scripted(), tmp_path, "single")
    assert sorted(prompt[:3] for _, prompt in judge.asked) == [f"Q{number}" for number in range(84, 89)]
    assert path.read_bytes().startswith(b"".join(lines[:3]))
    assert scores(tmp_path) == dict.fromkeys(range(81, 89), 5)


def test_ctrl_c_keeps_what_has_come_and_waits_for_nothing(tmp_path):
    go_on = threading.Event()
    path = judgments_path(tmp_path, "judge", "single")

    def interrupt():
        """Called by the server while it should answer, once all that it answers before is in the file."""
        while not path.exists() or path.read_text().count("\n") < 4:
            go_on.wait(0.005)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        go_on.wait(60)
        return "[[1]]"

    with judging(says={"Q85?": interrupt}) as (url, server), RemoteJudge(url, "judge") as judge:
        with pytest.raises(
            KeyboardInterrupt, match=r"interrupted: 4 of 8 judgments are saved in .*; to continue: pyth"
        ):
            judge_matches(singles(), judge, tmp_path, "single", concurrency=1)
        assert not go_on.is_set()
        assert sorted(scores(tmp_path, "judge")) == [81, 82, 83, 84]
        go_on.set()
        server.says = {}
    with judging() as (url, server), RemoteJudge(url, "judge") as judge:
        judge_matches(singles(), judge, tmp_path, "single")
        assert len(server.bodies) == 4


@pytest.mark.parametrize(
    ("mode", "said", "status"),
    [
        ("single", {"81": "[[9]]", "82": "[[0]]"}, "mean score 4.88, 1 outside 1-10"),
        ("single", {"81": "?", "82": "[[8]]"}, "mean score 5.43, 1 without a verdict"),
        ("pair", {"81": "?"}, "0 won, 7 tied, 0 lost, 1 without a verdict"),
    ],
)
def test_progress_shows_the_verdicts_so_far(tmp_path, capsys, mode, said, status):
    default = "[[5]]" if mode == "single" else "[[C]]"
    judge = Scripted(lambda prompt, number: said.get(prompt[1:3], default))
    judge_matches(singles() if mode == "single" else pairs(), judge, tmp_path, mode, passes=2)
    lines = capsys.readouterr().err.splitlines()
    starts = ("judge scripted: 8/8, ", "judge scripted, pass 2: 8/8, ")
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(start)
        assert line.endswith(f", {status}")
