"""Error messages: one line, with quoted values clipped."""

from __future__ import annotations

import json

import pytest

from engine import LLM
from engine.cli.parser import Parser, run
from engine.models import configure
from engine.runtime.errors import MAX_QUOTE, BareloopError, UsageError, quote
from engine.runtime.files import local_path

LONG = "x" * 10_000


def test_quote_is_repr_clipped_to_80_characters():
    assert quote("short") == "'short'"
    assert quote(None) == "None"
    for value in (LONG, LONG.encode(), [LONG], {"a": list(range(10**4))}, 10**300):
        assert len(quote(value)) == MAX_QUOTE and quote(value).endswith("…")


def message_of(call) -> str:
    with pytest.raises((BareloopError, SystemExit)) as error:
        call()
    return str(error.value)


def test_no_message_echoes_a_long_value(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": LONG}))
    for message in (
        message_of(lambda: LLM.load(tmp_path)),
        message_of(lambda: configure({"model_type": "llama", "hidden_size": LONG})),
        message_of(lambda: configure({"model_type": "gpt2", "n_embd": [LONG]})),
        message_of(lambda: LLM.load("demo", quant=LONG)),
        message_of(lambda: LLM.load("demo", device=LONG)),
        message_of(lambda: LLM.load("demo", dtype=LONG)),
    ):
        assert LONG[: MAX_QUOTE + 1] not in message and "…" in message
    for name in (LONG, f"./{LONG}", "\0"):
        assert len(message_of(lambda name=name: local_path(name) / LLM.load(name).folder)) < 700
    parser = Parser("test", "A test.")
    parser.add_model_options()
    for arguments in (["--dtype", LONG], ["--quant", LONG]):
        message_of(lambda arguments=arguments: run(parser, lambda options: None, arguments))
        assert LONG[: MAX_QUOTE + 1] not in capsys.readouterr().err


def test_messages_are_one_line_of_limited_length():
    error = UsageError(f"a\nb\t{LONG}")
    assert "\n" not in str(error) and len(str(error)) < 700
    assert str(error).startswith("a\\nb\\t")
