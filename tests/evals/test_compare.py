"""python -m evals.compare: what it prints and writes, and one line for what cannot be compared."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from engine.cli.parser import run
from engine.runtime.errors import BareloopError, UsageError
from evals.analysis.comparison import compare
from evals.analysis.findings import findings
from evals.analysis.tables import NO_TEXTS, text_tables
from evals.compare import as_json, main, parser
from evals.data.subjects import GROUPS
from tests.evals.synthetic import load_group, write_runs

THREE = {"owner/small": 0.35, "middle": 0.5, "large": 0.7}
ALL_SUBJECTS = {subject: 7 for members in GROUPS.values() for subject in members}
RUN_NAME = "mmlu_5shot_cpu_float32_none"


def program(*arguments: object) -> None:
    main(parser().parse_args([str(argument) for argument in arguments]))


def test_the_findings_come_first_then_all_tables(tmp_path, capsys):
    write_runs(tmp_path, THREE, subjects={"anatomy": 150, "astronomy": 150}, shared=0.6, questions=True)
    program(tmp_path, "--hardest", 3, "--permutations", 500)
    output = capsys.readouterr()
    assert output.err == ""
    title, random, same, separating, *rest = output.out.splitlines()
    assert title == "MMLU, 5-shot"
    comparison = compare(load_group(tmp_path), 500)
    answers = list(zip(*comparison.group.correct, strict=True))
    missed_by_all, missed_by_none = sum(not any(row) for row in answers), sum(all(row) for row in answers)
    assert random.startswith(
        f"Are the mistakes random? No. All 3 models miss {missed_by_all} of 300 questions, and {missed_by_none} are "
        "missed by none. If the mistakes were independent, these numbers would be "
        f"{comparison.misses.expected[3]:.0f} ("
    )
    assert (
        "The models miss the same questions more often than by chance (permutation test: p = 0.004). This also holds "
        "within subjects" in random
    )
    assert same.startswith(
        "Do the models miss the same questions? Yes, more often than by chance. The most similar pair is "
    )
    assert "they make the same wrong choice in" in same
    assert "preferences for letters alone" in same
    assert separating.startswith(
        "Which subjects separate the models? 2 of 2 (Cochran's Q test, corrected for 2 subjects: p < 0.05): "
    )
    assert "(owner/small) to " in separating
    titles = {table.title for table in text_tables(comparison)} | {"Hardest questions"}
    assert [line for line in rest if line in titles] == [
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


def test_the_same_seed_gives_the_same_output(tmp_path, capsys):
    write_runs(tmp_path, THREE)
    outputs = []
    for seed in (1, 1, 2):
        program(tmp_path, "--seed", seed, "--permutations", 200, "--json", tmp_path / "output.json")
        outputs.append((tmp_path / "output.json").read_text().replace('"seed": 2', '"seed": 1'))
    assert outputs[0] == outputs[1] != outputs[2]


def test_json_holds_all_numbers(tmp_path, capsys):
    write_runs(tmp_path / "runs", THREE)
    write_runs(tmp_path / "runs", {"middle": 1.0, "large": 1.0}, "squad")
    program(tmp_path / "runs", "--json", tmp_path / "output.json")
    content = json.loads((tmp_path / "output.json").read_text())
    mmlu, squad = content["groups"]
    assert (content["permutations"], content["seed"]) == (10_000, 0)
    assert [entry["label"] for entry in mmlu["runs"]] == ["large", "middle", "owner/small"]
    comparison = compare(load_group(tmp_path / "runs", "MMLU"))
    assert mmlu == json.loads(json.dumps(as_json(comparison)))
    assert mmlu["misses"]["observed"] == comparison.misses.observed
    assert mmlu["overall"][1]["right"] == sum(comparison.group.correct[1])
    assert mmlu["paired"][2]["p_corrected"] >= mmlu["paired"][2]["p"] == comparison.paired[2].p
    assert [row["p_corrected"] for row in mmlu["subjects"]] == comparison.corrected
    assert mmlu["words"] == findings(comparison)
    assert len(mmlu["hardest"]) == 10
    assert squad["overlaps"][0]["jaccard"] is None
    assert squad["calibration"] == squad["choice_bias"] == squad["hardest"] == []


def test_json_keys_are_those_of_earlier_versions(tmp_path):
    write_runs(tmp_path, THREE)
    content = as_json(compare(load_group(tmp_path), 200))
    rows = {name: set(content[name][0]) for name in ("overall", "subjects", "paired", "overlaps", "hardest")}
    assert rows == {
        "overall": {"right", "n", "low", "high"},
        "subjects": {"subject", "rates", "p", "p_corrected"},
        "paired": {
            "first", "second", "only_first", "only_second", "difference", "low", "high", "p", "p_corrected",
        },
        "overlaps": {
            "first", "second", "both_wrong", "jaccard", "expected_jaccard", "kappa", "same_choice", "expected_same",
        },
        "hardest": {"key", "missed", "margin"},
    }  # fmt: skip
    assert set(content["misses"]) == {
        "observed", "expected", "low", "high", "p", "p_within", "excess", "excess_within",
    }  # fmt: skip
    assert set(content["calibration"][0]) == {"run", "bins", "ece", "confidence", "accuracy"}
    assert set(content["choice_bias"][0]) == {"run", "chosen", "right", "p"}
    assert {"title", "task", "questions", "words", "notes", "alike"} <= set(content)


def test_markdown_has_the_findings_and_the_tables(tmp_path, capsys):
    write_runs(tmp_path / "runs", THREE, questions=True)
    program(tmp_path / "runs", "--markdown", tmp_path / "output.md", "--hardest", 2)
    text = (tmp_path / "output.md").read_text()
    assert text.startswith("# MMLU, 5-shot\n\nAre the mistakes random? ")
    assert "\n## Accuracy by subject\n\n| subject (questions) | model 1 | model 2 | model 3 | p |\n| --- | -" in text
    assert "| overall (70) | " in text
    assert "\n| 1 & 2 | " in text
    assert "\n## Hardest questions\n\n1. a" in text
    assert "answer 1 to a" in text


def test_a_benchmark_with_unpooled_subjects_is_compared_by_subject(tmp_path, capsys):
    write_runs(tmp_path, {"one": 0.4, "two": 0.6}, "truthfulqa", questions=True)
    program(tmp_path, "--permutations", 200)
    output = capsys.readouterr().out
    assert output.count("Are the mistakes random?") == 2
    assert "overall" not in output
    assert "positions among the choices alone" in output
    assert "Right: choice " in output
    assert " or choice " in output


def test_a_pipe_gets_every_row_on_one_line(tmp_path, capsys):
    write_runs(tmp_path, {f"model-{number}": 0.3 + number / 15 for number in range(8)}, subjects=ALL_SUBJECTS)
    program(tmp_path, "--permutations", 100)
    output = capsys.readouterr().out
    (line,) = [line for line in output.splitlines() if line.startswith("high_school_government_and_politics (7)")]
    assert line.count("(") == 9
    assert output.count("\n1 & 2 ") == 2
    assert "model 8" in output


def test_without_texts_the_flag_that_saves_them_is_named(tmp_path, capsys):
    write_runs(tmp_path, THREE)
    program(tmp_path, "--hardest", 2, "--permutations", 100)
    assert NO_TEXTS in capsys.readouterr().out
    assert "--save-question-data" in NO_TEXTS
    program(tmp_path, "--hardest", 0, "--permutations", 100)
    output = capsys.readouterr().out
    assert NO_TEXTS not in output
    assert "Hardest" not in output


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["nowhere"], BareloopError, "no such file or folder: nowhere"),
        (["empty"], BareloopError, r"no run files .* in empty"),
        (["one"], UsageError, "a comparison needs 2 runs of one benchmark"),
        (["one", "other"], BareloopError, "one/.* and other/.* were scored on different data"),
        (["torn.run.jsonl"], BareloopError, "torn.run.jsonl, line 1 is not a record of a run"),
        (["blank.run.jsonl"], BareloopError, "blank.run.jsonl is empty"),
        (["both", "--permutations", "99"], UsageError, "--permutations 99: use 100 to 1,000,000"),
        (["both", "--seed", "-1"], UsageError, "--seed -1: use 0 or more"),
        (["both", "--hardest", "-1"], UsageError, "--hardest -1: use 0 or more"),
        (["both", "--json", "both"], BareloopError, "cannot write both: "),
        (["both", "--json", f"both/a/{RUN_NAME}.run.jsonl"], UsageError, "is one of the compared files; name another"),
        (["both", "--markdown", f"both/a/{RUN_NAME}_questions.json"], UsageError, "name another"),
    ],
)
def test_errors_are_one_line_and_change_no_file(tmp_path, monkeypatch, capsys, arguments, error, message):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("empty/notes.txt").write_text("hello")
    Path("torn.run.jsonl").write_text('{"format": 1}}\n')
    Path("blank.run.jsonl").write_text("")
    write_runs(Path("one"), {"a": 0.5}, subjects={"law": 3})
    write_runs(Path("other"), {"b": 0.5}, subjects={"law": 3}, data="e")
    write_runs(Path("both"), {"a": 0.5, "b": 0.6}, subjects={"law": 12})
    before = {path: path.read_bytes() for path in Path("both").rglob("*.*")}
    with pytest.raises(error, match=message):
        program(*arguments)
    assert {path: path.read_bytes() for path in Path("both").rglob("*.*")} == before


def test_other_files_of_a_folder_are_ignored_and_single_runs_reported(tmp_path, capsys):
    write_runs(tmp_path, {"one": 0.5, "two": 0.6})
    write_runs(tmp_path, {"one": 0.5}, "gsm8k")
    (tmp_path / "one" / "samples_mmlu.jsonl").write_text("hello")
    (tmp_path / "two" / "torn.run.jsonl").write_text("")
    (tmp_path / "one" / f"{RUN_NAME}_questions.json").write_text("{")
    program(tmp_path, "--permutations", 100)
    output = capsys.readouterr()
    assert output.out.startswith("MMLU, 5-shot\n")
    assert [line.partition(": ")[0] for line in output.err.splitlines()] == ["skipped"] * 3
    assert "torn.run.jsonl is empty" in output.err
    assert "gsm8k_5shot_cpu_float32_none.run.jsonl: there is no other run of its benchmark in its setting" in output.err


def test_an_error_exits_with_status_1_and_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        run(parser(), main, [])
    assert stopped.value.code == 1
    assert capsys.readouterr().err == "python -m evals.compare: no such file or folder: results\n"


def test_help_loads_neither_numpy_nor_rich_nor_torch():
    code = "import sys, evals.compare; evals.compare.parser(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "rich", "torch"} & set(done.stdout.split())
