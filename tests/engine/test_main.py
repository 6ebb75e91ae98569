"""`python -m engine`: what it prints, its exit codes, and one line for every wrong flag."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import engine.__main__
from engine import LLM, SamplingParams
from engine.cli.parser import run
from tests.engine.models.vision.tiny import picture, tiny_checkpoint


class Output(NamedTuple):
    """What a program left behind."""

    code: int
    stdout: str
    stderr: str


class Terminal(io.TextIOWrapper):
    """An interactive stdin."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Output]:
    """Run `python -m engine` in this process: program(*arguments, stdin=None); without stdin it is a terminal."""

    def call(*arguments: str, stdin: str | None = None) -> Output:
        stream = io.TextIOWrapper if stdin is not None else Terminal
        monkeypatch.setattr(sys, "stdin", stream(io.BytesIO((stdin or "").encode())))
        with pytest.raises(SystemExit) as caught:
            run(engine.__main__.parser(), engine.__main__.main, arguments)
        captured = capsys.readouterr()
        return Output(int(caught.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture
def stories(shared: Path) -> tuple[str, ...]:
    """The flags of a real model."""
    return ("--model", str(shared / "checkpoints" / "llama-tinystories-656k"), "--device", "cpu")


@pytest.fixture
def tiny_mamba(draw_tiny: Callable[..., Any]) -> Path:
    """A recurrent model."""
    return Path(draw_tiny("mamba").folder)


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (("hi", "-m", "x", "--prompt", "ho"), 2, "give one prompt"),
        (("hi", "-m", "x", "--system", "s"), 2, "--system needs --chat or --image"),
        (("hi", "-m", "demo", "--image", "./nowhere.png"), 1, "cannot read the image 'nowhere.png'"),
        (("hi", "-m", "demo", "--image", __file__), 1, "is not a PNG, JPEG, WebP, GIF or BMP file"),
        (("hi", "-m", "x", "--embed", "--image", "a.png"), 2, "--embed prints vectors; leave out --image"),
        (("hi", "-m", "x", "--file", "f"), 2, "give one of: a prompt, --file"),
        (("-m", "x", "--file", "./nowhere"), 1, "cannot read the prompts in ./nowhere"),
        (("-m", "x"), 2, "give a prompt: python -m engine --model MODEL"),
        (("", "-m", "x"), 2, "the prompt is empty"),
        (("--inspect", "-m", "./nowhere"), 1, "no such folder: ./nowhere"),
        (("--inspect", "-m", ""), 1, "the model's name is empty"),
        (("--wrong",), 2, "unrecognized arguments: --wrong"),
        (("--dtype", "int3"), 2, "invalid choice: 'int3'"),
        (("hi", "-m", "demo", "--device", "foo"), 2, "foo"),
        (("hi", "-m", "demo", "--regex", "["), 2, "the regex '[' cannot be used: unclosed character class"),
        (("hi", "-m", "demo", "--regex", ""), 2, "the regex is empty"),
        (("hi", "-m", "demo", "--regex", "a", "--lark", "f"), 2, "--lark: not allowed with argument --regex"),
        (("hi", "-m", "demo", "--json-schema", "./nowhere"), 1, "cannot read the JSON schema in ./nowhere"),
        (("hi", "-m", "demo", "--lark", "./nowhere"), 1, "cannot read the Lark grammar in ./nowhere"),
        (("hi", "-m", "demo", "--json-schema", __file__), 2, "is not valid JSON"),
        (("hi", "-m", "demo", "--lark", __file__), 2, "the Lark grammar"),
        (("hi", "-m", "demo", "--draft", "./nowhere"), 1, "no such folder: ./nowhere"),
        (("hi", "-m", "demo", "--draft", ""), 1, "the model's name is empty"),
    ],
)
def test_a_wrong_flag_is_one_line(program: Callable[..., Output], arguments: Any, code: int, line: str) -> None:
    output = program(*arguments)
    assert output.code == code
    assert line in output.stderr
    assert output.stderr.count("\n") == 1
    assert output.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--prompt", "once " * 2000), "the model's window is 512"),
        (("--prompt", "hi", "--chat"), "has no chat template"),
        (("--prompt", "hi", "--temp", "-1"), "temperature = -1.0: use a number from 0 to 1e+06"),
        (("--prompt", "hi", "--top-p", "0"), "top_p = 0.0"),
        (("--prompt", "hi", "--stop", *"abcdefgh" * 125), "stop has 1000 strings: use up to 64"),
    ],
)
def test_what_the_model_cannot_do_is_one_line(
    program: Callable[..., Output], stories: tuple[str, ...], arguments: Any, line: str
) -> None:
    output = program(*stories, *arguments)
    assert output.code in (1, 2)
    assert line in output.stderr
    assert output.stderr.count("\n") == 1
    assert output.stdout == ""


def test_an_empty_stdin_is_one_line(program: Callable[..., Output]) -> None:
    output = program("-m", "x", stdin="")
    assert output.code == 2
    assert output.stderr.startswith("python -m engine: the prompt is empty")


def test_a_prompt_from_stdin_is_continued_and_the_speed_is_reported(stories: tuple[str, ...]) -> None:
    arguments = [sys.executable, "-m", "engine", *stories]
    done = subprocess.run(arguments, input="Once upon a time", capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith(", a little girl named Lily")
    speed = r"6 \+ \d+ tokens, TTFT \d+ ms, [\d.]+ tokens/s, [\d.]+ GB/s \(\d+ % of the read bandwidth, \d+ GB/s\)"
    assert re.fullmatch(speed + r", (C\+\+ kernels|PyTorch's operators).*\n", done.stderr)


def test_the_prompt_may_follow_the_name_of_the_model(program: Callable[..., Output], stories: tuple[str, ...]) -> None:
    positional = program(*stories, "-n", "5", "Once upon a time")
    assert positional.stdout == program(*stories, "-n", "5", "-p", "Once upon a time").stdout
    model = stories[:2]
    assert positional.stdout == program("-n", "5", "--device", "cpu", *model, "Once upon a time").stdout


def test_a_file_of_prompts_is_decoded_in_one_batch_and_printed_as_json(
    program: Callable[..., Output], stories: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("Once upon a time\n\nTom had a big red ball.\n")
    flags = (*stories, "--json", "--temp", "0.9", "--seed", "4", "-n", "12")
    output = program(*flags, "--logprobs", "2", "--file", str(tmp_path / "prompts.txt"))
    first, second = (json.loads(line) for line in output.stdout.splitlines())
    assert (first["prompt"], second["prompt"]) == ("Once upon a time", "Tom had a big red ball.")
    assert len(first["token_ids"]) == len(first["logprobs"]) == len(first["top_logprobs"]) == 12
    alone = json.loads(program(*flags, "--prompt", "Tom had a big red ball.").stdout)
    assert alone["text"] == second["text"]


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[str, ...]:
    """The flags of two pictures."""
    for name, size in (("cat", (60, 40)), ("dog", (32, 32))):
        (tmp_path / f"{name}.png").write_bytes(picture(*size))
    return ("--image", str(tmp_path / "cat.png"), "--image", str(tmp_path / "dog.png"))


def test_pictures_are_sent_with_the_prompt_as_a_message(
    program: Callable[..., Output], pictures: tuple[str, ...], tmp_path: Path
) -> None:
    folder = tiny_checkpoint(tmp_path / "model").folder
    output = program("-m", str(folder), "-n", "5", "--json", *pictures, "What are these?")
    assert output.code == 0
    parts = [{"type": "image", "image": Path(file)} for file in pictures[1::2]]
    message = {"role": "user", "content": [*parts, {"type": "text", "text": "What are these?"}]}
    llm = LLM.load(folder, device="cpu")
    expected = llm.chat([message], SamplingParams(max_new_tokens=5))
    found = json.loads(output.stdout)
    assert (found["text"], found["token_ids"]) == (expected.text, expected.token_ids)
    assert found["prompt_tokens"] == expected.usage.prompt_tokens == len(llm.chat_template.encode([message]))


def test_a_picture_for_a_text_model_is_one_line(program: Callable[..., Output], pictures: tuple[str, ...]) -> None:
    output = program("-m", "demo", "--device", "cpu", *pictures, "What is this?")
    assert (output.code, output.stdout, output.stderr.count("\n")) == (1, "", 1)
    assert "this model takes no images; use a vision-language model such as SmolVLM" in output.stderr


def test_a_text_within_a_grammar_is_printed(program: Callable[..., Output], tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    (tmp_path / "grammar.lark").write_text('start: "yes" | "no"')
    flags = ("-m", "demo", "--device", "cpu", "--prompt", "A number: ")
    assert json.loads(program(*flags, "--json-schema", str(tmp_path / "schema.json")).stdout)["n"] in (1, 2)
    assert program(*flags, "--lark", str(tmp_path / "grammar.lark")).stdout.strip() in ("yes", "no")
    several = program(*flags, "--regex", "[0-9]{3}x", "--temp", "1", "--json")
    assert re.fullmatch("[0-9]{3}x", json.loads(several.stdout)["text"])


def test_a_draft_leaves_the_text_and_reports_what_it_gained(
    program: Callable[..., Output], stories: tuple[str, ...], tmp_path: Path
) -> None:
    plain = program(*stories, "--prompt", "Once upon a time", "-n", "60")
    for draft in ("prompt", stories[1]):
        output = program(*stories, "--prompt", "Once upon a time", "-n", "60", "--draft", draft)
        assert output.stdout == plain.stdout
        line = r"6 \+ 60 tokens, TTFT \d+ ms, [\d.]+ tokens/s, (no drafted tokens|\d+% of \d+ drafted tokens right, "
        line += r"[\d.]+ tokens/step, [\d.]+ x as fast as without drafts), (C\+\+ kernels|PyTorch's operators).*\n"
        assert re.fullmatch(line, output.stderr)
    (tmp_path / "prompts.txt").write_text("Once upon a time\nTom had a big red ball.\n")
    output = program(*stories, "--file", str(tmp_path / "prompts.txt"), "--json", "--draft", stories[1])
    first, second = (json.loads(line) for line in output.stdout.splitlines())
    assert first["drafts"] == second["drafts"]
    assert first["drafts"].keys() == {"drafted_tokens", "right_tokens", "tokens_per_step", "speedup"}
    assert "drafts" not in json.loads(program(*stories, "--prompt", "Hi", "-n", "2", "--json").stdout)


def test_a_draft_that_one_of_several_models_cannot_use_is_an_error_with_its_name(
    program: Callable[..., Output], stories: tuple[str, ...], tiny_mamba: Path
) -> None:
    flags = (*stories, "-m", str(tiny_mamba), "--prompt", "Hi", "-n", "2", "--draft")
    output = program(*flags, "prompt")
    assert output.code == 1
    assert f"{tiny_mamba}: a mamba model cannot take back tokens" in output.stderr.splitlines()[-1]
    output = program("-m", "demo", "--prompt", "Hi", "--draft", stories[1])
    assert output.code == 1
    assert "has another vocabulary than" in output.stderr
    assert output.stderr.count("\n") == 1


def test_several_models_stand_side_by_side(program: Callable[..., Output], stories: tuple[str, ...]) -> None:
    output = program(*stories, *stories[:2], "--prompt", "Who is it?", "-n", "4")
    assert output.code == 0
    assert "tokens/s" in output.stdout
    assert output.stdout.count("Who is it?") == 2


def test_a_quantized_model_is_saved_and_loads_again(program: Callable[..., Output], tmp_path: Path) -> None:
    folder = str(tmp_path / "demo8")
    quantize = ("-m", "demo", "--quant", "int8", "--save-quantized", folder)
    output = program(*quantize)
    assert output.code == 0, output.stderr
    assert "bytes in int8; load it as --model" in output.stderr
    output = program("-m", folder, "Once upon a time", "-n", "3")
    assert output.code == 0 and output.stdout.strip()
    output = program(*quantize)
    assert output.code == 1 and "exists and is not empty" in output.stderr
    output = program("-m", "demo", "--save-quantized", str(tmp_path / "plain"))
    assert output.code == 2 and "add --quant int8 or int4" in output.stderr
