"""The question browser's data: every answer is in the page, and texts stay texts."""

from __future__ import annotations

import json

import pytest

from evals.page.questions import embeddable_json
from evals.report import page
from evals.runs.collection import group_runs, load_runs
from tests.evals.page.html import Page
from tests.evals.synthetic import write_runs


def test_every_answer_is_in_the_page(report):
    runs, html = report
    data = Page(html).questions
    assert list(data) == ["mmlu-5-shot", "gsm8k-5-shot"]
    for group, columns in zip(group_runs(runs), data.values(), strict=True):
        subjects = [columns["subjects"][index] for index in columns["subject"]]
        keys = list(zip(subjects, columns["index"], strict=True))
        assert keys == group.keys
        assert columns["models"] == [run.label for run in group.runs]
        golds = [group.runs[0].records[key]["gold"] for key in keys]
        assert columns["gold"] == [[gold] if group.has_choices else gold for gold in golds]
        for run, answers in zip(group.runs, columns["runs"], strict=True):
            records = [run.records[key] for key in keys]
            assert [mark == "1" for mark in answers["correct"]] == [record["correct"] for record in records]
            assert answers["chosen"] == [record["prediction"] for record in records]
            if group.has_choices:
                for scores, record in zip(answers["scores"], records, strict=True):
                    assert scores == pytest.approx(record["loglikelihoods"], abs=0.0005)
            else:
                assert answers["response"] == [record["response"] for record in records]
                is_cut = [record["finish_reason"] == "length" for record in records]
                assert [mark == "1" for mark in answers["cut"]] == is_cut


def test_metrics_that_differ_from_right_or_wrong_are_kept(report):
    runs, html = report
    data = Page(html).questions
    assert data["mmlu-5-shot"]["runs"][0]["metrics"] == {}
    group = group_runs(runs)[1]
    name = "exact_match,flexible-extract"
    values = [group.runs[0].records[key]["metrics"][name] for key in group.keys]
    assert data["gsm8k-5-shot"]["runs"][0]["metrics"] == {name: values}


def test_texts_are_never_read_as_html(report, dangerous_texts):
    _, html = report
    parsed = Page(html)
    columns = parsed.questions["mmlu-5-shot"]
    assert columns["question"][: len(dangerous_texts)] == dangerous_texts
    assert columns["choices"][0] == [f"{choice} {dangerous_texts[0]}" for choice in range(4)]
    assert parsed.all("script", type="application/json")[0][1].count("<") == 0
    assert len(parsed.all("script")) == 3
    assert [text for _, text in parsed.all("b") if "bold" in text] == []


@pytest.mark.parametrize("text", ["</SCRIPT", "<!--<script", "]]>", "\ud800", "\x00\u2029"])
def test_embedded_json_cannot_end_its_element(text):
    embedded = embeddable_json([text])
    assert "<" not in embedded
    assert json.loads(embedded) == [text]


def test_unpooled_subjects_are_separate_and_some_texts_may_be_missing(tmp_path):
    sizes = {"mc1": 5, "mc2": 5}
    for path in write_runs(tmp_path, {"a": 0.5, "b": 0.6}, "truthfulqa", sizes, questions=True):
        file = path.with_name(path.name.replace(".run.jsonl", "_questions.json"))
        rows = json.loads(file.read_text())
        rows[0]["choices"] = ["only one"]
        rows[1]["question"] = None
        rows[6]["context"] = rows[7]["context"] = "A paragraph."
        file.write_text(json.dumps([row for row in rows if row["index"] != 4]))
    first, second = Page(page(load_runs([str(tmp_path)]))).questions.values()
    assert (first["group"], second["group"]) == ("truthfulqa-0-shot-mc1", "truthfulqa-0-shot-mc2")
    assert first["choices"][0] is first["question"][1] is first["question"][4] is None
    assert first["contexts"] is None
    assert (second["contexts"], second["context"]) == (["A paragraph."], [None, 0, 0, None, None])
    assert all(len(gold) == 2 for gold in second["gold"])


def test_a_paragraph_is_stored_once_and_separately_from_its_questions(tmp_path):
    (path,) = write_runs(tmp_path, {"a": 0.5}, "squad", {"squad": 4}, questions=True)
    file = path.with_name(path.name.replace(".run.jsonl", "_questions.json"))
    rows = json.loads(file.read_text())
    for row in rows[:3]:
        row |= {"context": "A long paragraph.", "question": f"A title\nA long paragraph.\nWho is {row['index']}?"}
    rows[2]["question"] = "A long paragraph."
    rows[0]["solution"] = load_runs([str(path)])[0].records["squad", 0]["gold"][0]
    rows[1]["solution"] = "First this, then that."
    file.write_text(json.dumps(rows))
    (columns,) = Page(page(load_runs([str(tmp_path)]))).questions.values()
    assert columns["contexts"] == ["A title\nA long paragraph."]
    assert columns["context"] == [0, 0, None, None]
    assert columns["question"][:3] == ["Who is 0?", "Who is 1?", "A long paragraph."]
    assert columns["solution"] == [None, "First this, then that.", None, None]
