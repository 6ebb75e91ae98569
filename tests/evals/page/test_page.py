"""The page as a whole: it loads nothing, its links lead somewhere, and a browser shows what is asked for."""

from __future__ import annotations

import base64
import hashlib
import re

from evals.report import page
from evals.runs.collection import group_runs, load_runs
from tests.evals.page.html import Page
from tests.evals.synthetic import write_runs

NO_TEXTS = "The texts of these questions were not saved"


def test_the_page_loads_nothing(report):
    _, html = report
    parsed = Page(html)
    for _, attributes, _ in parsed.elements:
        assert not attributes.keys() & {"src", "srcset", "action", "data", "background", "poster", "onclick", "onload"}
        for name in ("href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    assert set(re.findall(r"url\((.)", html)) <= {"#"}
    assert "@import" not in html
    policy = parsed.all("meta", **{"http-equiv": "Content-Security-Policy"})[0][0]["content"]
    (script,) = (text for attributes, text in parsed.all("script") if "type" not in attributes)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in policy


def test_ids_are_unique_and_links_lead_to_them(report):
    _, html = report
    parsed = Page(html)
    ids = parsed.ids
    assert len(set(ids)) == len(ids)
    used = re.findall(r"url\(#([^)]+)\)", html)
    used += [attributes["href"][1:] for attributes, _ in parsed.all("a") if not attributes["href"].startswith("#q:")]
    used += [attributes["xlink:href"][1:] for attributes, _ in parsed.all("use")]
    used += [attributes["aria-labelledby"] for _, attributes, _ in parsed.elements if "aria-labelledby" in attributes]
    assert used
    assert set(used) <= set(ids)
    assert {"content", "mmlu-5-shot", "mmlu-5-shot-questions", "gsm8k-5-shot", "costs"} <= set(ids)


def test_the_page_has_findings_plots_and_a_hint_about_missing_texts(report):
    _, html = report
    parsed = Page(html)
    assert next(text for _, text in parsed.all("dt")) == "Are the mistakes random?"
    assert len(parsed.all("svg")) == len(parsed.all("figure")) > 5
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes, _ in parsed.all("svg"))
    hints = [text for _, text in parsed.all("p", **{"class": "hint"})]
    assert [hint.startswith(NO_TEXTS) for hint in hints].count(True) == 1


def test_a_single_run_has_no_comparisons(tmp_path):
    write_runs(tmp_path, {"alone": 0.5}, questions=True)
    parsed = Page(page(load_runs([str(tmp_path)])))
    ids = set(parsed.ids)
    assert {"mmlu-5-shot-accuracy", "mmlu-5-shot-confidence", "mmlu-5-shot-questions", "costs"} <= ids
    assert not ids & {"overview", "mmlu-5-shot-answers", "mmlu-5-shot-differences", "mmlu-5-shot-mistakes"}
    values = [attributes["value"] or "" for attributes, _ in parsed.all("option")]
    assert [value for value in values if "wrong" in value] == ["all-wrong"]
    assert parsed.questions["mmlu-5-shot"]["models"] == ["alone"]


def test_a_browser_shows_the_questions_that_the_address_asks_for(report, browse):
    runs, html = report
    dom = browse(html, "#q:group=mmlu-5-shot&filter=all-wrong&subject=anatomy&open=1")
    group = group_runs(runs)[0]
    expected = [
        index
        for subject, index in group.keys
        if subject == "anatomy" and not any(run.records[subject, index]["correct"] for run in group.runs)
    ]
    shown = re.findall(r'<span class="key">anatomy, (\d+)</span>', dom)
    assert list(map(int, shown)) == expected
    assert f"{len(expected)} of 70 questions" in dom
    assert expected


def test_a_wide_table_scrolls_only_if_the_window_is_narrow(tmp_path, browse):
    """A table that scrolls sideways gets tabindex 0 from the page's script, others -1."""
    models = {"an/example-7B": 0.4, "other/model-8B": 0.5, "c": 0.6}
    for quant in ("none", "int8"):
        write_runs(tmp_path, models, subjects={"anatomy": 3, "high_school_government_and_politics": 3}, quant=quant)
    html = page(load_runs([str(tmp_path)]))

    def scrolls(width: int) -> bool:
        dom = browse(html, "", f"--window-size={width},900")
        (index,) = re.findall(r'aria-labelledby="mmlu-5-shot-by-subject-caption" tabindex="(-?\d)"', dom)
        return index == "0"

    assert not scrolls(1400)
    assert scrolls(400)
