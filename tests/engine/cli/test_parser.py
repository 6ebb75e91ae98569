"""Flags, one-line errors and exit codes that every program shares."""

from __future__ import annotations

import subprocess
import sys

import pytest

from engine.cli.parser import Parser, model_options, run
from engine.runtime.errors import BareloopError, UsageError

PROGRAMS = ("engine", "evals.mmlu", "evals.timing", "evals.quantization")


def parse(*words: str) -> object:
    parser = Parser("program", "A program.")
    parser.add_model_options()
    parser.add_argument("--batch-tokens", type=int)
    return parser.parse_args(words)


def test_several_models_after_one_flag_or_several_flags_are_the_same():
    assert parse("-m", "A", "B") == parse("-m", "A", "-m", "B") == parse("--model", "A", "--model", "B")
    assert parse("-m", "A", "B").model == ["A", "B"]
    assert parse().model is None


def test_every_weight_format_has_one_canonical_name(capsys):
    assert [parse("--quant", name).quant for name in ("8bit", "4bit", "int4")] == ["llm.int8", "nf4", "int4"]
    with pytest.raises(SystemExit) as caught:
        parse("--quant", "int3")
    assert caught.value.code == 2
    assert "unknown weight format 'int3'; use auto, none, int8, int4, nf4" in capsys.readouterr().err


def test_a_draft_is_handed_over_only_where_the_flag_exists():
    assert "draft" not in model_options(parse())
    parser = Parser("program", "A program.")
    parser.add_model_options()
    parser.add_draft_option()
    assert "draft" not in model_options(parser.parse_args([]))
    assert model_options(parser.parse_args(["--draft", "prompt"]))["draft"] == "prompt"


def test_underscores_are_accepted_in_long_flags():
    assert parse("--batch_tokens", "5").batch_tokens == 5
    assert parse("--batch_tokens=5").batch_tokens == 5
    assert parse("-m", "my_model", "--model=other_model").model == ["my_model", "other_model"]


def test_abbreviations_are_refused():
    with pytest.raises(SystemExit) as caught:
        parse("--batch", "5")
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (BareloopError("the disk is on fire"), 1, "program: the disk is on fire"),
        (UsageError("--shots 9: too many"), 2, "program: --shots 9: too many"),
        (KeyboardInterrupt(), 130, "program: interrupted"),
        (OSError(28, "No space left on device", "run.jsonl"), 1, "program: run.jsonl: No space left on device"),
        (MemoryError(), 1, "program: out of memory; use a smaller model"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, "program: out of memory"),
    ],
)
def test_expected_failures_are_one_line_with_their_exit_code(capsys, error, code, line):
    def main(options: object) -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        run(Parser("program", "A program."), main, [])
    assert caught.value.code == code
    message = capsys.readouterr().err
    assert message.startswith(line)
    assert message.count("\n") == 1


def test_the_debug_flag_and_bugs_show_the_traceback():
    def main(options: object) -> None:
        raise BareloopError("no")

    with pytest.raises(BareloopError):
        run(Parser("program", "A program."), main, ["--debug"])

    def buggy(options: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(Parser("program", "A program."), buggy, [])


def test_success_is_exit_code_0():
    with pytest.raises(SystemExit) as caught:
        run(Parser("program", "A program."), lambda options: None, [])
    assert caught.value.code == 0


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_needs_no_torch(name):
    check = (
        f"import runpy, sys\nsys.argv = ['x', '--help']\n"
        f"try: runpy.run_module('{name}', run_name='__main__')\nexcept SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'datasets', 'rich'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--model" in done.stdout
