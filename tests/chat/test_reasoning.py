"""Replies that begin with a reasoning block, however they are cut into pieces."""

from __future__ import annotations

import pytest

from chat.reasoning import Reasoning, split

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
def test_thoughts_and_answer_are_told_apart(text, size):
    reply = Reasoning()
    said = [reply.push(text[start : start + size]) for start in range(0, len(text), size)]
    said.append(reply.end())
    assert (reply.thoughts, reply.answer) == REPLIES[text]
    assert "".join(said) == reply.answer


def test_a_prompt_may_have_opened_the_block():
    reply = Reasoning(thinks=True)
    assert [reply.push(text) for text in ("hm", "</think>", "\n\nYes", ".")] == ["", "", "Yes", "."]
    assert reply.thoughts == "hm"


def test_a_whole_reply_is_split():
    assert split("<think>\nhm\n</think>\n\nYes.") == ("hm", "Yes.")
