"""Benchmarks on servers: the same scores and answers as here, and one clear line for whatever a server does wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evals import mmlu, squad
from evals.runs.run_file import RunFile, read
from tests.engine.remote.fake_server import Answer, Asked, error, serving, unused_url
from tests.evals.harness.remote.programs import QUESTIONS, ask, last_line, run
from tests.evals.harness.remote.serving_llm import answers

PASSAGES = [
    ("Ana", "Ana lives in a small house near the sea.", "Where does Ana live?", "near the sea"),
    ("Ben", "Ben has a red boat and two dogs.", "What has Ben?", "a red boat"),
    ("Cleo", "Cleo likes bread with honey.", "What does Cleo like?", "bread with honey"),
]


@pytest.fixture
def passages(tmp_path) -> Path:
    """SQuAD's data in small."""
    rows = [
        {"title": title, "context": context, "question": question, "answers": {"text": [answer]}}
        for title, context, question, answer in PASSAGES
    ]
    folder = tmp_path / "passages"
    folder.mkdir()
    (folder / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def records(output: Path, name: str) -> dict[Any, Any]:
    return read(output / "demo" / f"{name}.run.jsonl")[1]


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    """Runs that are computed here: MMLU, plain and through the chat template."""
    output = tmp_path_factory.mktemp("local")
    for more in ([], ["--chat-template"]):
        flags = ["-m", "demo", "--device", "cpu", "--output-dir", str(output), *QUESTIONS, *more]
        process = run(mmlu, *flags)
        assert process.returncode == 0, process.stderr
    return output


@pytest.mark.parametrize("flags", [(), ("--chat-template",), ("--tokenizer", "demo", "--chat-template")])
def test_choices_have_the_scores_that_they_have_here(demo, local, tmp_path, flags):
    chat = "_chat" if "--chat-template" in flags else ""
    with serving(demo) as server:
        process = ask(mmlu, tmp_path, [server.url], "-m", "demo", *QUESTIONS, *flags)
        assert process.returncode == 0, process.stderr
        paths = server.paths()
    ours = records(tmp_path, f"mmlu_1shot{chat}_remote")
    expected = records(local, f"mmlu_1shot{chat}_cpu_float32_none")
    assert ours.keys() == expected.keys()
    for key, record in ours.items():
        assert record["loglikelihoods"] == pytest.approx(expected[key]["loglikelihoods"], abs=1e-4)
        for name in ("prediction", "correct", "greedy", "truncated", "prompt_sha256", "metrics"):
            assert record[name] == expected[key][name]
        assert record["url"] == server.url
        assert record["times"].keys() == {"real", "computed"}
    assert paths.count("/v1/completions") == len(ours), "the prompts of a question's choices are sent together"
    assert ("/tokenize" in paths) == ("--tokenizer" not in flags)
    assert [*(tmp_path / "demo").glob("samples_mmlu_*.jsonl")]


def test_a_run_says_that_it_is_remote_wherever_it_is_shown(demo, local, tmp_path):
    with serving(demo) as server:
        url = server.url.replace("http://", "http://me:secret@")
        process = ask(mmlu, tmp_path, [url], *QUESTIONS, "--tokenizer", "demo", "--save-question-data")
        assert process.returncode == 0, process.stderr
        assert "MMLU, 1-shot, remote" in process.stdout
        assert "memory" not in process.stdout
        header, _ = read(tmp_path / "demo" / "mmlu_1shot_remote.run.jsonl")
        assert (header["model"], header["device"], header["url"]) == ("demo", "remote", [server.url])
        assert not header.keys() & {"weights", "config", "tokenizer", "machine"}
        (results,) = (tmp_path / "demo").glob("results_*.json")
        assert json.loads(results.read_text())["config"]["model_args"] == f"model=demo,base_url={server.url}"
        assert (tmp_path / "demo" / "mmlu_1shot_remote_questions.json").exists()
    again = run(mmlu, "--rescore", "-m", "demo", "--output-dir", str(tmp_path), *QUESTIONS)
    assert again.returncode == 0, again.stderr
    assert again.stdout == process.stdout
    assert "secret" not in "".join(path.read_text() for path in (tmp_path / "demo").iterdir())


def test_rescore_chooses_between_a_run_here_and_one_on_servers(demo, tmp_path):
    flags = ["--output-dir", str(tmp_path), *QUESTIONS]
    assert run(mmlu, "-m", "demo", "--device", "cpu", *flags).returncode == 0
    with serving(demo) as server:
        assert ask(mmlu, tmp_path, [server.url], *QUESTIONS, "--tokenizer", "demo").returncode == 0
    both = run(mmlu, "--rescore", "-m", "demo", *flags)
    assert both.returncode == 2
    assert "or --url for that of servers" in both.stderr
    chosen = run(mmlu, "--rescore", "-m", "demo", *flags, "--url", server.url)
    assert "1-shot, remote" in chosen.stdout  # and no server is asked
    assert "1-shot, cpu" in run(mmlu, "--rescore", "-m", "demo", "--device", "cpu", *flags).stdout
    missing = run(mmlu, "--rescore", "-m", "demo", "--shots", "0", "--url", server.url, "--output-dir", str(tmp_path))
    assert "mmlu_0shot_remote.run.jsonl is missing" in last_line(missing)


@pytest.mark.parametrize("flags", [(), ("--tokenizer", "demo"), ("--tokenizer", "demo", "--chat-template")])
def test_generated_answers_are_those_that_are_generated_here(demo, passages, tmp_path, flags):
    common = ["--data", str(passages), "--output-dir", str(tmp_path)]
    chat = [flag for flag in flags if flag == "--chat-template"]
    process = run(squad, "-m", "demo", "--device", "cpu", *common, *chat)
    assert process.returncode == 0, process.stderr
    with serving(demo) as server:
        process = run(squad, "--url", server.url, *common, *flags)
        assert process.returncode == 0, process.stderr
    stem = f"squad_0shot{'_chat' if chat else ''}"
    expected, ours = (records(tmp_path, f"{stem}_{device}") for device in ("cpu_float32_none", "remote"))
    assert ours.keys() == expected.keys()
    for key, record in ours.items():
        for name in ("response", "finish_reason", "new_tokens", "tokens", "truncated", "prediction", "metrics"):
            assert record[name] == expected[key][name]


def test_without_any_tokenizer_answers_are_generated_from_text_and_choices_are_refused(llm, passages, tmp_path):
    with serving(answers(llm, has_tokenizer=False)) as server:
        process = ask(squad, tmp_path, [server.url], "--data", str(passages))
        assert process.returncode == 0, process.stderr
        assert isinstance(server.asked[-1].body["prompt"], str)
        assert all(record["tokens"] > 10 for record in records(tmp_path, "squad_0shot_remote").values())
        refused = ask(mmlu, tmp_path, [server.url], *QUESTIONS)
        assert refused.returncode == 2
        assert "has no /tokenize; name the model's tokenizer with --tokenizer" in refused.stderr


def test_fields_that_are_not_openais_are_left_out_for_a_server_that_refuses_them(demo, passages, tmp_path):
    def strict(asked: Asked) -> Answer:
        if "repetition_penalty" in asked.body:
            return error("Unrecognized request argument supplied: repetition_penalty", 400)
        return demo(asked)

    with serving(strict) as server:
        assert ask(squad, tmp_path, [server.url], "--data", str(passages)).returncode == 0
        assert len(records(tmp_path, "squad_0shot_remote")) == len(PASSAGES)


def test_long_prompts_keep_their_end_and_leave_a_place_for_the_answer(demo, tmp_path):
    with serving(demo) as server:
        process = ask(mmlu, tmp_path, [server.url], "--limit", "1", "--tokenizer", "demo", "--max-length", "120")
        assert process.returncode == 0, process.stderr
        prompts = [prompt for asked in server.asked if "prompt" in asked.body for prompt in asked.body["prompt"]]
        assert max(map(len, prompts)) == 119
    assert read(tmp_path / "demo" / "mmlu_5shot_remote.run.jsonl")[0]["max_length"] == 120
    assert all(record["truncated"] for record in records(tmp_path, "mmlu_5shot_remote").values())


def test_faults_that_pass_do_not_end_a_run(demo, local, tmp_path):
    faults = [error("busy", 429, retry_after="0"), error("oops", 500), Answer("{", breaks=True)]

    def faulty(asked: Asked) -> Answer:
        return faults.pop() if asked.path == "/v1/completions" and faults else demo(asked)

    with serving(faulty) as server:
        assert ask(mmlu, tmp_path, [server.url], *QUESTIONS, "--tokenizer", "demo").returncode == 0
    assert records(tmp_path, "mmlu_1shot_remote").keys() == records(local, "mmlu_1shot_cpu_float32_none").keys()


def test_the_work_of_a_server_that_fails_goes_to_the_others(demo, local, tmp_path):
    def failing(asked: Asked) -> Answer:
        return error("out of memory", 500) if asked.path == "/v1/completions" else demo(asked)

    with serving(demo) as good, serving(failing) as bad:
        dead = unused_url()
        process = ask(mmlu, tmp_path, [dead, bad.url, good.url], *QUESTIONS, "--tokenizer", "demo")
        assert process.returncode == 0, process.stderr
        assert f"going on without a server: no server answers at {dead}" in process.stderr
        assert process.stderr.count(f"going on without {bad.url}: ") == 1
        assert 'answered 500: "out of memory"' in process.stderr
    ours = records(tmp_path, "mmlu_1shot_remote")
    assert ours.keys() == records(local, "mmlu_1shot_cpu_float32_none").keys()
    assert {record["url"] for record in ours.values()} == {good.url}


def test_several_servers_share_the_questions(demo, tmp_path):
    with serving(demo) as one, serving(demo) as other:
        urls = [one.url, other.url]
        flags = ["--limit", "8", "--shots", "0", "--tokenizer", "demo"]
        assert ask(mmlu, tmp_path, urls, *flags).returncode == 0
        asked = [sum(path == "/v1/completions" for path in server.paths()) for server in (one, other)]
    ours = records(tmp_path, "mmlu_0shot_remote")
    assert sum(asked) == len(ours)
    assert min(asked) > 0
    assert {record["url"] for record in ours.values()} == set(urls)


def test_an_interrupted_run_continues(demo, local, tmp_path, monkeypatch):
    append = RunFile.append

    def interrupted(self: RunFile, rows: Any) -> None:
        append(self, rows)
        raise KeyboardInterrupt

    flags = (*QUESTIONS, "--tokenizer", "demo")
    with serving(demo) as server:
        with monkeypatch.context() as patch:
            patch.setattr(RunFile, "append", interrupted)
            process = ask(mmlu, tmp_path, [server.url], *flags)
        assert process.returncode == 130
        assert "1 of 4 questions are saved" in process.stderr
        path = tmp_path / "demo" / "mmlu_1shot_remote.run.jsonl"
        before = path.read_bytes()
        assert len(read(path)[1]) == 1
    with serving(demo) as other:  # the address may change
        assert ask(mmlu, tmp_path, [other.url], *flags).returncode == 0
    assert path.read_bytes().startswith(before)
    assert read(path)[1].keys() == records(local, "mmlu_1shot_cpu_float32_none").keys()


def test_what_was_recorded_stays_when_the_last_server_fails(demo, tmp_path):
    good = [True]

    def failing(asked: Asked) -> Answer:
        if asked.path == "/v1/completions" and (not good or not good.pop()):
            return error("out of memory", 507)
        return demo(asked)

    flags = (*QUESTIONS, "--tokenizer", "demo", "--concurrency", "1")
    with serving(failing) as server:
        process = ask(mmlu, tmp_path, [server.url], *flags)
        line = last_line(process)
        assert 'answered 507: "out of memory"; 1 of 4 questions are saved in ' in line
        assert line.endswith(", and the same command continues")
    assert len(records(tmp_path, "mmlu_1shot_remote")) == 1


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("<html>busy</html>", 'did not answer as an OpenAI-compatible server does: "<html>busy</html>"'),
        ({"choices": [{"index": 0, "text": "x"}]}, "returned 1 choices with other indices than the 4 prompts"),
    ],
)
def test_an_answer_that_is_none_ends_the_run_with_one_clear_line(demo, tmp_path, content, line):
    with serving(lambda asked: Answer(content) if asked.path == "/v1/completions" else demo(asked)) as server:
        process = ask(mmlu, tmp_path, [server.url], *QUESTIONS, "--tokenizer", "demo")
    assert line in last_line(process)
    assert server.url in last_line(process)
    assert not (tmp_path / "demo").exists() or not [*(tmp_path / "demo").iterdir()]
