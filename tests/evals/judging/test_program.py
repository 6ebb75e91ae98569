"""Before hours of work: what is asked, by whom, with which key, and what it costs. After it: what is shown."""

from __future__ import annotations

import io
import sys
from dataclasses import replace

import pytest

from engine.remote import client
from engine.runtime.errors import BareloopError
from evals import mt_bench
from evals.runs.judged import as_line, read_answers
from tests.chat.models.chat_server import ChatServer
from tests.engine.remote.fake_server import serving
from tests.evals.judging.judge_server import judging
from tests.evals.question_set import QUESTIONS, write_question_set
from tests.evals.synthetic_judged import write_judged
from tests.evals.test_mt_bench import give_answers, no_model, no_plots

KEYS = ("BARELOOP_API_KEY", "OPENAI_API_KEY")


@pytest.fixture(autouse=True)
def no_keys_and_no_waiting(monkeypatch):
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(client, "FIRST_WAIT", 0.0)


@pytest.fixture
def results(tmp_path):
    return tmp_path / "results"


@pytest.fixture
def run(tmp_path, results, monkeypatch):
    no_plots(monkeypatch)
    data = write_question_set(tmp_path / "data")
    flags = ("--data", str(data), "--output-dir", str(results), "--max-new-tokens", "12")
    return lambda *more: mt_bench.main(mt_bench.parser().parse_args([*flags, *more]))


def test_without_a_terminal_another_machine_is_asked_only_with_yes(run, results, monkeypatch):
    give_answers(results, "vicuna")
    monkeypatch.setattr(sys, "stdin", io.StringIO("yes\n"))
    with judging(names=["judge"]) as (url, server):
        with monkeypatch.context() as patch:
            patch.setattr("evals.judging.program.is_local", lambda _: False)
            with pytest.raises(BareloopError, match=r"judge may cost money, and there is no terminal .*; add --yes"):
                run("-m", "vicuna", "--judge-url", url)
            assert server.bodies == []
            run("-m", "vicuna", "--judge-url", url, "--yes", "--limit", "1", "--categories", "stem")
            assert len(server.bodies) == 2
        run("-m", "vicuna", "--judge-url", url)  # it is on this machine
        assert len(server.bodies) == 2 * len(QUESTIONS)


@pytest.mark.parametrize("own", ["none", "answers", "judge", "same host"])
def test_a_key_of_the_environment_goes_to_one_server(run, tmp_path, monkeypatch, own):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-paid")
    file = tmp_path / "key"
    file.write_text("sk-file")
    flag = {"answers": ["--api-key-file", str(file)], "judge": ["--judge-api-key-file", str(file)]}.get(own, [])
    chat, seen = ChatServer(names=["small"]), set()

    def answer(asked):
        seen.add(asked.headers.get("Authorization"))
        return chat.answer(asked)

    with serving(answer) as server, judging(names=["judge"]) as (url, script):
        judge = url if own == "same host" else url.replace("127.0.0.1", "localhost")
        run("--url", server.url, "--judge-url", judge, *flag, "--limit", "1")
    expected = {"none": (None, "paid"), "answers": ("file", "paid"), "judge": ("paid", "file")}.get(own, ("paid",) * 2)
    assert (seen, script.keys) == tuple({key and f"Bearer sk-{key}"} for key in expected)


def test_judgments_of_other_answers_are_refused_before_hours_of_answering(run, results, monkeypatch):
    give_answers(results, "vicuna")
    with judging(names=["judge"]) as (url, server):
        run("-m", "vicuna", "--judge-url", url)
        path = results / "model_answer/vicuna.jsonl"
        path.write_text("".join(as_line(replace(row, choices=(("x", "y"),))) for row in read_answers(path).values()))
        no_model(monkeypatch)
        with pytest.raises(BareloopError, match=r"has 8 judgments of other answers, .* --retry asks for them again"):
            run("-m", "demo", "vicuna", "--judge-url", url)
        assert len(server.bodies) == 8


def test_settings_of_every_model_are_checked_before_the_first_one_answers(run, results, monkeypatch):
    run("-m", "demo", "--limit", "1", "--categories", "math")
    asked = []
    monkeypatch.setattr("evals.judging.contestants.open_conversations", lambda *arguments: asked.append(arguments))
    refusal = pytest.raises(BareloopError, match=r"demo\.jsonl was started with another device")
    with serving(ChatServer(names=["other", "demo"]).answer) as server, refusal:
        run("--url", server.url, "-m", "other", "demo")
    assert asked == []


def test_the_estimate_counts_what_is_asked(run, results, capsys):
    for model in ("alpaca", "vicuna"):
        give_answers(results, model)

    def estimate(*flags: str) -> str:
        run("-m", "alpaca", "vicuna", *flags, "--judge-url", url, "--dry-run")
        return capsys.readouterr().out.partition("judge: ")[2]

    pairwise = ("--mode", "pairwise-all")
    with judging(names=["judge"], default="[[A]]", says={"Hello!": ["[[A]]", "?"]}) as (url, _):
        assert estimate(*pairwise).startswith("16 judgments are to be made, with some ")
        run("-m", "alpaca", "vicuna", *pairwise, "--judge-url", url, "--judge-concurrency", "1")
        capsys.readouterr()
        assert estimate(*pairwise).startswith("0 judgments")
        found = estimate(*pairwise, "--retry")
        assert found.startswith("3 judgments are to be made")
        assert estimate("-m", "demo", "--limit", "1").startswith("24 judgments are to be made, with at most ")


def test_what_stands_without_a_score_is_not_estimated_beside_open_answers(run, results, capsys):
    give_answers(results, "vicuna")
    with judging(names=["judge"], default="?") as (url, _):
        run("-m", "vicuna", "--judge-url", url)
        capsys.readouterr()
        run("-m", "vicuna", "demo", "--judge-url", url, "--dry-run")
    assert "judge: 8 judgments are to be made, with at most " in capsys.readouterr().out


def test_starting_over_keeps_the_answers_of_models_that_are_not_here(run, results, capsys):
    give_answers(results, "gpt-3.5-turbo")
    give_answers(results, "demo")
    kept = (results / "model_answer/gpt-3.5-turbo.jsonl").read_bytes()
    with judging(names=["judge"], default="[[A]]") as (url, _):
        flags = ("-m", "demo", "--mode", "pairwise-baseline", "--judge-url", url, "--device", "cpu")
        run(*flags, "--fresh")
    assert (results / "model_answer/gpt-3.5-turbo.jsonl").read_bytes() == kept
    assert "the answers of gpt-3.5-turbo are taken as they are" in capsys.readouterr().err
    assert "demo" not in read_answers(results / "model_answer/demo.jsonl")[81].turns[0]  # it has answered itself
    assert len([*results.glob("model_answer/*.old")]) == 1


def test_answers_of_others_are_not_completed(run, results, monkeypatch):
    give_answers(results, "demo")
    path = results / "model_answer/demo.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    no_model(monkeypatch)
    with pytest.raises(BareloopError, match=r"lacks answers, and nothing tells where the others are from.*--fresh"):
        run("-m", "demo")
    run("-m", "demo", "--categories", "math", "stem")


def test_a_reference_is_needed_only_where_it_is_shown(run, results, tmp_path):
    give_answers(results, "vicuna")
    (tmp_path / "data/reference_answer/gpt-4.jsonl").unlink()
    with judging(names=["judge"]) as (url, server):
        with pytest.raises(BareloopError, match=r"question 101 \(reasoning\) has no reference answer for turn 1"):
            run("-m", "vicuna", "--judge-url", url)
        run("-m", "vicuna", "--judge-url", url, "--categories", "writing")
        assert len(server.bodies) == 2


def test_tables_are_of_the_judge_and_files_of_all_its_models(results, capsys, monkeypatch):
    no_plots(monkeypatch)
    write_judged(results, {"judge": 7.0, "small": 5.0, "large": 8.0}, judges=("judge", "other"))
    mt_bench.main(
        mt_bench.parser().parse_args(
            ["--rescore", "--output-dir", str(results), "-m", "judge", "small", "--judge-model", "judge"]
        )
    )
    printed, written = capsys.readouterr().out, (results / "results.md").read_text()
    for text in (printed, written):
        assert "judged by judge" in text and "judged by other" not in text
        assert "points against other judges of the same answers" in text
    assert "large" not in printed and "large" in written


def test_a_pair_that_stands_in_other_positions_is_not_asked_for(run, results):
    for model in ("a", "b"):
        give_answers(results, model)
    with judging(names=["judge"], default="[[C]]") as (url, server):
        run("-m", "b", "a", "--mode", "pairwise-all", "--judge-url", url)
        run("-m", "b", "--mode", "pairwise-baseline", "--baseline", "a", "--judge-url", url)
        assert len(server.bodies) == 16
