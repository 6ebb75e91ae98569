"""The screen's parts that need no screen."""

from __future__ import annotations

import io
from unittest.mock import Mock

import pytest

from chat.context import Budget
from chat.events import Reply

pytest.importorskip("prompt_toolkit")

from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from rich.console import Console

from chat.terminal import Blocks, Commands, markdown, meter


def completions(text: str) -> list[str]:
    return [one.text for one in Commands().get_completions(Document(text), CompleteEvent())]


def test_commands_are_completed_and_what_follows_them():
    assert completions("/hi") == ["history"]
    assert completions("/strategy s") == ["sliding", "summarise"]
    assert completions("/history ") == ["on", "off"]
    assert completions("hi") == []


def test_blocks_are_given_out_once_and_code_stays_whole():
    text = "One.\n\nTwo\nlines.\n\n```\ncode\n\nmore\n```\n\nEnd"
    for size in (1, 3, 100):
        blocks, done = Blocks(), []
        for start in range(0, len(text), size):
            done += blocks.push(text[start : start + size])
        assert [block.strip() for block in done] == ["One.", "Two\nlines.", "```\ncode\n\nmore\n```"]
        assert "".join(done) + blocks.rest == text


def test_the_meter_says_how_full_and_how_fast():
    reply = Reply(1, "", "", "stop", 1800, 42, 1610, 4096, 0.21, 1.0)
    session = Mock(turns=[[]], statistics=Mock(replies=[reply]), budget=Budget(4096, 1024))
    session.count.return_value = 1842
    assert meter(session) == "1,842/4,096 (45%) · 41 tok/s · TTFT 0.21 s · 1,610 cached"


def test_nothing_that_a_model_writes_is_lost():
    console = Console(file=io.StringIO(), width=60)
    console.print(markdown("A List<String> is\nmade so.\n\n<div>\nhello\n</div>\n\n| a | b |\n|---|---|\n| 1 | 2 |"))
    text = console.file.getvalue()
    for written in ("List<String>", "made so.", "<div>", "hello", "1"):
        assert written in text
    assert "is\n" in text.replace(" ", "")
