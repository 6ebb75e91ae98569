"""Findings as sentences: they hold for few questions, for extreme results, and with and without subjects."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from engine.runtime.wording import plural
from evals.analysis.comparison import Comparison, compare
from evals.analysis.findings import expected_count, findings, notes, p_text
from evals.analysis.tables import markdown
from evals.runs.collection import Group, split_unpooled
from tests.evals.synthetic import load_group, write_and_load, write_runs


def findings_of(folder: Path, *args: object, **kwargs: object) -> list[str]:
    """Return the findings on synthetic runs."""
    return findings(compare(write_and_load(folder, *args, **kwargs), 1_000))


def with_answers(group: Group, *answers: str) -> Comparison:
    """Replace the answers of each run, one letter per question: + is right, - is wrong."""
    runs = []
    for run, letters in zip(group.runs, answers, strict=True):
        records = {
            key: {**run.records[key], "correct": letter == "+", "prediction": "yes" if letter == "+" else "no"}
            for key, letter in zip(group.keys, letters, strict=True)
        }
        runs.append(replace(run, records=records))
    return compare(replace(group, runs=runs), 1_000)


@pytest.fixture
def generated(tmp_path) -> Group:
    """Two runs of forty questions of one subject with generated answers."""
    return write_and_load(tmp_path, {"one": 0.5, "two": 0.5}, "gsm8k")


def test_independent_mistakes_are_not_called_common(tmp_path):
    rates = {"one": 0.6, "two": 0.6}
    random, same, separating = findings_of(tmp_path, rates, subjects={"a": 200, "b": 200}, shared=0.0)
    assert random.startswith("Are the mistakes random? Unclear. Both models miss ")
    assert "This may be chance (permutation test: p = 0." in random
    assert "say little" not in random
    assert same.startswith(
        "Do the models miss the same questions? It is unclear whether they do so more often than by chance. Of the "
    )
    assert "None for certain: in no subject do the models differ significantly (McNemar's test" in separating


def test_few_questions_are_said_to_say_little(tmp_path):
    rates = {"one": 0.5, "two": 0.6}
    random, _, separating = findings_of(tmp_path, rates, subjects={"law": 8}, shared=0.3)
    assert "? Unclear. " in random
    assert random.endswith("; 8 questions say little.")
    assert "? It is unclear whether the only subject, law, does: from " in separating


def test_mistakes_explained_by_hard_subjects_are_attributed_to_them(tmp_path):
    rates = {"hard": 0.2, "easy": 0.9}
    sizes = {"hard": 150, "easy": 150}
    random, *_ = findings_of(tmp_path, dict.fromkeys("abc", rates), subjects=sizes, shared=0.0)
    assert "No. All 3 models miss " in random
    assert "Within subjects this is unclear (p = " in random
    assert random.endswith("): perhaps only some subjects are harder than others.")


def test_mistakes_on_different_questions_are_reported(generated):
    half = "+" * 20 + "-" * 20
    random, same, separating = findings(with_answers(generated, half, half[::-1]))
    assert "No. Both models miss 0 of 40 questions, and 0 are missed by none. If" in random
    assert "these numbers would be 10 (7 to 13 in 95 % of permutations)" in random
    assert "The models miss different questions more often than by chance (permutation test: p = 0.002)." in random
    assert "? No, less often than by chance. Of the questions that one or two misses, both miss 0.0 % (by ch" in same
    assert separating.endswith("None: all models are equally accurate in the only subject, gsm8k.")


@pytest.mark.parametrize(
    ("first", "second", "random", "within", "same"),
    [  # for each of two subjects: questions missed by both, only by one, only by two, by none
        (
            (20, 0, 0, 20),
            (10, 10, 10, 10),
            "No. ",
            "This also holds within subjects (p = 0.002)",
            "Yes, more often than by",
        ),
        (
            (10, 10, 10, 10),
            (0, 0, 0, 40),
            "No. ",
            "Within subjects this is unclear (p = 1.00)",
            "Yes, more often than",
        ),
        (
            (10, 18, 0, 12),
            (10, 0, 18, 12),
            "Not within",
            "But within subjects the models miss the same",
            "Within subjects, more",
        ),
        (
            (2, 18, 16, 4),
            (0, 2, 1, 37),
            "Not within",
            "Within subjects the models miss different",
            "Within subjects, less",
        ),
        (
            (0, 20, 20, 0),
            (0, 0, 0, 40),
            "No. ",
            "Within subjects the models miss different",
            "No, less often than by",
        ),
    ],
)
def test_effects_within_subjects_are_told_from_effects_between_them(tmp_path, first, second, random, within, same):
    group = write_and_load(tmp_path, {"one": 0.5, "two": 0.5}, subjects={"a": 40, "b": 40})
    one, two = (
        "".join(letter * times for counts in (first, second) for letter, times in zip(letters, counts, strict=True))
        for letters in ("--++", "-+-+")
    )
    lines = findings(with_answers(group, one, two))
    assert f"random? {random}" in lines[0]
    assert within in lines[0]
    assert f"same questions? {same}" in lines[1]


@pytest.mark.parametrize(
    ("answers", "random", "separating"),
    [
        (
            ("+" * 40, "+" * 40),
            "There are no mistakes: both models answer all 40 questions correctly.",
            "None: all models are equally accurate in the only subject",
        ),
        (
            ("-" * 40, "-" * 40),
            "Cannot be determined: both models miss all 40 questions.",
            "None: all models are equally accurate in the only subject",
        ),
        (
            ("+" * 40, "-" * 40),
            "Cannot be determined: this needs two models with right and wrong answers, and no model has both.",
            "The only subject, gsm8k, does: from 0.0 % (two) to 100.0 % (one); McNemar's test: p < 0.001.",
        ),
        (
            ("+-" * 20, "-" * 40),
            "Cannot be determined: this needs two models with right and wrong answers, and only one has both.",
            "The only subject, gsm8k, does: from 0.0 % (two) to 50.0 % (one)",
        ),
    ],
)
def test_nothing_is_claimed_if_a_run_is_all_right_or_all_wrong(generated, answers, random, separating):
    lines = findings(with_answers(generated, *answers))
    assert lines[0] == f"Are the mistakes random? {random}"
    assert lines[1] == f"Do the models miss the same questions? {random}"
    assert lines[2].startswith(f"Which subjects separate the models? {separating}")


def test_a_single_question_is_written_in_the_singular(generated):
    group = replace(generated, keys=generated.keys[:1])
    assert "both models answer the only question correctly." in findings(with_answers(group, "+", "+"))[0]
    assert "Models, on 1 question" in markdown(with_answers(group, "+", "-"))


def test_identical_runs_are_noticed(tmp_path):
    write_runs(tmp_path / "a", {"same": 0.5})
    write_runs(tmp_path / "b", {"same": 0.5})
    comparison = compare(load_group(tmp_path), 1_000)
    random, same, separating = findings(comparison)
    assert comparison.alike == [(0, 1)]
    assert "No. Both models miss " in random
    labels = " and ".join(run.label for run in comparison.group.runs)
    assert "both miss 100.0 %" in same
    assert same.endswith(f"Identical answers to every question: {labels}. Perhaps one model was scored twice.")
    assert separating.endswith("None: all models are equally accurate in all 2 subjects.")


def test_generated_answers_are_not_called_choices(tmp_path):
    lines = findings_of(tmp_path, {"small": 0.35, "middle": 0.5, "large": 0.7}, "squad", subjects={"squad": 200})
    assert len(lines) == 3
    assert not any("choice" in line or "letter" in line for line in lines)


def test_separating_subjects_are_named_widest_first(tmp_path):
    sizes = dict.fromkeys("abcdefgh", 80) | {"like": 80}
    low = {name: 0.5 - number / 20 for number, name in enumerate("abcdefgh")} | {"like": 0.6}
    high = {**dict.fromkeys("abcdefgh", 0.95), "like": 0.6}
    comparison = compare(write_and_load(tmp_path, {"low": low, "high": high}, subjects=sizes), 200)
    *_, separating = findings(comparison)
    assert "8 of 9 (McNemar's test, corrected for 9 subjects: p < 0.05): " in separating
    assert separating.count("from ") == 6
    assert "; and 3 more. Over all subjects: from " in separating
    widest = max((row for row in comparison.subjects if row.subject != "like"), key=lambda row: row.spread)
    assert f"p < 0.05): {widest.subject}, from " in separating


def test_questions_that_not_all_runs_answered_are_left_out_and_counted(tmp_path):
    write_runs(tmp_path, {"one": 0.5}, subjects={"a": 10, "b": 5})
    write_runs(tmp_path, {"two": 0.5}, subjects={"a": 9})
    comparison = compare(load_group(tmp_path), 200)
    assert len(comparison.group.keys) == 9
    assert notes(comparison) == ["one: 6 questions left out, which not all models answered."]
    assert notes(comparison)[0] in markdown(comparison)


def test_a_part_of_a_benchmark_does_not_count_the_other_parts_as_left_out(tmp_path):
    group = write_and_load(tmp_path, {"one": 0.4, "two": 0.6}, "truthfulqa")
    for part in split_unpooled(group):
        assert notes(compare(part, 200)) == []


def test_a_single_run_has_no_findings(tmp_path):
    assert findings(compare(write_and_load(tmp_path, {"one": 0.5}), 200)) == []


def test_numbers_are_short():
    assert [p_text(p) for p in (0.0, 0.0009, 0.001, 0.0496, 0.25, 1.0)] == [
        "p < 0.001", "p < 0.001", "p = 0.001", "p = 0.050", "p = 0.25", "p = 1.00",
    ]  # fmt: skip
    assert [expected_count(value) for value in (0.04, 9.94, 12.4, 12_345.6)] == ["0.0", "9.9", "12", "12,346"]
    assert [plural(number, "question") for number in (0, 1, 1_234)] == ["0 questions", "1 question", "1,234 questions"]
