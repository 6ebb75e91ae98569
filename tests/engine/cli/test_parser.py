"""Flags, one-line errors and exit codes that every program shares."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from engine.cli.parser import Parser, run
from engine.cli.progress import Progress, duration
from engine.runtime.errors import BareloopError, UsageError

PROGRAMS = ("engine", "evals.mmlu", "evals.timing", "evals.quantization")


def program(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, timeout=120, **options)  # type: ignore[call-overload, no-any-return]


def parse(*words: str) -> object:
    parser = Parser("program", "A program.")
    parser.add_model_options()
    parser.add_argument("--batch-tokens", type=int)
    return parser.parse_args(words)


def test_several_models_after_one_flag_or_several_flags_are_the_same():
    assert parse("-m", "A", "B") == parse("-m", "A", "-m", "B") == parse("--model", "A", "--model", "B")
    assert parse("-m", "A", "B").model == ["A", "B"]
    assert parse().model is None


def test_weight_formats_have_one_name_each(capsys):
    assert [parse("--quant", name).quant for name in ("8bit", "4bit", "int4")] == ["llm.int8", "nf4", "int4"]
    with pytest.raises(SystemExit) as caught:
        parse("--quant", "int3")
    assert caught.value.code == 2
    assert "unknown weight format 'int3'; use none, int8, int4, nf4" in capsys.readouterr().err


def test_underscores_in_long_flags():
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
    told = capsys.readouterr().err
    assert told.startswith(line)
    assert told.count("\n") == 1


def test_debug_and_defects_show_the_traceback():
    def main(options: object) -> None:
        raise BareloopError("no")

    with pytest.raises(BareloopError):
        run(Parser("program", "A program."), main, ["--debug"])

    def defect(options: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(Parser("program", "A program."), defect, [])


def test_success_is_exit_code_0():
    with pytest.raises(SystemExit) as caught:
        run(Parser("program", "A program."), lambda options: None, [])
    assert caught.value.code == 0


def test_progress_without_a_terminal_is_plain_lines(capsys, monkeypatch):
    with Progress("work", total=5, done=2) as progress:
        progress.advance(1, "hidden")
        progress.advance(2, "fine")
    assert re.fullmatch(r"work: 5/5, [\d.]+/s, 0.0 s left, fine\n", capsys.readouterr().err)
    monkeypatch.setattr("engine.cli.progress.PLAIN_INTERVAL", 0.0)
    with Progress("work", total=500) as progress:
        progress.advance(1)
    assert "work: 1/500" in capsys.readouterr().err


def test_durations_are_for_people():
    assert [duration(seconds) for seconds in (0.04, 12.34, 59.9, 245, 3723)] == [
        "0.0 s", "12.3 s", "59.9 s", "4:05 min", "1:02:03 h",
    ]  # fmt: skip


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


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (("engine", "-m", "x"), 2, "the prompt is empty"),
        (("engine", "hi", "-m", "x", "--prompt", "ho"), 2, "give one prompt"),
        (("engine", "hi", "-m", "x", "--system", "s"), 2, "--system needs --chat"),
        (("engine", "hi", "-m", "x", "--file", "f"), 2, "give one of: a prompt, --file"),
        (("engine", "-m", "x", "--file", "./nowhere"), 1, "cannot read the prompts in ./nowhere"),
        (("engine", "", "-m", "x"), 2, "the prompt is empty"),
        (("engine", "--inspect", "-m", "./nowhere"), 1, "no such folder: ./nowhere"),
        (("engine", "--inspect", "-m", ""), 1, "the model's name is empty"),
        (("engine", "--wrong"), 2, "unrecognized arguments: --wrong"),
        (("engine", "--dtype", "int3"), 2, "invalid choice: 'int3'"),
        (("evals.mmlu", "-m", "x", "--limit", "0"), 2, "--limit 0: use 1 or more"),
        (("evals.mmlu", "-m", "x", "--data", "./nowhere"), 1, "--data ./nowhere is not a folder"),
    ],
)
def test_bad_flags_are_one_line(words, code, line):
    done = program(*words)
    assert done.returncode == code
    assert line in done.stderr
    assert done.stderr.count("\n") == 1


def story(shared, *words: str, text: str | None = None) -> subprocess.CompletedProcess[str]:  # type: ignore[no-untyped-def]
    folder = str(shared / "checkpoints" / "llama-tinystories-656k")
    return program("engine", "--model", folder, "--device", "cpu", *words, input=text)


def test_a_quantized_model_is_written_and_used(tmp_path):
    done = program("engine", "-m", "demo", "--quant", "int8", "--save-quantized", str(tmp_path / "demo8"))
    assert done.returncode == 0, done.stderr
    assert "bytes in int8; load it as --model" in done.stderr
    folder = str(tmp_path / "demo8")
    done = program("engine", "-m", folder, "Once upon a time", "-n", "3")
    assert done.returncode == 0 and done.stdout.strip()
    done = program("engine", "-m", "demo", "--quant", "int8", "--save-quantized", folder)
    assert done.returncode == 1 and "exists and is not empty" in done.stderr
    done = program("engine", "-m", "demo", "--save-quantized", str(tmp_path / "plain"))
    assert done.returncode == 2 and "add --quant int8 or int4" in done.stderr


def test_a_story_from_stdin(shared):
    done = story(shared, text="Once upon a time")
    assert done.returncode == 0
    assert done.stdout.startswith(", a little girl named Lily")
    times = r"6 \+ \d+ tokens, TTFT \d+ ms, [\d.]+ tokens/s, [\d.]+ GB/s \(\d+ % of the read bandwidth, \d+ GB/s\)"
    assert re.fullmatch(times + r", (C\+\+ kernels|PyTorch's operators).*\n", done.stderr)


def test_a_prompt_may_follow_the_model(shared):
    assert (
        story(shared, "Once upon a time", "-n", "5").stdout == story(shared, "-n", "5", "-p", "Once upon a time").stdout
    )


def test_a_file_of_prompts_in_one_batch_as_json(shared, tmp_path):
    (tmp_path / "prompts.txt").write_text("Once upon a time\n\nTom had a big red ball.\n")
    sampled = ("--temp", "0.9", "--seed", "4", "-n", "12")
    done = story(shared, "--file", str(tmp_path / "prompts.txt"), "--json", "--logprobs", "2", *sampled)
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert (first["prompt"], second["prompt"]) == ("Once upon a time", "Tom had a big red ball.")
    assert len(first["token_ids"]) == len(first["logprobs"]) == len(first["top_logprobs"]) == 12
    alone = json.loads(story(shared, "--json", "--prompt", "Tom had a big red ball.", *sampled).stdout)
    assert alone["text"] == second["text"]


def test_several_models_stand_side_by_side(shared):
    folder = str(shared / "checkpoints" / "llama-tinystories-656k")
    done = story(shared, "--model", folder, "--prompt", "Who is it?", "-n", "4")
    assert done.returncode == 0
    assert "tokens/s" in done.stdout
    assert done.stdout.count("Who is it?") == 2


def test_a_prompt_beyond_the_window_and_chat_without_a_template_are_one_line(shared):
    for words, line in (
        (("--prompt", "once " * 2000), "the model's window is 512"),
        (("--prompt", "hi", "--chat"), "has no chat template"),
        (("--prompt", "hi", "--temp", "-1"), "temperature = -1.0: use 0 or more"),
        (("--prompt", "hi", "--top-p", "0"), "top_p = 0.0"),
        (("--prompt", "hi", "--stop", *"abcdefgh" * 125), "stop has 1000 strings: use up to 64"),
    ):
        done = story(shared, *words)
        assert done.returncode in (1, 2)
        assert line in done.stderr
        assert done.stderr.count("\n") == 1
        assert done.stdout == ""
