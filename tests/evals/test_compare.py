"""The comparison: words that stay right, tables that stay readable, one line for what cannot be compared."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from engine.cli.parser import run
from engine.runtime.errors import BareloopError, UsageError
from evals.analysis.comparison import Comparison, compare
from evals.analysis.findings import count, listed, notes, number, p_words, words
from evals.analysis.tables import NO_TEXTS, escaped, fitted, hard_lines, markdown, sheets, short
from evals.compare import as_json, main, parser
from evals.data.subjects import GROUPS
from evals.runs import collection as runs
from evals.runs.collection import Group, parts
from tests.evals.synthetic import make

THREE = {"owner/small": 0.35, "middle": 0.5, "large": 0.7}
ALL = {subject: 7 for members in GROUPS.values() for subject in members}


def read(folder: Path, title: str = "") -> Group:
    """The one group, or the one of this title, of a folder's run files."""
    return next(own for own in runs.groups(runs.load([str(folder)])) if title in own.title)


def told(folder: Path, *args: object, permutations: int = 1_000, **kwargs: object) -> list[str]:
    """The words on synthetic runs."""
    make(folder, *args, **kwargs)  # type: ignore[arg-type]
    return words(compare(read(folder), permutations))


def with_answers(group: Group, *answers: str) -> Comparison:
    """A comparison of runs whose answers are these: + is right, - is wrong."""
    made = []
    for own, letters in zip(group.runs, answers, strict=True):
        records = {
            key: {**own.records[key], "correct": letter == "+", "prediction": "yes" if letter == "+" else "no"}
            for key, letter in zip(group.keys, letters, strict=True)
        }
        made.append(replace(own, records=records))
    return compare(replace(group, runs=made), 1_000)


@pytest.fixture
def written(tmp_path) -> Group:
    """Two runs of forty questions of one subject, in the models' own words."""
    make(tmp_path, {"one": 0.5, "two": 0.5}, "gsm8k")
    return read(tmp_path)


def program(*arguments: object) -> None:
    main(parser().parse_args([str(argument) for argument in arguments]))


def test_the_program_answers_first_and_shows_all_tables(tmp_path, capsys):
    make(tmp_path, THREE, subjects={"anatomy": 150, "astronomy": 150}, shared=0.6, questions=True)
    program(tmp_path, "--hardest", 3, "--permutations", 500)
    output = capsys.readouterr()
    assert output.err == ""
    title, random, same, dividing, *rest = output.out.splitlines()
    assert title == "MMLU, 5-shot"
    own = compare(read(tmp_path), 500)
    answers = list(zip(*own.group.correct, strict=True))
    all_miss, none = sum(not any(row) for row in answers), sum(all(row) for row in answers)
    assert random.startswith(
        f"Are these mistakes random? No. All 3 models miss {all_miss} of 300 questions, and {none} are missed by none; "
        f"if their mistakes were independent it would be {own.misses.expected[3]:.0f} ("
    )
    assert "on the same questions more than chance has it (permutation test: p = 0.004). So they do within" in random
    assert same.startswith("Do the models miss the same questions? Yes, more than by chance. Most alike are ")
    assert "they make the same wrong choice in" in same
    assert "preferences for letters alone" in same
    assert dividing.startswith("Which subjects divide them? 2 of 2 (Cochran's Q test, corrected for 2 subjects: p < 0")
    assert "(owner/small) to " in dividing
    assert [line for line in rest if line in {sheet.title for sheet in sheets(own)} | {"Hardest questions"}] == [
        "Models, on 300 questions",
        "Accuracy by subject",
        "Differences",
        "Questions by how many models miss them",
        "Mistakes in common",
        "Letters chosen, %",
        "Calibration",
        "Hardest questions",
    ]
    assert sum(line.startswith(("1. ", "2. ", "3. ", "4. ")) for line in rest) == 3
    assert NO_TEXTS not in output.out


def test_the_same_seed_tells_the_same(tmp_path, capsys):
    make(tmp_path, THREE)
    outputs = []
    for seed in (1, 1, 2):
        program(tmp_path, "--seed", seed, "--permutations", 200, "--json", tmp_path / "told.json")
        outputs.append((tmp_path / "told.json").read_text().replace('"seed": 2', '"seed": 1'))
    assert outputs[0] == outputs[1] != outputs[2]


def test_all_numbers_are_written_as_json(tmp_path, capsys):
    make(tmp_path / "runs", THREE)
    make(tmp_path / "runs", {"middle": 1.0, "large": 1.0}, "squad")
    program(tmp_path / "runs", "--json", tmp_path / "told.json")
    told = json.loads((tmp_path / "told.json").read_text())
    mmlu, squad = told["groups"]
    assert (told["permutations"], told["seed"]) == (10_000, 0)
    assert [own["label"] for own in mmlu["runs"]] == ["large", "middle", "owner/small"]
    own = compare(read(tmp_path / "runs", "MMLU"))
    assert mmlu == json.loads(json.dumps(as_json(own)))
    assert mmlu["misses"]["observed"] == own.misses.observed
    assert mmlu["overall"][1]["right"] == sum(own.group.correct[1])
    assert mmlu["paired"][2]["p_corrected"] >= mmlu["paired"][2]["p"] == own.paired[2].p
    assert [row["p_corrected"] for row in mmlu["subjects"]] == own.corrected
    assert mmlu["words"] == words(own)
    assert len(mmlu["hardest"]) == 10
    assert squad["overlaps"][0]["jaccard"] is None
    assert squad["calibration"] == squad["choice_bias"] == squad["hardest"] == []


def test_markdown_has_the_words_and_the_tables(tmp_path, capsys):
    make(tmp_path / "runs", THREE, questions=True)
    program(tmp_path / "runs", "--markdown", tmp_path / "told.md", "--hardest", 2)
    text = (tmp_path / "told.md").read_text()
    assert text.startswith("# MMLU, 5-shot\n\nAre these mistakes random? ")
    assert "\n## Accuracy by subject\n\n| subject (questions) | model 1 | model 2 | model 3 | p |\n| --- | -" in text
    assert "| overall (70) | " in text
    assert "\n| 1 & 2 | " in text
    assert "\n## Hardest questions\n\n1. anatomy " in text or "\n## Hardest questions\n\n1. astronomy " in text
    assert "answer 1 to a" in text
    assert escaped("a_b <i> $x$ `#`") == "a\\_b \\<i> \\$x\\$ \\`\\#\\`"


def test_independent_mistakes_are_not_told_from_random_ones(tmp_path):
    random, same, dividing = told(tmp_path, {"one": 0.6, "two": 0.6}, subjects={"a": 200, "b": 200}, shared=0.0)
    assert random.startswith("Are these mistakes random? It cannot be told. Both models miss ")
    assert "That may be chance (permutation test: p = 0." in random
    assert "tell little" not in random
    assert same.startswith("Do the models miss the same questions? Whether more than by chance cannot be told. Of the ")
    assert "None can be named: in none do the models differ by more than chance may have it (McNemar's test" in dividing


def test_few_questions_are_said_to_tell_little(tmp_path):
    random, _, dividing = told(tmp_path, {"one": 0.5, "two": 0.6}, subjects={"law": 8}, shared=0.3)
    assert "It cannot be told. " in random
    assert random.endswith("; 8 questions tell little.")
    assert "There is one, law, and whether it does cannot be told: from " in dividing


def test_mistakes_that_subjects_explain_are_laid_on_them(tmp_path):
    rates = {"hard": 0.2, "easy": 0.9}
    random, *_ = told(tmp_path, dict.fromkeys("abc", rates), subjects={"hard": 150, "easy": 150}, shared=0.0)
    assert "No. All 3 models miss " in random
    assert "Within the subjects that cannot be told (p = " in random
    assert random.endswith("): it may be that only some subjects are harder than others.")


def test_mistakes_on_different_questions_are_told(written):
    half = "+" * 20 + "-" * 20
    random, same, dividing = words(with_answers(written, half, half[::-1]))
    assert "No. Both models miss 0 of 40 questions, and 0 are missed by none; if" in random
    assert "it would be 10 (7 to 13 in 95 % of all shuffles)" in random
    assert "They fall on different questions more than chance has it (permutation test: p = 0.002)." in random
    assert "? No, less than by chance. Of the questions that one or two misses, both miss 0.0 % (by chance 33" in same
    assert dividing.endswith("None: in the one subject, gsm8k, all models are right equally often.")


@pytest.mark.parametrize(
    ("first", "second", "random", "within", "same"),
    [  # of a subject each: questions that both miss, that one misses, that two misses, that none misses
        ((20, 0, 0, 20), (10, 10, 10, 10), "No. ", "So they do within the subjects (p = 0.002)", "Yes, more than by"),
        (
            (10, 10, 10, 10),
            (0, 0, 0, 40),
            "No. ",
            "Within the subjects that cannot be told (p = 1.00)",
            "Yes, more than",
        ),
        (
            (10, 18, 0, 12),
            (10, 0, 18, 12),
            "Not within",
            "But within the subjects they fall on the same",
            "Within the s",
        ),
        (
            (2, 18, 16, 4),
            (0, 2, 1, 37),
            "Not within",
            "Within the subjects they fall on different",
            "Within the subjects",
        ),
        ((0, 20, 20, 0), (0, 0, 0, 40), "No. ", "Within the subjects they fall on different", "No, less than by"),
    ],
)
def test_what_subjects_explain_is_told_from_what_they_hide(tmp_path, first, second, random, within, same):
    make(tmp_path, {"one": 0.5, "two": 0.5}, subjects={"a": 40, "b": 40})
    one, two = (
        "".join(letter * times for own in (first, second) for letter, times in zip(letters, own, strict=True))
        for letters in ("--++", "-+-+")
    )
    said = words(with_answers(read(tmp_path), one, two))
    assert f"random? {random}" in said[0]
    assert within in said[0]
    assert f"same questions? {same}" in said[1]


@pytest.mark.parametrize(
    ("answers", "random", "dividing"),
    [
        (("+" * 40, "+" * 40), "There are no mistakes: both models are right on all 40 questions.", "None: in the one"),
        (("-" * 40, "-" * 40), "It cannot be told: both models miss all 40 questions.", "None: in the one subject"),
        (
            ("+" * 40, "-" * 40),
            "It cannot be told: it takes two models with right and wrong answers, and no model has both.",
            "There is one, gsm8k, and it does: from 0.0 % (two) to 100.0 % (one); McNemar's test: p < 0.001.",
        ),
        (
            ("+-" * 20, "-" * 40),
            "It cannot be told: it takes two models with right and wrong answers, and only one has both.",
            "There is one, gsm8k, and it does: from 0.0 % (two) to 50.0 % (one)",
        ),
    ],
)
def test_where_nothing_varies_nothing_is_claimed(written, answers, random, dividing):
    said = words(with_answers(written, *answers))
    assert said[0] == f"Are these mistakes random? {random}"
    assert said[1] == f"Do the models miss the same questions? {random}"
    assert said[2].startswith(f"Which subjects divide them? {dividing}")


def test_one_question_is_no_plural(written):
    own = replace(written, keys=written.keys[:1])
    assert "both models are right on the one question." in words(with_answers(own, "+", "+"))[0]
    assert "Models, on 1 question" in markdown(with_answers(own, "+", "-"))


def test_one_run_scored_twice_is_noticed(tmp_path):
    make(tmp_path / "a", {"same": 0.5})
    make(tmp_path / "b", {"same": 0.5})
    own = compare(read(tmp_path), 1_000)
    random, same, dividing = words(own)
    assert own.alike == [(0, 1)]
    assert "No. Both models miss " in random
    labels = listed([run.label for run in own.group.runs])
    assert "both miss 100.0 %" in same
    assert same.endswith(f"answer to every question is given by {labels}: perhaps it is one model, scored twice.")
    assert dividing.endswith("None: in each of the 2 subjects all models are right equally often.")


def test_answers_in_words_are_not_called_choices(tmp_path):
    said = told(tmp_path, THREE, "squad", questions=True, subjects={"squad": 200})
    assert not any("choice" in line or "letter" in line for line in said)
    own = compare(read(tmp_path), 500, hardest=1)
    assert [sheet.title for sheet in sheets(own)][-1] == "Mistakes in common"
    assert "choice" not in str(sheets(own)[-1].heads)
    (line,) = hard_lines(own)
    assert "What is asked in squad as number" in line
    assert "Answered: “" in line


def test_the_subjects_that_divide_are_named_widest_first(tmp_path):
    sizes = dict.fromkeys("abcdefgh", 80) | {"like": 80}
    low = {name: 0.5 - place / 20 for place, name in enumerate("abcdefgh")} | {"like": 0.6}
    make(tmp_path, {"low": low, "high": {**dict.fromkeys("abcdefgh", 0.95), "like": 0.6}}, subjects=sizes)
    own = compare(read(tmp_path), 200)
    *_, dividing = words(own)
    assert "8 of 9 (McNemar's test, corrected for 9 subjects: p < 0.05): " in dividing
    assert dividing.count("from ") == 6
    assert "; and 3 more. Over all subjects it is from " in dividing
    found = sorted((row for row in own.subjects if row.subject != "like"), key=lambda row: -row.spread)
    assert f"p < 0.05): {found[0].subject}, from " in dividing


def test_a_benchmark_that_is_no_whole_is_compared_part_by_part(tmp_path, capsys):
    make(tmp_path, {"one": 0.4, "two": 0.6}, "truthfulqa", questions=True)
    first, second = parts(read(tmp_path))
    assert (first.title, second.title) == ("TruthfulQA, 0-shot: mc1", "TruthfulQA, 0-shot: mc2")
    assert [len(own.keys) for own in (first, second)] == [30, 30]
    assert notes(compare(first, 200)) == []
    program(tmp_path)
    output = capsys.readouterr().out
    assert output.count("Are these mistakes random?") == 2
    assert "overall" not in output
    assert "places among the choices alone" in output
    assert "Right: choice " in output
    assert " or choice " in output
    make(tmp_path / "more", {"one": 0.4, "two": 0.6}, "arc")
    (whole,) = parts(read(tmp_path / "more"))
    assert whole.subjects == ["challenge", "easy"]


def test_questions_that_not_all_answered_are_left_out_and_counted(tmp_path):
    make(tmp_path, {"one": 0.5}, subjects={"a": 10, "b": 5})
    make(tmp_path, {"two": 0.5}, subjects={"a": 9})
    own = compare(read(tmp_path), 200)
    assert len(own.group.keys) == 9
    assert notes(own) == ["one answered 6 more questions, which not all models did: left out here."]
    assert notes(own)[0] in markdown(own)


def test_a_single_run_has_numbers_and_no_words(tmp_path):
    make(tmp_path, {"one": 0.5})
    own = compare(read(tmp_path), 200)
    assert words(own) == []
    assert own.paired == own.overlaps == own.alike == []
    assert len(own.calibration) == len(own.choice_bias) == len(own.overall) == 1


def test_tables_of_many_models_fit_a_narrow_terminal(tmp_path):
    names = {f"an-owner-with-a-long-name/a-model-with-a-long-name-{place}": 0.3 + place / 15 for place in range(8)}
    make(tmp_path, names, subjects=ALL)
    own = compare(read(tmp_path), 200)
    for sheet in sheets(own):
        for width in (80, 60):
            console = Console(file=io.StringIO(), width=width)
            for table in fitted(sheet, console):
                console.print(table)
            lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
            assert max(map(len, lines)) <= width
            shown = " ".join(lines)
            assert "…" not in shown
            assert all(cell in shown for row in sheet.rows for cell in row[1:])
        console = Console(file=io.StringIO(), width=10_000)
        assert len(fitted(sheet, console)) == 1


def test_a_pipe_gets_every_row_on_one_line(tmp_path, capsys):
    make(tmp_path, {f"model-{place}": 0.3 + place / 15 for place in range(8)}, subjects=ALL)
    program(tmp_path, "--permutations", 100)
    output = capsys.readouterr().out
    (line,) = [line for line in output.splitlines() if line.startswith("high_school_government_and_politics (7)")]
    assert line.count("(") == 9
    assert output.count("\n1 & 2 ") == 2
    assert "model 8" in output


def test_hard_questions_show_what_was_answered(tmp_path):
    make(tmp_path, THREE, questions=True)
    own = compare(read(tmp_path), 200, hardest=100)
    lines = hard_lines(own)
    assert len(lines) == sum(own.misses.observed[1:])
    for one, line in zip(own.hardest, lines, strict=True):
        subject, index = one.key
        gold = own.group.runs[0].records[one.key]["gold"]
        by = "all 3" if one.missed == 3 else f"{one.missed} of 3"
        assert line.startswith(
            f"{subject} {index}, missed by {by}. What is asked in {subject} as number {index}? Right: "
        )
        assert f"Right: {'ABCD'[gold]} “answer {gold} to {subject} {index}”. Answered: " in line
        assert line.count("(right)") == (one.missed < 3)
        for place, run_ in enumerate(own.group.runs, 1):
            answer = "ABCD"[run_.records[one.key]["prediction"]]
            assert any(part.startswith(answer) and str(place) in part.rpartition(" by ")[2] for part in
                       line.rpartition("Answered: ")[2].rstrip(".").split("; "))  # fmt: skip


def test_without_texts_the_flag_that_saves_them_is_named(tmp_path, capsys):
    make(tmp_path, THREE)
    program(tmp_path, "--hardest", 2)
    assert NO_TEXTS in capsys.readouterr().out
    assert "--save-question-data" in NO_TEXTS
    program(tmp_path, "--hardest", 0)
    output = capsys.readouterr().out
    assert NO_TEXTS not in output
    assert "Hardest" not in output


def test_long_texts_are_cut_to_one_line():
    assert short("a\n  b\tc", 10) == "a b c"
    assert short("word " * 100, 20) == "word word word word…"
    assert len(short("x" * 300, 200)) == 200


def test_numbers_are_short():
    assert [p_words(p) for p in (0.0, 0.0009, 0.001, 0.0496, 0.25, 1.0)] == [
        "p < 0.001", "p < 0.001", "p = 0.001", "p = 0.050", "p = 0.25", "p = 1.00",
    ]  # fmt: skip
    assert [number(value) for value in (0.04, 9.94, 12.4, 12_345.6)] == ["0.0", "9.9", "12", "12,346"]
    assert [count(things, "question") for things in (0, 1, 1_234)] == ["0 questions", "1 question", "1,234 questions"]
    assert [listed(["a", "b", "c"][:most]) for most in (1, 2, 3)] == ["a", "a and b", "a, b and c"]


@pytest.mark.parametrize(
    ("arguments", "error", "line"),
    [
        (["nowhere"], BareloopError, "no such file or folder: nowhere"),
        (["empty"], BareloopError, r"no run files .* in empty"),
        (["one"], UsageError, "a comparison needs 2 runs of one benchmark"),
        (["one", "other"], BareloopError, "one/.* and other/.* were scored on different data"),
        (["torn.run.jsonl"], BareloopError, "torn.run.jsonl, line 1 is no record of a run"),
        (["blank.run.jsonl"], BareloopError, "blank.run.jsonl is empty"),
        (["both", "--permutations", "99"], UsageError, "--permutations 99: use 100 to 1,000,000"),
        (["both", "--seed", "-1"], UsageError, "--seed -1: use 0 or more"),
        (["both", "--hardest", "-1"], UsageError, "--hardest -1: use 0 or more"),
        (["both", "--json", "both"], BareloopError, "cannot write both: "),
        (["both", "--json", "both/a/mmlu_5shot_cpu_float32_none.run.jsonl"], UsageError, "one of the files that are"),
        (["both", "--markdown", "both/a/mmlu_5shot_cpu_float32_none_questions.json"], UsageError, "name another"),
    ],
)
def test_what_cannot_be_compared_is_one_line(tmp_path, monkeypatch, capsys, arguments, error, line):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("empty/notes.txt").write_text("hello")
    Path("torn.run.jsonl").write_text('{"format": 1}}\n')
    Path("blank.run.jsonl").write_text("")
    make(Path("one"), {"a": 0.5})
    make(Path("other"), {"b": 0.5}, data="e")
    make(Path("both"), {"a": 0.5, "b": 0.6}, subjects={"law": 12})
    before = {path: path.read_bytes() for path in Path("both").rglob("*.*")}
    with pytest.raises(error, match=line):
        program(*arguments)
    assert {path: path.read_bytes() for path in Path("both").rglob("*.*")} == before


def test_a_folder_s_other_files_are_passed_over_and_single_runs_named(tmp_path, capsys):
    make(tmp_path, {"one": 0.5, "two": 0.6})
    make(tmp_path, {"one": 0.5}, "gsm8k")
    (tmp_path / "one" / "samples_mmlu.jsonl").write_text("hello")
    (tmp_path / "two" / "torn.run.jsonl").write_text("")
    (tmp_path / "one" / "mmlu_5shot_cpu_float32_none_questions.json").write_text("{")
    program(tmp_path)
    output = capsys.readouterr()
    assert output.out.startswith("MMLU, 5-shot\n")
    assert [line.partition(": ")[0] for line in output.err.splitlines()] == ["left out"] * 3
    assert "torn.run.jsonl is empty" in output.err
    assert "gsm8k_5shot_cpu_float32_none.run.jsonl: there is no other run of its benchmark in its setting" in output.err


def test_exit_codes_and_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        run(parser(), main, [])
    assert stopped.value.code == 1
    assert capsys.readouterr().err == "python -m evals.compare: no such file or folder: results\n"


def test_help_is_instant_for_it_loads_nothing_heavy():
    code = "import sys, evals.compare; evals.compare.parser(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "rich", "torch"} & set(done.stdout.split())
