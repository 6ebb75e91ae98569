"""Judged answers in the report: everything is in the page, texts stay texts, and a browser shows them side by side."""

from __future__ import annotations

import json
import re

import pytest

from evals.analysis.judgments import analyse
from evals.report import page
from evals.runs.judged_folder import load_judged
from tests.evals.page.html import Page
from tests.evals.synthetic_judged import write_judged, write_lines

MODELS = {"large": 7.5, "small": 5.0, "judge": 4.0}


LOOP = {"finish_reason": "loop", "dropped_turns": 1}


def replace_answers(path, texts):
    """Replace the first turn of the first answers of a file."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row, text in zip(rows, texts, strict=False):
        row["choices"][0]["turns"][0] = text
        row["usage"] = [{"completion_tokens": 1024, "finish_reason": "length"}, LOOP]
    write_lines(path, rows)


@pytest.fixture(scope="module")
def judged(tmp_path_factory, dangerous_texts):
    """The folder and its page, with two judges, two passes and comparisons."""
    path = tmp_path_factory.mktemp("page") / "mt_bench"
    write_judged(path, MODELS, judges=("gpt", "judge"), passes=2, pairs=True, unscored=0.1)
    replace_answers(path / "model_answer" / "small.jsonl", dangerous_texts)
    (folder,) = load_judged([str(path)])
    return folder, page([], [folder])


def test_every_answer_and_judgment_is_in_the_page(judged):
    folder, html = judged
    data = Page(html).questions["mt-bench"]
    assert (data["models"], data["index"]) == (["judge", "large", "small"], folder.question_ids)
    assert data["judges"] == [["gpt", 1], ["gpt", 2], ["judge", 1], ["judge", 2]]
    assert [data["subjects"][index] for index in data["subject"]] == list(folder.categories.values())
    assert data["question"] == [list(question.turns) for question in folder.questions.values()]
    judgments = {}
    for index, (judge, number) in enumerate((judge, number) for judge in folder.judges for number in range(2)):
        for row in judge.single[number]:
            score = None if row.score == -1 else row.score
            judgments.setdefault((row.model, row.question_id), []).append([row.turn, index, score, row.judgment])
    for model, run in zip(data["models"], data["runs"], strict=True):
        answers = folder.answers[model]
        assert [[text for text, _ in turns] for turns in run["answers"]] == [
            list(row.turns) for row in answers.values()
        ]
        assert run["judgments"] == [judgments[model, number] for number in folder.question_ids]
    assert sum(map(len, data["pairs"])) == sum(len(rows) for judge in folder.judges for rows in judge.pair)
    (pair, row) = data["pairs"][0][0], folder.judges[0].pair[0][0]
    assert [data["models"][index] for index in pair[2:4]] == list(row.models)
    assert pair[4:] == [*row.winners, *row.judgments]


def test_both_references_of_a_question_are_in_the_page(judged):
    _, html = judged
    data = Page(html).questions["mt-bench"]
    index = data["index"].index(85)
    assert data["reference"][index] == ["judge's 85.1", "judge's 85.2"]
    assert data["expected"][index] == ["own 85.1", "own 85.2"]
    assert data["expected"][0] == data["reference"][0] == []


def test_texts_are_never_read_as_html(judged, dangerous_texts):
    _, html = judged
    parsed = Page(html)
    answers = parsed.questions["mt-bench"]["runs"][2]["answers"]
    assert [turns[0][0] for turns in answers[: len(dangerous_texts)]] == dangerous_texts
    assert answers[0][0][1] == "1,024 tokens, cut off at the token limit"
    assert answers[0][1][1] == "stopped, as it repeats itself, without the first turn, which did not fit"
    assert len(parsed.all("script")) == 2
    assert [text for _, text in parsed.all("b") if "bold" in text] == []


def test_the_tables_show_the_means_and_link_to_the_questions(judged):
    folder, html = judged
    parsed = Page(html)
    analyses = analyse(folder.judges, folder.categories)
    for number, analysis in enumerate(analyses, 1):
        for row in analysis.models:
            assert parsed.all("td", **{"data-value": str(row.overall.mean)})
        names = ("scores", "comparisons", "means", "categories", "differences", "wins", "pairs")
        assert {f"mt-bench-judge{number}-{name}" for name in names} <= set(parsed.ids)
    assert len(parsed.all("svg")) == 4
    links = [attributes["href"] for attributes, _ in parsed.all("a") if attributes["href"].startswith("#q:")]
    assert "#q:group=mt-bench&subject=math" in links
    questions = [text for _, text in parsed.all("dt")]
    assert questions.count("What are the scores worth?") == 2
    assert questions.count("Does the judge prefer its own answers?") == 1
    ids = parsed.ids
    assert len(set(ids)) == len(ids)
    assert not {"costs", "overview"} & set(ids)


def test_without_questions_or_answers_the_prompts_are_shown(tmp_path):
    write_judged(tmp_path, {"a": 5.0, "b": 6.0}, questions=1, pairs=True, saved=False)
    (tmp_path / "model_answer" / "b.jsonl").unlink()
    (folder,) = load_judged([str(tmp_path)])
    parsed = Page(page([], [folder]))
    (data,) = parsed.questions.values()
    assert data["question"] == data["reference"] == data["subject"] == [None] * 8
    assert data["runs"][0]["judgments"][0][0][4] == folder.judges[0].single[0][0].user_prompt
    assert data["runs"][1]["answers"] == [None] * 8
    assert data["pairs"][0][0][8:] == list(folder.judges[0].pair[0][0].user_prompts)
    assert [text for _, text in parsed.all("p", **{"class": "hint"}) if "question.jsonl" in text]
    assert [attributes["name"] for attributes, _ in parsed.all("select")] == ["filter", "sort", "model1", "model2"]


def test_answers_without_judgments_are_shown(tmp_path):
    write_judged(tmp_path, {"a": 5.0}, judges=(), questions=1)
    (data,) = Page(page([], load_judged([str(tmp_path)]))).questions.values()
    assert data["runs"][0]["answers"][0][0] == ["a answers 81, turn 1.", ""]
    assert data["runs"][0]["judgments"] == [[]] * 8


def test_a_browser_shows_answers_and_judgments_side_by_side(judged, browse):
    folder, html = judged
    dom = browse(html, "#q:group=mt-bench&subject=math&sort=lowest&model1=low&open=1")
    passes = [judge.single[0] for judge in folder.judges]
    means = {}
    for number in (87, 88):
        scores = [row for rows in passes for row in rows if row.question_id == number and row.score != -1]
        by_model = [[row.score for row in scores if row.model == model] for model in ("judge", "large", "small")]
        means[number] = [sum(values) / len(values) for values in by_model]
    expected = sorted((number for number in means if means[number][0] < 4), key=lambda number: sum(means[number]))
    assert list(map(int, re.findall(r'<span class="key">math, (\d+)</span>', dom))) == expected
    assert expected
    number = expected[0]
    body = dom[dom.index('<div class="body">') :].partition("Link to this question")[0]
    assert re.findall(r'class="score ".*?</span>(\w+)<small>', body)[:3] == ["judge", "large", "small"]
    assert f"large answers {number}, turn 2." in body
    assert f"judge's {number}.1" in body
    assert f"own {number}.2" in body
    assert body.count('class="judgment"') == 2 * 3 * 4
    assert body.count('class="comparison"') == 2 * 3 * 4
