"""`python -m engine --embed`: a JSON array for each line, in order; notes and errors on stderr."""

from __future__ import annotations

import io
import json
import sys

import pytest
import torch

import engine.__main__
from engine import LLM
from engine.checkpoints import embedded
from engine.cli.parser import run
from tests.engine.encoders import make_encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_encoder(tmp_path_factory.mktemp("bert") / "model").folder


@pytest.fixture
def program(capsys, monkeypatch):
    """program(*arguments, stdin): -> exit code, the vectors, stderr."""

    def call(*arguments, stdin=""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        with pytest.raises(SystemExit) as ended:
            run(engine.__main__.parser(), engine.__main__.main, ["--embed", *arguments, "--device", "cpu"])
        output = capsys.readouterr()
        return ended.value.code, [json.loads(line) for line in output.out.splitlines()], output.err

    return call


def test_every_line_has_the_vector_that_embed_gives(program, folder):
    code, vectors, err = program("-m", str(folder), stdin="a b\n\nc\u2028d\r\n" + "a " * 40)
    assert code == 0
    texts = ["a b", "", "c\u2028d", "a " * 40]
    assert torch.equal(torch.tensor(vectors), LLM.load(folder, "cpu").embed(texts))  # every bit of float32
    assert "4 texts" in err
    assert err.endswith("48 dimensions; 1 longer than 24 tokens, and cut there\n")


def test_a_text_may_be_an_argument_or_in_a_file(program, folder, tmp_path):
    (tmp_path / "texts").write_text("a\nb\n")
    one = program("-m", str(folder), "--prompt", "a")[1]
    assert program("-m", str(folder), "--file", str(tmp_path / "texts"))[1][:1] == one


def test_a_decoder_embeds_with_a_note(program):
    code, vectors, err = program("-m", "demo", stdin="hello\nthere\n")
    assert (code, len(vectors)) == (0, 2)
    assert err.startswith("demo was not trained to embed texts: a vector is the mean of its last hidden states;")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("-m", "demo", "--chat", "--json"), "--embed prints vectors; leave out --chat, --json"),
        (("--regex", "a", "--temperature", "0", "--save", "b"), "vectors; leave out --save, --regex, --temperature"),
        (("-m", "demo", "demo"), "--embed takes one model"),
        (("-m", "demo"), "there are no texts to embed"),
        (("-m", "demo", "--prompt", "a", "--file", "b"), "give one of: a text, --file"),
        (("-m", "./nowhere", "--prompt", "a"), "no such folder: ./nowhere"),
    ],
)
def test_a_wrong_flag_is_one_line(program, arguments, line):
    code, vectors, err = program(*arguments)
    assert code in (1, 2)
    assert vectors == []
    assert line in err
    assert err.count("\n") == 1


def test_minilm_is_the_default(program, monkeypatch):
    monkeypatch.setattr(embedded, "MINILM_PACKAGE", "no_such_package_at_all")
    code, _, err = program(stdin="a")
    assert code == 1
    assert embedded.MINILM_INSTALL in err


def test_an_encoder_is_inspected_and_generates_nothing(folder, capsys):
    for arguments, text in ((["--inspect"], "one token in a text with"), (["--prompt", "a"], "is an encoder (bert)")):
        with pytest.raises(SystemExit):
            run(engine.__main__.parser(), engine.__main__.main, ["-m", str(folder), "--device", "cpu", *arguments])
        output = capsys.readouterr()
        assert text in " ".join((output.out + output.err).split())
