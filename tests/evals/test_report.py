"""The report: one file that loads nothing, with every answer in it; texts stay texts; links find what they promise."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from urllib.parse import parse_qs

import pytest

from engine.cli.parser import run
from evals.page.questions import embedded
from evals.report import inline, main, page, parser
from evals.runs.collection import groups, load
from tests.evals.synthetic import make

THREE = {"one/small": 0.4, "one/large": 0.7, "other": 0.55}
NASTY = [
    "</script><b>bold</b><script>alert(1)</script>",
    "<!-- <script> never closed",
    "\"quotes\", 'quotes' & &lt;entities&gt; \\u003c \\n {{ 7 * 7 }} {% raw %} ${1}",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 🎉 \u2028 ما هي عاصمة فرنسا؟",
    r"$\frac{1}{2}$ \[ \sum_i x_i \]",
    "a long passage " * 700,
    "one line\nanother\n\tindented",
]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ALONE = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta"}  # elements without an end


class Page(HTMLParser):
    """A page as its elements, each with its attributes and all text within it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))
        if tag not in ALONE:
            self._open.append(self.elements[-1])

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        for _, _, text in self._open:
            text.append(data)

    def all(self, name: str, **wanted: str) -> list[tuple[dict[str, str | None], str]]:
        """The elements of this name with these attributes: their attributes and their texts."""
        return [
            (attributes, "".join(text))
            for tag, attributes, text in self.elements
            if tag == name and wanted.items() <= attributes.items()
        ]

    @property
    def data(self) -> dict[str, dict[str, object]]:
        """The questions of each group."""
        told = [json.loads(text) for _, text in self.all("script", type="application/json")]
        return {own["group"]: own for own in told}


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """The runs of two benchmarks, their texts changed into such as break pages, and their page."""
    folder = tmp_path_factory.mktemp("several")
    for task, texts in (("mmlu", True), ("gsm8k", False)):
        for path in make(folder, THREE, task=task, questions=texts):
            if texts:
                spoil(path)
    runs = load([str(folder)])
    return runs, page(runs)


def spoil(path):
    """Give the first questions of a run file's saved texts others."""
    file = path.with_name(path.name.replace(".run.jsonl", "_questions.json"))
    rows = json.loads(file.read_text())
    for row, text in zip(rows, NASTY, strict=False):
        row |= {"question": text, "choices": [f"{place} {text}" for place in range(4)]}
    file.write_text(json.dumps(rows))


def test_the_page_loads_nothing(several):
    _, html = several
    own = Page(html)
    for _, attributes, _ in own.elements:
        assert not attributes.keys() & {"src", "srcset", "action", "data", "background", "poster", "onclick", "onload"}
        for name in ("href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    assert set(re.findall(r"url\((.)", html)) <= {"#"}
    assert "@import" not in html
    policy = own.all("meta", **{"http-equiv": "Content-Security-Policy"})[0][0]["content"]
    (program,) = (text for attributes, text in own.all("script") if "type" not in attributes)
    digest = base64.b64encode(hashlib.sha256(program.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in policy


def test_every_answer_is_in_the_page(several):
    runs, html = several
    data = Page(html).data
    assert list(data) == ["mmlu-5-shot", "gsm8k-5-shot"]
    for group, own in zip(groups(runs), data.values(), strict=True):
        keys = [(own["subjects"][subject], index) for subject, index in zip(own["subject"], own["index"], strict=True)]
        assert keys == group.keys
        assert own["models"] == [one.label for one in group.runs]
        golds = [group.runs[0].records[key]["gold"] for key in keys]
        assert own["gold"] == [[gold] if group.has_choices else gold for gold in golds]
        for one, told in zip(group.runs, own["runs"], strict=True):
            records = [one.records[key] for key in keys]
            assert [mark == "1" for mark in told["correct"]] == [record["correct"] for record in records]
            assert told["chosen"] == [record["prediction"] for record in records]
            if group.has_choices:
                for scores, record in zip(told["scores"], records, strict=True):
                    assert scores == pytest.approx(record["loglikelihoods"], abs=0.0005)
            else:
                assert told["response"] == [record["response"] for record in records]
                assert [mark == "1" for mark in told["cut"]] == [
                    record["finish_reason"] == "length" for record in records
                ]


def test_metrics_that_say_more_than_right_or_wrong_are_kept(several):
    runs, html = several
    data = Page(html).data
    assert data["mmlu-5-shot"]["runs"][0]["metrics"] == {}
    group = groups(runs)[1]
    name = "exact_match,flexible-extract"
    assert data["gsm8k-5-shot"]["runs"][0]["metrics"] == {
        name: [group.runs[0].records[key]["metrics"][name] for key in group.keys]
    }


def test_texts_stay_texts(several):
    _, html = several
    own = Page(html)
    told = own.data["mmlu-5-shot"]
    assert told["question"][: len(NASTY)] == NASTY
    assert told["choices"][0] == [f"{place} {NASTY[0]}" for place in range(4)]
    assert own.all("script", type="application/json")[0][1].count("<") == 0
    assert len(own.all("script")) == 3
    assert [text for _, text in own.all("b") if "bold" in text] == []


@pytest.mark.parametrize("text", [*NASTY[:5], "</SCRIPT", "<!--<script", "]]>", "\ud800", "\x00\u2029"])
def test_embedded_json_cannot_end_its_element(text):
    told = embedded([text])
    assert "<" not in told
    assert json.loads(told) == [text]


def test_ids_are_unique_and_links_lead_somewhere(several):
    _, html = several
    own = Page(html)
    ids = [attributes["id"] for _, attributes, _ in own.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    used = re.findall(r"url\(#([^)]+)\)", html)
    used += [attributes["href"][1:] for attributes, _ in own.all("a") if not attributes["href"].startswith("#q:")]
    used += [attributes["xlink:href"][1:] for attributes, _ in own.all("use")]
    used += [attributes["aria-labelledby"] for _, attributes, _ in own.elements if "aria-labelledby" in attributes]
    assert used
    assert set(used) <= set(ids)
    assert {"content", "mmlu-5-shot", "mmlu-5-shot-questions", "gsm8k-5-shot", "costs"} <= set(ids)


def test_a_number_that_is_a_link_is_the_number_of_questions_that_it_shows(several):
    _, html = several
    own = Page(html)
    data = own.data
    seen = set()
    for attributes, text in own.all("a"):
        if not text.replace(",", "").isdecimal():
            continue
        state = {name: value for name, (value,) in parse_qs(attributes["href"].removeprefix("#q:")).items()}
        group = data[state.pop("group")]
        right = [[mark == "1" for mark in one["correct"]] for one in group["runs"]]
        found = range(len(group["index"]))
        for name, value in state.items():
            seen.add(name[:5])
            if name == "filter":
                found = [i for i in found if f"missed-{sum(not one[i] for one in right)}" == value]
            else:
                found = [i for i in found if right[int(name.removeprefix("model")) - 1][i] == (value == "right")]
        assert len(found) == int(text.replace(",", "")), attributes
    assert seen == {"filte", "model"}


def test_links_to_subjects_and_questions_name_those_that_there_are(several):
    runs, html = several
    addresses = [attributes["href"] for attributes, _ in Page(html).all("a")]
    states = [parse_qs(address[3:]) for address in addresses if address.startswith("#q:")]
    assert {state["subject"][0] for state in states if "subject" in state} == {"anatomy", "astronomy", "gsm8k"}
    asked = {state["question"][0] for state in states if "question" in state}
    assert asked
    assert asked <= {f"{subject}:{index}" for group in groups(runs) for subject, index in group.keys}


def test_a_page_has_tables_with_captions_pictures_and_words(several):
    runs, html = several
    own = Page(html)
    assert len(own.all("table")) == len(own.all("caption")) > 10
    assert {attributes["scope"] for attributes, _ in own.all("th")} == {"col", "row"}
    assert len(own.all("svg")) == len(own.all("figure")) > 5
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes, _ in own.all("svg"))
    assert next(text for _, text in own.all("dt")) == "Are these mistakes random?"
    by_subject = own.all("table", id="mmlu-5-shot-by-subject")[0][1]
    run = groups(runs)[0].runs[0]
    right = [record["correct"] for (subject, _), record in run.records.items() if subject == "anatomy"]
    assert f"{100 * sum(right) / len(right):.1f}" in by_subject
    hint = "The texts of these questions were not saved"
    assert [text.startswith(hint) for attributes, text in own.all("p", **{"class": "hint"})].count(True) == 1


def test_one_run_is_told_without_comparisons(tmp_path):
    make(tmp_path, {"alone": 0.5}, questions=True)
    own = Page(page(load([str(tmp_path)])))
    ids = {attributes["id"] for _, attributes, _ in own.elements if "id" in attributes}
    assert {"mmlu-5-shot-accuracy", "mmlu-5-shot-confidence", "mmlu-5-shot-questions", "costs"} <= ids
    assert not ids & {"overview", "mmlu-5-shot-answers", "mmlu-5-shot-differences", "mmlu-5-shot-mistakes"}
    assert [attributes["value"] for attributes, _ in own.all("option") if "wrong" in (attributes["value"] or "")] == [
        "all-wrong"
    ]
    assert own.data["mmlu-5-shot"]["models"] == ["alone"]


def test_two_kinds_of_choices_are_two_parts_and_some_texts_may_be_missing(tmp_path):
    for path in make(tmp_path, {"a": 0.5, "b": 0.6}, task="truthfulqa", subjects={"mc1": 5, "mc2": 5}, questions=True):
        file = path.with_name(path.name.replace(".run.jsonl", "_questions.json"))
        rows = json.loads(file.read_text())
        rows[0]["choices"] = ["one alone"]
        rows[1]["question"] = None
        rows[6]["context"] = rows[7]["context"] = "A paragraph."
        file.write_text(json.dumps([row for row in rows if row["index"] != 4]))
    first, second = Page(page(load([str(tmp_path)]))).data.values()
    assert (first["group"], second["group"]) == ("truthfulqa-0-shot-mc1", "truthfulqa-0-shot-mc2")
    assert first["choices"][0] is first["question"][1] is first["question"][4] is None
    assert first["contexts"] is None
    assert (second["contexts"], second["context"]) == (["A paragraph."], [None, 0, 0, None, None])
    assert all(len(own) == 2 for own in second["gold"])


def test_a_paragraph_is_kept_once_and_apart_from_its_questions(tmp_path):
    for path in make(tmp_path, {"a": 0.5}, task="squad", subjects={"squad": 4}, questions=True):
        file = path.with_name(path.name.replace(".run.jsonl", "_questions.json"))
        rows = json.loads(file.read_text())
        for row in rows[:3]:
            row |= {"context": "A long paragraph.", "question": f"A title\nA long paragraph.\nWho is {row['index']}?"}
        rows[2]["question"] = "A long paragraph."
        rows[0]["solution"] = load([str(path)])[0].records["squad", 0]["gold"][0]
        rows[1]["solution"] = "First this, then that."
        file.write_text(json.dumps(rows))
    (own,) = Page(page(load([str(tmp_path)]))).data.values()
    assert own["contexts"] == ["A title\nA long paragraph."]
    assert own["context"] == [0, 0, None, None]
    assert own["question"][:3] == ["Who is 0?", "Who is 1?", "A long paragraph."]
    assert own["solution"] == [None, "First this, then that.", None, None]


def test_the_program_writes_one_file_and_tells_where(tmp_path, capsys):
    (path, *_) = make(tmp_path / "runs", {"a": 0.5}, subjects={"anatomy": 3}, questions=True)
    file = path.with_name(path.name.replace(".run.jsonl", "_questions.json"))
    file.write_text(file.read_text().replace("What is", r"\ud800 What is"))  # half a character, as JSON can hold
    (tmp_path / "runs" / "damaged.run.jsonl").write_text("damaged\n")
    output = tmp_path / "new" / "report.html"
    main(parser().parse_args([str(tmp_path / "runs"), "--output", str(output)]))
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("left out: ")
    assert "damaged.run.jsonl" in told[0]
    assert told[-1] == f"report: {output}"
    assert "? What is" in Page(output.read_text(encoding="utf-8")).data["mmlu-5-shot"]["question"][0]


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        ([], 1, "no such file or folder: results"),
        (["empty"], 1, "no run files"),
        (["runs", "-o", "empty"], 2, "--output empty is a folder; name a file, such as empty/report.html"),
        (["runs", "-o", "RUN"], 2, "is one of the files that the report is made of"),
        (["runs", "-o", "QUESTIONS"], 2, "is one of the files that the report is made of"),
        (["runs", "-o", "RUN/report.html"], 1, "cannot write"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(tmp_path, monkeypatch, capsys, words, code, line):
    monkeypatch.chdir(tmp_path)
    (path,) = make(tmp_path / "runs", {"a": 0.5}, subjects={"anatomy": 2}, questions=True)
    (tmp_path / "empty").mkdir()
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    named = {"RUN": str(path), "QUESTIONS": str(path).replace(".run.jsonl", "_questions.json")}
    for name, real in named.items():
        words = [word.replace(name, real) for word in words]
    with pytest.raises(SystemExit) as ended:
        run(parser(), main, words)
    assert ended.value.code == code
    told = [own for own in capsys.readouterr().err.splitlines() if not own.startswith("report:")]
    assert len(told) == 1
    assert line in told[0]
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_pictures_in_one_page_do_not_share_ids():
    svg = (
        '<?xml version="1.0"?><!DOCTYPE svg><svg width="10pt" height="5pt" viewBox="0 0 10 5"><metadata>x</metadata>'
        '<defs><style type="text/css">*{color: red}</style><clipPath id="p1"/></defs><!-- "a" -->'
        '<g id="axes" clip-path="url(#p1)"><use xlink:href="#m1"/><path id="m1"/></g></svg>'
    )
    assert inline(svg, "one", 'a "title" <b>') == (
        '<svg role="img" aria-label="a &quot;title&quot; &lt;b&gt;" style="--width: 10pt" viewBox="0 0 10 5">'
        '<defs><clipPath id="one-p1"/></defs>'
        '<g clip-path="url(#one-p1)"><use xlink:href="#one-m1"/><path id="one-m1"/></g></svg>'
    )


@pytest.fixture(scope="module")
def browser():
    """A headless browser, where this machine has one."""
    found = [path for name in BROWSERS if (path := shutil.which(name))]
    if not found:
        pytest.skip("no chromium here")
    return found[0]


def test_a_browser_shows_the_questions_that_the_address_asks_for(several, browser, tmp_path):
    runs, html = several
    (tmp_path / "report.html").write_text(html, encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += f" --disable-component-update --disable-sync --user-data-dir={tmp_path / 'profile'} --dump-dom"
    wanted = "group=mmlu-5-shot&filter=all-wrong&subject=anatomy&open=1"
    address = f"{(tmp_path / 'report.html').as_uri()}#q:{wanted}"
    done = subprocess.run([browser, *flags.split(), address], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    group = groups(runs)[0]
    expected = [
        index
        for subject, index in group.keys
        if subject == "anatomy" and not any(one.records[subject, index]["correct"] for one in group.runs)
    ]
    shown = re.findall(r'<span class="key">anatomy, (\d+)</span>', done.stdout)
    assert list(map(int, shown)) == expected
    assert f"{len(expected)} of 70 questions" in done.stdout
    assert expected
