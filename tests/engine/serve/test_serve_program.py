"""python -m engine.serve: flags, and one run of the whole process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request

import pytest

from engine.serve.__main__ import KEY_VARIABLE, is_loopback, program, read_keys, read_template


def fails(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 2) -> str:
    """Run the program with bad flags. -> its line"""
    with pytest.raises(SystemExit) as caught:
        program(arguments)
    message = capsys.readouterr().err
    assert caught.value.code == status, message
    lines = [line for line in message.splitlines() if line.startswith("python -m engine.serve: ")]
    assert len(lines) == 1, message
    return lines[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--port", "70000"], "--port 70000: use 65535 or less"),
        (["--port", "-1"], "--port -1: use 0 or more"),
        (["--max-rows", "0"], "--max-rows 0: use 1 or more"),
        (["--max-queue", "0"], "--max-queue 0: use 1 or more"),
        (["--context", "0"], "--context 0: use 1 or more"),
        (["--default-max-tokens", "0"], "--default-max-tokens 0: use 1 or more"),
        (["--cache-gb", "0"], "--cache-gb 0: use a number above 0"),
        (["--cache-gb", "nan"], "--cache-gb nan: use a number above 0"),
        (["--timeout", "-3"], "--timeout -3: use a number above 0"),
        (["--drain", "inf"], "--drain inf: use a number"),
        (["--host", "0.0.0.0"], "needs a key: add --api-key-file FILE, or set BARELOOP_API_KEY"),
        (["--host", "box.example"], "needs a key"),
        (["--quant", "int3"], "unknown weight format 'int3'"),
    ],
)
def test_a_bad_flag_is_one_line_and_status_2(capsys, monkeypatch, flags, message):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert message in fails(capsys, "-m", "demo", *flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-m", "demo", "demo"], "two models are called 'demo'"),
        (["-m", "demo", "--alias", "a", "b"], "--alias has 2 names for 1 of --model"),
        (["-m", "demo", "--device", "toaster"], "unknown device 'toaster'"),
        (["-m", "demo", "--host", "203.0.113.7"], "--host '203.0.113.7'"),
        (["-m", "demo", "--allow-origin", "nonsense"], "'nonsense' is not an origin"),
    ],
)
def test_what_is_wrong_with_names_and_addresses_is_one_line_and_status_2(capsys, monkeypatch, flags, message):
    monkeypatch.setenv(KEY_VARIABLE, "key")
    assert message in fails(capsys, *flags)


def test_keys_come_from_the_file_and_the_environment(tmp_path, monkeypatch):
    path = tmp_path / "keys"
    path.write_text("first\n\n  second \nfirst\n")
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert read_keys(None) == ()
    assert read_keys(str(path)) == ("first", "second")
    monkeypatch.setenv(KEY_VARIABLE, "third")
    assert read_keys(str(path)) == ("third", "first", "second")
    monkeypatch.setenv(KEY_VARIABLE, " ")
    assert read_keys(None) == ()


def test_files_that_cannot_be_used_are_one_line(tmp_path, capsys):
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "broken").write_text("line\n{% for %}")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    assert "has no key" in fails(capsys, "--api-key-file", str(tmp_path / "empty"))
    assert "is empty" in fails(capsys, "--chat-template", str(tmp_path / "empty"))
    assert "line 2: Expected an expression" in fails(capsys, "--chat-template", str(tmp_path / "broken"))
    for flag in ("--api-key-file", "--chat-template"):
        assert "cannot read" in fails(capsys, flag, str(tmp_path / "missing"), status=1)
        assert "cannot read" in fails(capsys, flag, str(tmp_path / "bytes"), status=1)


def test_a_template_is_read_as_it_is(tmp_path):
    path = tmp_path / "template.jinja"
    path.write_text("{{ messages[0].content }}\n", encoding="utf-8")
    assert read_template(str(path)) == "{{ messages[0].content }}\n"


def test_only_loopback_addresses_need_no_key():
    assert all(map(is_loopback, ("127.0.0.1", "127.8.9.1", "::1", "localhost", "LOCALHOST")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.2", "", "localhost.evil.example", "127.0.0.1.nip.io")))


def test_help_needs_neither_torch_nor_the_server():
    check = (
        "import runpy, sys\nsys.argv = ['x', '--help']\n"
        "try: runpy.run_module('engine.serve', run_name='__main__')\nexcept SystemExit: pass\n"
        "assert not {'torch', 'starlette', 'uvicorn', 'prometheus_client', 'rich', 'jinja2'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--max-queue" in done.stdout


@pytest.mark.skipif(os.name != "posix", reason="needs SIGTERM")
def test_the_process_serves_until_it_is_told_to_end_and_exits_with_0(tmp_path):
    log = tmp_path / "requests.jsonl"
    command = [sys.executable, "-m", "engine.serve", "-m", "demo", "--port", "0", "--log-json", str(log)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            ready = next(line for line in process.stderr if "serving" in line)
            url = ready.split()[-1]
            with urllib.request.urlopen(url.replace("/v1", "/health"), timeout=60) as health:
                assert json.load(health) == {"status": "ok"}
            process.send_signal(signal.SIGTERM)
            rest = process.stderr.read()
            assert process.wait(60) == 0, rest
            assert " requests in " in rest.splitlines()[-1]
            assert "Traceback" not in rest
        finally:
            process.kill()
