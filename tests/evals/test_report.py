"""python -m evals.report: it writes one file, reports errors in one line, and embeds plots without shared ids."""

from __future__ import annotations

import pytest

from engine.cli.parser import run
from evals.report import inline_svg, main, parser
from tests.evals.page.html import Page
from tests.evals.synthetic import write_runs
from tests.evals.synthetic_judged import write_judged


def test_the_program_writes_one_file_and_names_it(tmp_path, capsys):
    (path, *_) = write_runs(tmp_path / "runs", {"a": 0.5}, subjects={"anatomy": 3}, questions=True)
    file = path.with_name(path.name.replace(".run.jsonl", "_questions.json"))
    file.write_text(file.read_text().replace("What is", r"\ud800 What is"))  # a lone surrogate, which JSON allows
    (tmp_path / "runs" / "damaged.run.jsonl").write_text("damaged\n")
    output = tmp_path / "new" / "report.html"
    main(parser().parse_args([str(tmp_path / "runs"), "--output", str(output)]))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("skipped: ")
    assert "damaged.run.jsonl" in lines[0]
    assert lines[-1] == f"report: {output}"
    assert "? What is" in Page(output.read_text(encoding="utf-8")).questions["mmlu-5-shot"]["question"][0]


def test_judged_answers_are_found_beside_run_files(tmp_path, capsys):
    write_runs(tmp_path / "results", {"a": 0.5}, subjects={"anatomy": 3})
    for name in ("mt_bench", "other/mt_bench"):
        write_judged(tmp_path / "results" / name, {"a": 5.0}, questions=1)
    output = tmp_path / "report.html"
    main(parser().parse_args([str(tmp_path / "results"), "--output", str(output)]))
    assert capsys.readouterr().err.endswith(f"report: {output}\n")
    parsed = Page(output.read_text(encoding="utf-8"))
    assert list(parsed.questions) == ["mmlu-5-shot", "mt-bench", "mt-bench-3"]
    assert "1 run in 1 group, 2 folders of judged answers" in [text for _, text in parsed.all("p")]
    assert "costs" in parsed.ids


def test_judged_answers_need_no_run_file_and_are_not_overwritten(tmp_path, capsys):
    folder = write_judged(tmp_path / "mt_bench", {"a": 5.0}, questions=1)
    output = tmp_path / "report.html"
    main(parser().parse_args([str(folder), "--output", str(output)]))
    assert list(Page(output.read_text(encoding="utf-8")).questions) == ["mt-bench"]
    for name in ("question.jsonl", "model_answer/a.jsonl", "model_judgment/judge_single.jsonl"):
        before = (folder / name).read_bytes()
        with pytest.raises(SystemExit) as stopped:
            run(parser(), main, [str(folder), "--output", str(folder / name)])
        assert stopped.value.code == 2
        assert "is one of the files that the report is made of" in capsys.readouterr().err.splitlines()[-1]
        assert (folder / name).read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 1, "no such file or folder: results"),
        (["empty"], 1, "no run files"),
        (["runs", "-o", "empty"], 2, "--output empty is a folder; name a file, such as empty/report.html"),
        (["runs", "-o", "RUN"], 2, "is one of the files that the report is made of"),
        (["runs", "-o", "QUESTIONS"], 2, "is one of the files that the report is made of"),
        (["runs", "-o", "RUN/report.html"], 1, "cannot write"),
    ],
)
def test_errors_are_one_line_and_change_no_file(tmp_path, monkeypatch, capsys, arguments, status, message):
    monkeypatch.chdir(tmp_path)
    (path,) = write_runs(tmp_path / "runs", {"a": 0.5}, subjects={"anatomy": 2}, questions=True)
    (tmp_path / "empty").mkdir()
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    names = {"RUN": str(path), "QUESTIONS": str(path).replace(".run.jsonl", "_questions.json")}
    for name, real in names.items():
        arguments = [argument.replace(name, real) for argument in arguments]
    with pytest.raises(SystemExit) as stopped:
        run(parser(), main, arguments)
    assert stopped.value.code == status
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("report:")]
    assert len(lines) == 1
    assert message in lines[0]
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_embedded_plots_do_not_share_ids():
    svg = (
        '<?xml version="1.0"?><!DOCTYPE svg><svg width="10pt" height="5pt" viewBox="0 0 10 5"><metadata>x</metadata>'
        '<defs><style type="text/css">*{color: red}</style><clipPath id="p1"/></defs><!-- "a" -->'
        '<g id="axes" clip-path="url(#p1)"><use xlink:href="#m1"/><path id="m1"/></g></svg>'
    )
    assert inline_svg(svg, "one", 'a "title" <b>') == (
        '<svg role="img" aria-label="a &quot;title&quot; &lt;b&gt;" style="--width: 10pt" viewBox="0 0 10 5">'
        '<defs><clipPath id="one-p1"/></defs>'
        '<g clip-path="url(#one-p1)"><use xlink:href="#one-m1"/><path id="one-m1"/></g></svg>'
    )
