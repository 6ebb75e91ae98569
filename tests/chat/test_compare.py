"""Dialogues with and without history: distances, recall, costs, and bad scripts."""

from __future__ import annotations

import json

import pytest

from chat import compare, dialogues
from engine.runtime.errors import BareloopError


def test_distance_counts_from_the_last_message_that_contains_the_expected_text():
    lines = dialogues.lines(["I'm Zorvan.", "Call me Bo.", "Hi!", {"say": "Who am I?", "expect": "Bo"}], "here")
    assert [line.distance for line in lines] == [0, 0, 0, 2]
    assert dialogues.lines([{"say": "Capital of France?", "expect": "Paris"}], "here")[0].distance == 0


def test_only_whole_words_match():
    assert dialogues.contains("Your name is Bo.", "bo")
    assert not dialogues.contains("Bold.", "Bo")


def test_the_builtin_script_asks_five_questions_at_every_distance():
    asked = [line.distance for dialogue in dialogues.builtin_script() for line in dialogue if line.expect]
    assert {distance: asked.count(distance) for distance in set(asked)} == dict.fromkeys(dialogues.DISTANCES, 5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "not a list of dialogues"),
        ("[[1]]", "message 1 is neither"),
        ('[["Hi!", {"say": "What?", "want": "x"}]]', "dialogue 1, message 2 is neither"),
        ('[[{"say": "What?", "expect": 3}]]', "say and expect must be strings"),
        ("nonsense", "not JSON"),
    ],
)
def test_a_bad_script_is_refused_in_one_line(tmp_path, content, message):
    (tmp_path / "script.json").write_text(content)
    with pytest.raises(BareloopError, match=message):
        dialogues.read_script(tmp_path / "script.json")


def test_a_model_that_echoes_its_prompt_recalls_only_with_history(shared, tmp_path, monkeypatch):
    from chat.conversation.events import Reply
    from chat.conversation.session import Session
    from engine import LLM

    def echo(self, text):
        self.turns.append([{"role": "user", "content": text}])
        text = " ".join(message["content"] for message in self.visible_messages())
        yield Reply(len(self.turns), text, "", "stop", 10, 1, 4, self.budget.window, 0.5, 0.5)

    monkeypatch.setattr(Session, "send", echo)
    llm = LLM.load(shared / "checkpoints" / "llama-tinystories-656k", dtype="float32")
    results = compare.run_all(llm, dialogues.builtin_script()[: len(dialogues.DISTANCES)], 100, 5)
    by_name = {result.name: result for result in results}
    assert by_name["history"].right == by_name["history"].asked == dict.fromkeys(dialogues.DISTANCES, 1)
    assert sum(by_name["no history"].right.values()) == 0
    assert by_name["history"].visible_share == 1 and by_name["no history"].visible_share == 0
    assert by_name["history"].read_per_turn == 6
    assert by_name["history"].cached_share == 0.4
    compare.draw(results, tmp_path / "compare")
    assert (tmp_path / "compare.png").stat().st_size > 10_000
    assert (tmp_path / "compare.svg").read_text().startswith("<?xml")
    assert compare.table(results).row_count == 7


def test_the_program_writes_its_report(shared, tmp_path, capsys):
    script = tmp_path / "script.json"
    script.write_text(json.dumps([["My name is Tom.", {"say": "Who am I?", "expect": "Tom"}]]))
    model = str(shared / "checkpoints" / "llama-tinystories-656k")
    arguments = [str(script), "-m", model, "-n", "3", "--small-window", "60", "--output-dir", str(tmp_path)]
    compare.main(compare.parser().parse_args(arguments))
    report = json.loads((tmp_path / "compare.json").read_text())
    assert [way["name"] for way in report["ways"]][:2] == ["history", "no history"]
    assert report["ways"][0]["turns"] == 2
    assert "no history" in capsys.readouterr().out
