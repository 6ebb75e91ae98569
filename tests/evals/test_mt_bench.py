"""python -m evals.mt_bench from questions to tables: nothing is asked twice, and no judge is paid by surprise."""

from __future__ import annotations

import io
import json
import sys

import pytest

from engine import LLM
from engine.remote import client
from engine.runtime.errors import BareloopError, UsageError
from evals import mt_bench
from evals.runs.judged import Answer, as_line, read_answers, read_judgments, read_pair_judgments
from tests.chat.models.chat_server import ChatServer
from tests.engine.remote.fake_server import serving, unused_url
from tests.evals.judging.judge_server import judging
from tests.evals.question_set import QUESTIONS, write_question_set

NAMES = "question.jsonl", "reference_answer/gpt-4.jsonl"


@pytest.fixture(scope="module")
def demo() -> LLM:
    return LLM.load("demo", dtype="float32", device="cpu")


@pytest.fixture
def data(tmp_path, demo, monkeypatch):
    monkeypatch.setattr("engine.LLM.load", lambda *_, **__: demo)
    monkeypatch.setattr(client, "FIRST_WAIT", 0.0)
    return write_question_set(tmp_path / "data")


@pytest.fixture
def results(tmp_path):
    return tmp_path / "results"


@pytest.fixture
def run(data, results):
    def run(*flags: str) -> None:
        flags = (
            "--data",
            str(data),
            "--output-dir",
            str(results),
            "--max-new-tokens",
            "12",
            "--dtype",
            "float32",
            *flags,
        )
        mt_bench.main(mt_bench.parser().parse_args(flags))

    return run


def no_model(monkeypatch) -> None:
    def load(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("engine.LLM.load", load)


def no_plots(monkeypatch) -> None:
    monkeypatch.setattr("evals.plotting.judgments.draw_judged", lambda *_: iter(()))


def give_answers(results, model: str) -> None:
    """Answers as FastChat provides them: without settings and usage."""
    path = results / "model_answer" / f"{model}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    answers = [
        Answer(number, model, (tuple(f"{model} {text}" for text in turns),)) for number, _, turns, _ in QUESTIONS
    ]
    path.write_text("".join(map(as_line, answers)))


def judged(results, judge="judge", mode="single"):
    read = read_judgments if mode == "single" else read_pair_judgments
    return read(results / f"model_judgment/{judge}_{mode}.jsonl")


def test_a_model_is_answered_judged_and_shown_and_nothing_twice(run, results, data, monkeypatch, capsys):
    with judging(says={"capital": "Wrong. [[2]]"}, default="Fine. [[8]]", names=["judge"]) as (url, script):
        run("-m", "demo", "--judge-url", url)
        assert len(script.bodies) == 2 * len(QUESTIONS)
        output = capsys.readouterr()
        assert (results / "judge_scores.png").exists() and (results / "judge_radar.svg").exists()
        no_plots(monkeypatch)
        files = {path: path.read_bytes() for path in results.rglob("*.jsonl")}
        run("-m", "demo", "--judge-url", url)
        assert len(script.bodies) == 2 * len(QUESTIONS)
        assert {path: path.read_bytes() for path in results.rglob("*.jsonl")} == files
        again = capsys.readouterr()
    assert "judge: 8 judgments are to be made, with at most" in output.err
    tables, _, end = output.out.rpartition("results.md and ")
    assert "to be made" not in again.err and again.out.startswith(tables)
    assert end.startswith("2 plots as PNG and SVG")
    answers = read_answers(results / "model_answer/demo.jsonl")
    assert [*answers] == [number for number, *_ in QUESTIONS]
    prompts = {(row.question_id, row.turn): row.user_prompt for row in judged(results)}
    assert answers[111].turns[1] in prompts[111, 2] and "[Reference] Oslo." in prompts[111, 2]
    scores = [row.score for row in judged(results)]
    mean = sum(scores) / len(scores)
    assert {*scores} == {2.0, 8.0}
    assert "demo: 4 answers" in output.out and f"{mean:.2f}" in output.out
    for name in NAMES:
        assert (results / name).read_bytes() == (data / name).read_bytes()
    assert f"{mean:.2f}" in (results / "results.md").read_text()

    no_model(monkeypatch)
    run("--rescore")  # the server is gone
    assert capsys.readouterr().out.partition("results.md and ")[0] in tables
    run("--rescore", "-m", "demo", "--judge-model", "judge", "--categories", "math")
    assert "2" in capsys.readouterr().out
    with pytest.raises(BareloopError, match="has no judgments of these models and questions"):
        run("--rescore", "-m", "gpt2")


def test_without_a_judge_there_are_only_answers(run, results, capsys):
    run("-m", "demo", "--limit", "1", "--categories", "math", "stem")
    assert [*read_answers(results / "model_answer/demo.jsonl")] == [111, 131]
    assert "; --judge MODEL or --judge-url URL judges them, added to: python " in capsys.readouterr().out
    run("-m", "demo")
    assert [*read_answers(results / "model_answer/demo.jsonl")] == [number for number, *_ in QUESTIONS]
    assert not (results / "model_judgment").exists()


def test_answers_of_others_need_no_model(run, results, monkeypatch):
    no_model(monkeypatch)
    no_plots(monkeypatch)
    for model in ("gpt-3.5-turbo", "vicuna", "alpaca"):
        give_answers(results, model)
    with judging(default="[[A]]", says={"alpaca Hello": "[[B]]"}, names=["judge"]) as (url, script):
        run("-m", "vicuna", "alpaca", "--mode", "pairwise-baseline", "--judge-url", url, "--quant", "int8")
        rows = judged(results, mode="pair")
        assert {row.models for row in rows} == {("vicuna", "gpt-3.5-turbo"), ("alpaca", "gpt-3.5-turbo")}
        assert {row.winner for row in rows} == {"tie"}  # the judge prefers the first one in both orders
        assert len(script.bodies) == 2 * 2 * 2 * len(QUESTIONS)
        run("-m", "vicuna", "alpaca", "--mode", "pairwise-all", "--judge-url", url)
        assert len({row.models for row in judged(results, mode="pair")}) == 3
        run("-m", "vicuna", "--judge-url", url, "--passes", "2")
        assert (results / "model_judgment/judge_single.pass2.jsonl").exists()


def test_a_baseline_without_answers_says_where_they_are(run, results):
    with pytest.raises(BareloopError, match=r"baseline gpt-3\.5-turbo has no answers to 4 questions.*lmsys/mt-bench"):
        run("-m", "demo", "--mode", "pairwise-baseline", "--judge-url", unused_url(), "--judge-model", "x")
    assert not results.exists()


def test_a_dry_run_asks_nothing_and_tells_the_cost(run, results, capsys, monkeypatch):
    no_model(monkeypatch)
    with judging(names=["judge"]) as (url, script):
        run("-m", "demo", "--judge-url", url, "--dry-run", "--judge-price", "1000", "2000", "--passes", "3")
        assert script.bodies == []
    out = capsys.readouterr().out
    assert "demo: 4 of 4 questions are to be answered" in out
    assert "judge: 24 judgments are to be made" in out and "(at most 49,152)" in out
    assert "with the longest judgments $98." in out or "with the longest judgments $99." in out
    assert not results.exists()


@pytest.mark.parametrize(("said", "asked"), [("n\n", 0), ("", 0), ("yes\n", 4)])
def test_on_a_terminal_a_server_is_asked_only_after_a_yes(run, results, monkeypatch, said, asked):
    give_answers(results, "vicuna")
    no_plots(monkeypatch)
    terminal = io.StringIO(said)
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", terminal)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr("evals.judging.program.is_local", lambda url: False)
    flags = ("-m", "vicuna", "--categories", "math", "stem")
    with judging(names=["judge"]) as (url, script):
        if not asked:
            with pytest.raises(
                BareloopError, match="nothing was asked; for answers without judgments, leave out --judge-url"
            ):
                run(*flags, "--judge-url", url)
        else:
            run(*flags, "--judge-url", url)
        assert len(script.bodies) == asked
        run(*flags, "--judge-url", url, "--yes")
        assert len(script.bodies) == 4


def test_answers_of_another_model_or_with_other_flags_are_not_mixed(run, results):
    run("-m", "demo")
    for flags, message in (
        (("--max-new-tokens", "13"), "another max_new_tokens"),
        (("--dtype", "bfloat16"), "another dtype"),
        (("--num-choices", "2"), "another num_choices"),
    ):
        with pytest.raises(BareloopError, match=f"was started with {message}"):
            run("-m", "demo", *flags)
    run("-m", "demo", "--max-new-tokens", "13", "--fresh")
    settings = json.loads((results / "model_answer/demo.settings.json").read_text())
    assert settings["max_new_tokens"] == 13
    assert len([*results.glob("model_answer/*.old")]) == 2


def test_other_questions_need_another_folder(run, results, data):
    give_answers(results, "vicuna")
    run("-m", "vicuna")
    write_question_set(data, [(81, "writing", ("Other?", "Words?"), ()), *QUESTIONS[1:]])
    with pytest.raises(BareloopError, match="differs from --data; use another --output-dir"):
        run("-m", "vicuna")


def test_a_model_of_a_server_answers(run, results):
    with serving(ChatServer(names=["org/small"]).answer) as server:
        flags = ("--data", str(results.parent / "data"), "--output-dir", str(results), "--url", server.url)
        mt_bench.main(mt_bench.parser().parse_args([*flags, "--max-new-tokens", "20"]))
    answers = read_answers(results / "model_answer/org__small.jsonl")
    assert answers[101].turns == tuple(f"You said: {text}" for text in QUESTIONS[1][2])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--limit", "0"], "--limit 0: use 1 or more"),
        (["--passes", "0"], "--passes 0: use 1 or more"),
        (["--judge", "a", "--judge-url", "http://x"], "use one of them"),
        (["--judge-model", "x"], "--judge-model is for a server's judge; add --judge-url"),
        (["--judge", "demo"], "demo cannot judge"),
        (["--fresh", "--rescore"], "--fresh and --rescore exclude each other"),
        (["--dry-run", "--rescore"], "--dry-run and --rescore exclude each other"),
        (["--fresh", "--retry"], "--fresh and --retry exclude each other"),
        (["--baseline", "x"], "--baseline is for --mode pairwise-baseline, not single"),
        (["--categories", "maths"], "no category 'maths'; there are: writing, reasoning, math, stem"),
        (["--mode", "pairwise-all", "--judge", "x"], "--mode pairwise-all compares models; name at least two"),
        (["--concurrency", "3"], "--concurrency: is for servers; add --url URL"),
        (["--url", "http://x", "--quant", "int8"], "--quant: the server with --url decides that"),
        (["--judge-price", "-1", "2"], "--judge-price -1 2: use 0 or more"),
        (["-m", "a/b", "a__b"], "a/b and a__b would share"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_before_anything_is_loaded(data, results, flags, message, monkeypatch):
    no_model(monkeypatch)
    model = [] if "-m" in flags else ["-m", "demo"]
    with pytest.raises(UsageError, match=message):
        mt_bench.main(mt_bench.parser().parse_args(["--data", str(data), "--output-dir", str(results), *model, *flags]))
    assert not results.exists()
