"""Replies that begin with a reasoning block, split into pieces of any size."""

from __future__ import annotations

import pytest

from engine.text.reasoning import ReasoningSplitter, split

REPLIES = {
    "<think>\nhm\n</think>\n\nYes.": ("\nhm\n", "Yes."),
    "  <think>a < b</thin> c</think>No </think>": ("a < b</thin> c", "No </think>"),
    "<think>never ends</thi": ("never ends</thi", ""),
    "Yes <think>": ("", "Yes <think>"),
    " <thi": ("", " <thi"),
    "\n\nYes.": ("", "\n\nYes."),
}


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("text", REPLIES)
def test_reasoning_and_answer_are_separated_whatever_the_piece_size(text, size):
    splitter = ReasoningSplitter()
    parts = [splitter.push(text[start : start + size]) for start in range(0, len(text), size)]
    parts.append(splitter.flush())
    assert (splitter.reasoning, splitter.answer) == REPLIES[text]
    assert "".join(parts) == splitter.answer


def test_the_prompt_may_have_written_the_opening_tag():
    splitter = ReasoningSplitter(in_reasoning=True)
    assert [splitter.push(text) for text in ("hm", "</think>", "\n\nYes", ".")] == ["", "", "Yes", "."]
    assert splitter.reasoning == "hm"


def test_split_separates_a_whole_reply():
    assert split("<think>\nhm\n</think>\n\nYes.") == ("hm", "Yes.")
