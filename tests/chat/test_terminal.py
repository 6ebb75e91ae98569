"""The parts of the terminal chat that need no terminal."""

from __future__ import annotations

import io
from unittest.mock import Mock

import pytest

from chat.context import Budget
from chat.conversation.events import Reply

pytest.importorskip("prompt_toolkit")

from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from rich.console import Console

from chat.terminal import CommandCompleter, MarkdownBlocks, markdown, meter
from engine.decoding.speculation import DraftStatistics


def completions(text: str) -> list[str]:
    return [completion.text for completion in CommandCompleter().get_completions(Document(text), CompleteEvent())]


def test_commands_and_their_arguments_are_completed():
    assert completions("/hi") == ["history"]
    assert completions("/strategy s") == ["sliding", "summarise"]
    assert completions("/history ") == ["on", "off"]
    assert completions("hi") == []


def test_files_of_images_are_completed(tmp_path):
    (tmp_path / "my cat.png").write_bytes(b"")
    assert completions(f"/image {tmp_path}/my") == [" cat.png"]


def test_finished_blocks_are_yielded_once_and_code_blocks_stay_whole():
    text = "One.\n\nTwo\nlines.\n\n```\ncode\n\nmore\n```\n\nEnd"
    for size in (1, 3, 100):
        blocks, finished = MarkdownBlocks(), []
        for start in range(0, len(text), size):
            finished += blocks.push(text[start : start + size])
        assert [block.strip() for block in finished] == ["One.", "Two\nlines.", "```\ncode\n\nmore\n```"]
        assert "".join(finished) + blocks.pending == text


def test_the_meter_shows_window_use_speed_drafts_and_cached_tokens():
    reply = Reply(1, "", "", "stop", 1800, 42, 1610, 4096, 0.21, 1.0)
    session = Mock(turns=[[]], statistics=Mock(last=reply), budget=Budget(4096, 1024), memory=None)
    session.count.return_value = 1842
    session.model.drafts = None
    assert meter(session) == "1,842/4,096 (45%) · 41 tok/s · TTFT 0.21 s · 1,610 cached"
    session.model.drafts = DraftStatistics(drafted=40, right=30)
    assert meter(session) == "1,842/4,096 (45%) · 41 tok/s (75% of drafts right) · TTFT 0.21 s · 1,610 cached"
    session.memory = Mock(recalled=Mock(pieces=(1, 2)))
    assert meter(session).startswith("1,842/4,096 (45%) · 2 memories · 41 tok/s")
    assert meter(session, images=1).startswith("1,842/4,096 (45%) · 2 memories · 1 image for the next message · 41 tok")


def test_markdown_rendering_loses_no_text():
    console = Console(file=io.StringIO(), width=60)
    console.print(markdown("A List<String> is\nmade so.\n\n<div>\nhello\n</div>\n\n| a | b |\n|---|---|\n| 1 | 2 |"))
    text = console.file.getvalue()
    for part in ("List<String>", "made so.", "<div>", "hello", "1"):
        assert part in text
    assert "is\n" in text.replace(" ", "")
