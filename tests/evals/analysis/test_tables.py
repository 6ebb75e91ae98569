"""Text tables: they fit narrow terminals, and the hardest questions show what was answered."""

from __future__ import annotations

import io

from rich.console import Console

from evals.analysis.comparison import compare
from evals.analysis.tables import escape_markdown, hardest_lines, models, shorten, split_to_width, text_tables
from evals.data.subjects import GROUPS
from tests.evals.synthetic import load_group, write_and_load, write_runs

THREE = {"owner/small": 0.35, "middle": 0.5, "large": 0.7}
ALL_SUBJECTS = {subject: 7 for members in GROUPS.values() for subject in members}


def test_tables_of_many_models_fit_a_narrow_terminal(tmp_path):
    names = {f"an-owner-with-a-long-name/a-model-with-a-long-name-{n}": 0.3 + n / 15 for n in range(8)}
    comparison = compare(write_and_load(tmp_path, names, subjects=ALL_SUBJECTS), 200)
    for table in text_tables(comparison):
        for width in (80, 60):
            console = Console(file=io.StringIO(), width=width)
            for part in split_to_width(table, console):
                console.print(part)
            lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
            assert max(map(len, lines)) <= width
            output = " ".join(lines)
            assert "…" not in output
            assert all(cell in output for row in table.rows for cell in row[1:])
        console = Console(file=io.StringIO(), width=10_000)
        assert len(split_to_width(table, console)) == 1


def test_the_plain_run_is_listed_above_its_weight_formats(tmp_path):
    for quant in ("int4", "int8", "none"):
        write_runs(tmp_path, {"b": 0.5, "a": 0.5}, quant=quant)
    rows = models(compare(load_group(tmp_path), 200)).rows
    assert [row[0] for row in rows] == ["1 a", "2 a int8", "3 a int4", "4 b", "5 b int8", "6 b int4"]


def test_generated_answers_have_no_tables_of_choices(tmp_path):
    group = write_and_load(tmp_path, THREE, "squad", questions=True, subjects={"squad": 200})
    comparison = compare(group, 500, hardest=1)
    tables = text_tables(comparison)
    assert [table.title for table in tables][-1] == "Mistakes in common"
    assert "choice" not in str(tables[-1].heads)
    (line,) = hardest_lines(comparison)
    assert "What is asked in squad as number" in line
    assert "Answered: “" in line


def test_the_hardest_questions_show_the_right_and_the_given_answers(tmp_path):
    comparison = compare(write_and_load(tmp_path, THREE, questions=True), 200, hardest=100)
    lines = hardest_lines(comparison)
    assert len(lines) == sum(comparison.misses.observed[1:])
    for question, line in zip(comparison.hardest, lines, strict=True):
        subject, index = question.key
        records = [run.records[question.key] for run in comparison.group.runs]
        by = "all 3" if question.missed == 3 else f"{question.missed} of 3"
        assert line.startswith(
            f"{subject} {index}, missed by {by}. What is asked in {subject} as number {index}? Right: "
        )
        gold = records[0]["gold"]
        assert f"Right: {'ABCD'[gold]} “answer {gold} to {subject} {index}”. Answered: " in line
        assert line.count("(right)") == (question.missed < 3)
        answers = line.rpartition("Answered: ")[2].rstrip(".").split("; ")
        for number, record in enumerate(records, 1):
            (answer,) = [part for part in answers if part.startswith("ABCD"[record["prediction"]])]
            assert str(number) in answer.rpartition(" by ")[2]


def test_long_texts_are_cut_to_one_line():
    assert shorten("a\n  b\tc", 10) == "a b c"
    assert shorten("word " * 100, 20) == "word word word word…"
    assert len(shorten("x" * 300, 200)) == 200


def test_markdown_characters_are_escaped():
    assert escape_markdown("a_b <i> $x$ `#`") == "a\\_b \\<i> \\$x\\$ \\`\\#\\`"
