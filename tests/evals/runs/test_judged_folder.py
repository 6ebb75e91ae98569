"""Folders of judged answers: everything that is there is loaded, and nothing else is needed."""

from __future__ import annotations

import json

from evals.runs.judged_folder import load_judged
from tests.evals.synthetic_judged import write_judged, write_lines

TURN_2 = (
    "<|The Start of Reference Answer|>\n\n### User:\none?\n\n### Reference answer:\nfirst\n\n### User:\ntwo?\n\n"
    "### Reference answer:\nsecond\nline\n\n<|The End of Reference Answer|>\n\n\n<|The Start of Assistant A's"
)


def test_answers_judgments_of_every_pass_and_questions_are_loaded(tmp_path):
    write_judged(tmp_path / "deep" / "mt_bench", {"b": 7.0, "a": 5.0}, judges=("x_y", "z"), passes=10, pairs=True)
    (folder,) = load_judged([str(tmp_path)])
    assert (folder.title, folder.models) == ("MT-Bench", ["a", "b"])
    assert folder.question_ids == [*range(81, 97)]
    assert {judge.judge: (len(judge.single), len(judge.pair)) for judge in folder.judges} == {
        "x_y": (10, 10),
        "z": (10, 10),
    }
    lines = (tmp_path / "deep/mt_bench/model_judgment/x_y_single.pass2.jsonl").read_text().splitlines()
    assert [row.score for row in folder.judges[0].single[1]] == [json.loads(line)["score"] for line in lines]
    assert folder.answers["a"][81].turns == ("a answers 81, turn 1.", "a answers 81, turn 2.")
    assert folder.categories[85] == "reasoning"


def test_a_folder_is_found_from_above_from_inside_and_once(tmp_path):
    root = write_judged(tmp_path / "one", {"a": 5.0}, questions=1)
    write_judged(tmp_path / "two", {"a": 5.0}, questions=1, answers=False)
    assert [folder.path.name for folder in load_judged([str(tmp_path)])] == ["one", "two"]
    inside = [str(root / "model_answer"), str(root / "model_judgment"), str(root)]
    assert [folder.title for folder in load_judged(inside)] == ["MT-Bench, one"]
    (tmp_path / "three" / "model_answer").mkdir(parents=True)
    assert load_judged([str(tmp_path / "three"), str(tmp_path / "nowhere")]) == []


def test_references_for_judges_are_those_in_their_prompts_or_else_in_their_folder(tmp_path):
    write_judged(tmp_path, {"a": 5.0}, categories=("math", "writing"), questions=2)
    saved = [{"question_id": number, "choices": [{"turns": ["saved 1", "saved 2"]}]} for number in (81, 82)]
    write_lines(tmp_path / "reference_answer" / "gpt-4.jsonl", saved)
    path = tmp_path / "model_judgment" / "judge_single.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [row | {"user_prompt": TURN_2} for row in rows if (row["question_id"], row["turn"]) == (81, 2)]
    write_lines(path, kept)
    (folder,) = load_judged([str(tmp_path)])
    assert folder.questions[81].references == ("saved 1", "second\nline")
    assert folder.questions[82].references == ("saved 1", "saved 2")
    assert folder.questions[83].references == ()
    assert folder.expected == {81: ("own 81.1", "own 81.2"), 82: ("own 82.1", "own 82.2")}


def test_damaged_files_are_reported_and_skipped(tmp_path, capsys):
    write_judged(tmp_path, {"a": 5.0, "b": 5.0}, questions=1)
    for name in ("model_answer/b.jsonl", "model_judgment/judge_single.pass2.jsonl", "question.jsonl"):
        (tmp_path / name).write_text("{}\n{\n{}\n")
    (tmp_path / "model_judgment" / "notes.jsonl").write_text("damaged")
    (folder,) = load_judged([str(tmp_path)])
    reported = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0].rpartition("/")[2] for line in reported] == [
        "b.jsonl",
        "judge_single.pass2.jsonl",
        "question.jsonl",
    ]
    assert all(line.startswith("skipped: ") for line in reported)
    assert (folder.models, len(folder.judges[0].single), folder.questions) == (["a", "b"], 1, {})
