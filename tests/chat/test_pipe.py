"""Chat through pipes: stdout carries only replies, or one JSON object per line."""

from __future__ import annotations

import io
import json

from chat.pipe import Pipe


def test_stdout_carries_only_replies(agent, capsys):
    Pipe(agent).talk(io.StringIO("Hello!\n\n/nonsense\n/stats\nAnd you?\n/quit\nnever\n"))
    out, err = capsys.readouterr()
    assert out.count("\n\n") == 2
    assert "unknown command '/nonsense'" in err
    assert "window" in err
    assert len(agent.session.turns) == 2


def test_json_is_one_object_per_line(agent, capsys):
    Pipe(agent, as_json=True).talk(io.StringIO("Hello!\n/nonsense\n"))
    reply, error = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (reply["type"], reply["turn"], reply["finish_reason"]) == ("reply", 1, "length")
    assert reply["usage"]["completion_tokens"] == 6
    assert error["type"] == "error"


def test_windows_line_ends_are_no_part_of_a_line_and_failures_are_output(agent):
    assert Pipe(agent).talk(io.StringIO("/stats\r\nHello!\r\n"))
    assert agent.session.turns[0][0]["content"] == "Hello!"
    assert not Pipe(agent).talk(io.StringIO("/nonsense\n"))
