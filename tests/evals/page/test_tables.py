"""The report's tables: their numbers, their links, and the order of the runs."""

from __future__ import annotations

from urllib.parse import parse_qs

from evals.analysis.comparison import compare
from evals.page import tables
from evals.runs.collection import group_runs, load_runs
from tests.evals.page.html import Page
from tests.evals.synthetic import write_runs


def test_a_linked_number_is_the_number_of_questions_that_the_link_shows(report):
    _, html = report
    parsed = Page(html)
    data = parsed.questions
    kinds = set()
    for attributes, text in parsed.all("a"):
        if not text.replace(",", "").isdecimal():
            continue
        state = {name: value for name, (value,) in parse_qs(attributes["href"].removeprefix("#q:")).items()}
        columns = data[state.pop("group")]
        right = [[mark == "1" for mark in run["correct"]] for run in columns["runs"]]
        matches = range(len(columns["index"]))
        for name, value in state.items():
            kinds.add(name[:5])
            if name == "filter":
                matches = [i for i in matches if f"missed-{sum(not run[i] for run in right)}" == value]
            else:
                run = right[int(name.removeprefix("model")) - 1]
                matches = [i for i in matches if run[i] == (value == "right")]
        assert len(matches) == int(text.replace(",", "")), attributes
    assert kinds == {"filte", "model"}


def test_links_name_existing_subjects_and_questions(report):
    runs, html = report
    addresses = [attributes["href"] for attributes, _ in Page(html).all("a")]
    states = [parse_qs(address[3:]) for address in addresses if address.startswith("#q:")]
    assert {state["subject"][0] for state in states if "subject" in state} == {"anatomy", "astronomy", "gsm8k"}
    questions = {state["question"][0] for state in states if "question" in state}
    assert questions
    assert questions <= {f"{subject}:{index}" for group in group_runs(runs) for subject, index in group.keys}


def test_tables_have_captions_and_scopes_and_the_right_numbers(report):
    runs, html = report
    parsed = Page(html)
    assert len(parsed.all("table")) == len(parsed.all("caption")) > 10
    assert {attributes["scope"] for attributes, _ in parsed.all("th")} == {"col", "row"}
    by_subject = parsed.all("table", id="mmlu-5-shot-by-subject")[0][1]
    run = group_runs(runs)[0].runs[0]
    right = [record["correct"] for (subject, _), record in run.records.items() if subject == "anatomy"]
    assert f"{100 * sum(right) / len(right):.1f}" in by_subject


def test_the_plain_run_comes_before_its_weight_formats_in_every_table(tmp_path):
    """Also in the overview, if the plain run is missing in the first benchmark."""
    for quant in ("int8", "int4", "none"):
        if quant != "none":
            write_runs(tmp_path, {"b": 0.4, "a": 0.5}, "mmlu", {"anatomy": 20}, quant=quant)
        write_runs(tmp_path, {"b": 0.4, "a": 0.5}, "gsm8k", {"gsm8k": 20}, quant=quant)
    groups = group_runs(load_runs([str(tmp_path)]))
    comparisons = [compare(group, 100) for group in groups]
    expected = ["a", "a int8", "a int4", "b", "b int8", "b int4"]
    assert [row[0].text for row in tables.overview(comparisons, ["mmlu", "gsm8k"]).rows] == expected
    gsm8k = comparisons[1]
    assert [row[0].text for row in tables.metrics(gsm8k).rows] == expected
    assert list(tables.subjects(gsm8k, "gsm8k").heads[2:8]) == expected
    assert [row[0].text for row in tables.one_against_all(gsm8k, "gsm8k").rows] == expected
    assert [row[0].text for row in tables.costs(groups[1:]).rows] == expected
    assert [row[0].text for row in tables.files(groups[1:]).rows] == expected
    first = [row[0].text for row in tables.pairs(gsm8k, "gsm8k").rows]
    assert first == sorted(first, key=expected.index)
