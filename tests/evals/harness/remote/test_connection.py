"""Which servers, models and keys a benchmark takes, and which flags go together: one clear line otherwise."""

from __future__ import annotations

import json

import pytest

from evals import mmlu
from tests.engine.remote.fake_server import Answer, Asked, error, serving, unused_url
from tests.evals.harness.remote.programs import QUESTIONS, ask, last_line, run


def test_the_model_needs_a_name_only_where_the_server_has_several(demo, tmp_path):
    def several(asked: Asked) -> Answer:
        return Answer({"data": [{"id": "demo"}, {"id": "other"}]}) if asked.path == "/v1/models" else demo(asked)

    with serving(several) as server:
        process = ask(mmlu, tmp_path, [server.url], *QUESTIONS)
        assert process.returncode == 2
        assert "has 2 models; name one with -m: 'demo', 'other'" in process.stderr
        wrong = ask(mmlu, tmp_path, [server.url], "-m", "dem", "--data", "demo", *QUESTIONS)
        assert last_line(wrong).endswith("has no model 'dem'; it has 'demo', 'other'")


def test_a_wrong_key_and_a_missing_server_are_one_line(demo, tmp_path):
    def locked(asked: Asked) -> Answer:
        return demo(asked) if asked.headers.get("Authorization") == "Bearer right" else error("no such key", 401)

    key = tmp_path / "key"
    with serving(locked) as server:
        key.write_text("wrong")
        line = last_line(ask(mmlu, tmp_path, [server.url], *QUESTIONS, "--api-key-file", str(key)))
        assert 'refuses the key: "no such key"; set BARELOOP_API_KEY' in line
        key.write_text("right\n")
        flags = ("--tokenizer", "demo", "--api-key-file", str(key))
        assert ask(mmlu, tmp_path, [server.url], *QUESTIONS, *flags).returncode == 0
    line = last_line(ask(mmlu, tmp_path, [unused_url()], "-m", "demo", *QUESTIONS))
    assert "; start one: python -m engine.serve -m demo --port" in line


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--tokenizer", "demo"], "--tokenizer: is for servers; add --url URL"),
        (["--concurrency", "2"], "--concurrency: is for servers"),
        (["--url", "http://x", "--dtype", "float32"], "--dtype: the server with --url decides that"),
        (["--url", "http://x", "--quant", "int8"], "--quant: the server"),
        (["--url", "http://x", "--batch-tokens", "9"], "--batch-tokens: the server"),
        (["--url", "http://x", "--max-length", "1"], "--max-length 1: use 16 or more"),
        (["--url", "http://x", "--concurrency", "0"], "--concurrency 0: use 1 or more"),
        (["--url", "ftp://x", "-m", "demo"], "'ftp://x' is not the address of a server"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags, line):
    process = run(mmlu, *flags)
    assert process.returncode == 2
    assert line in process.stderr


def test_requests_are_written_with_a_servers_template(demo, tmp_path):
    with serving(demo) as server:
        flags = ["--requests-only", str(tmp_path / "requests"), "--chat-template"]
        process = ask(mmlu, tmp_path, [server.url], "--data", "demo", *QUESTIONS, *flags)
        assert process.returncode == 0, process.stderr
        assert "/v1/completions" not in server.paths()
    assert json.loads((tmp_path / "requests").open().readline())["context"].startswith("<|begin|><|")
