"""The questions of MMLU: all file layouts give the same questions, and invalid rows are named."""

from __future__ import annotations

import csv
import gzip
import json
import shutil

import pytest

from engine.runtime.errors import BareloopError, UsageError
from evals.data.mmlu import MMLU
from evals.data.subjects import GROUPS

ROW = {"question": "?", "subject": "astronomy", "choices": ["a", "b", "None", "4"], "answer": 2}


def write_csv(folder, split: str, questions) -> None:
    """Write the original layout: no header, the answer as a letter."""
    short = {"validation": "val"}.get(split, split)
    (folder / short).mkdir(parents=True)
    for subject, rows in questions.items():
        with (folder / short / f"{subject}_{short}.csv").open("w", newline="", encoding="utf-8-sig") as file:
            csv.writer(file).writerows([row.question, *row.choices, "ABCD"[row.answer]] for row in rows)


@pytest.mark.parametrize("split", ["dev", "validation", "test"])
def test_all_layouts_give_the_same_questions(shared, tmp_path, split):
    lines, parquet = MMLU(str(shared / "data" / "mmlu")), MMLU(str(shared / "data" / "mmlu" / "parquet"))
    write_csv(tmp_path, split, lines.split(split))
    original = MMLU(str(tmp_path))
    assert len(lines.split(split)) == 10
    assert lines.split(split) == parquet.split(split) == original.split(split)
    assert lines.digest(split) == parquet.digest(split) == original.digest(split)
    assert list(lines.split(split)) == sorted(lines.split(split))


def test_groups_select_their_subjects(shared):
    assert {group: len(subjects) for group, subjects in GROUPS.items()} == {
        "stem": 19, "humanities": 13, "social_sciences": 12, "other": 13,
    }  # fmt: skip
    data = MMLU(str(shared / "data" / "mmlu"))
    assert data.choose(["social_sciences", "humanities"], "test") == ["econometrics", "professional_law"]
    assert len(data.choose(["stem"], "test")) == 7


def test_subjects_are_chosen_by_name(shared, tmp_path):
    data = MMLU(str(shared / "data" / "mmlu"))
    assert data.choose(["anatomy", "astronomy", "anatomy"], "test") == ["anatomy", "astronomy"]
    assert len(data.choose(["astronomy", "all"], "test")) == 10
    with pytest.raises(UsageError, match=r"no subject 'astronmy' .*nearest: astronomy"):
        data.choose(["astronmy"], "test")
    with pytest.raises(UsageError, match=r"no subject 'xyz' .*subjects: abstract_algebra"):
        data.choose(["xyz"], "test")
    (tmp_path / "test.jsonl").write_text(json.dumps(ROW))
    with pytest.raises(UsageError, match="has no subject of the group humanities"):
        MMLU(str(tmp_path)).choose(["humanities"], "test")


def test_every_change_of_the_data_changes_its_digest(tmp_path):
    digests = set()
    for row in (ROW, ROW | {"answer": 1}, ROW | {"question": "? "}, ROW | {"choices": ["a", "b", "None", "5"]}):
        (tmp_path / "test.jsonl").write_text(json.dumps(row))
        digests.add(MMLU(str(tmp_path)).digest("test"))
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (json.dumps(ROW | {"choices": ["a", "b", "c"]}), "row 2 has 3 choices"),
        (json.dumps(ROW | {"answer": 1.9}), "row 2 is not a question"),
        (json.dumps(ROW | {"answer": True}), "row 2 is not a question"),
        (json.dumps(ROW | {"choices": "True"}), "row 2 is not a question"),
        (json.dumps(ROW | {"subject": "../up"}), "row 2: '../up' is not a subject name"),
        (json.dumps(ROW | {"question": "\ud800"}), "row 2 contains a lone surrogate"),
        (json.dumps(ROW | {"choices": ["a", None, "c", "d"]}), "row 2 is not a question"),
        (json.dumps(ROW | {"answer": 4}), "row 2 has 4 choices and answer 4"),
        (json.dumps({"question": "?"}), "row 2 is not a question: question, subject and choices must be text"),
        ("[1]", "row 2 is not a question"),
        ('{"question"', "line 2 is not JSON"),
    ],
)
def test_invalid_rows_are_named(tmp_path, line, message):
    (tmp_path / "test.jsonl").write_text(json.dumps(ROW) + "\n" + line + "\n")
    with pytest.raises(BareloopError, match=message):
        MMLU(str(tmp_path)).split("test")


def test_choices_that_look_like_numbers_or_none_stay_text(tmp_path):
    with gzip.open(tmp_path / "test.jsonl.gz", "wt") as file:
        file.write(json.dumps(ROW) + "\n")
    (question,) = MMLU(str(tmp_path)).split("test")["astronomy"]
    assert question.choices == ("a", "b", "None", "4")
    (tmp_path / "test.jsonl.gz").write_bytes(b"not gzip")
    with pytest.raises(BareloopError, match="cannot read"):
        MMLU(str(tmp_path)).split("test")


def test_all_and_auxiliary_train_of_the_hub_are_not_subjects(shared, tmp_path):
    for name in ("anatomy", "all", "auxiliary_train"):
        shutil.copytree(shared / "data" / "mmlu" / "parquet" / "anatomy", tmp_path / name)
    assert list(MMLU(str(tmp_path)).split("test")) == ["anatomy"]


def test_missing_data_is_named(tmp_path):
    with pytest.raises(BareloopError, match="no such folder: ~nobody-here/data"):
        MMLU("~nobody-here/data")
    with pytest.raises(BareloopError, match="is not a folder"):
        MMLU("./nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(BareloopError, match="is a file; name its folder"):
        MMLU(str(tmp_path / "file"))
    with pytest.raises(BareloopError, match="has no test split"):
        MMLU(str(tmp_path)).split("test")
    with pytest.raises(BareloopError, match=r"cannot get the data set me/none .*--data"):
        MMLU("me/none").split("test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q,a,b,c,D\n", "row 1 has 5 columns and ends in 'D'"),
        ("q,a,b,c,d,E\n", "row 1 has 6 columns and ends in 'E'"),
        ("q,a,b,c,d,A\nquestion,A,B,C,D,answer\n", "row 2 has 6 columns and ends in 'answer'"),
        ("q,a,b,c,d,A\n\n", "row 2 has 0 columns"),
    ],
)
def test_invalid_csv_rows_are_named(tmp_path, text, message):
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "astronomy_test.csv").write_text(text)
    with pytest.raises(BareloopError, match=message):
        MMLU(str(tmp_path)).split("test")


def test_the_hub_is_asked_for_the_configuration_all(monkeypatch):
    datasets = pytest.importorskip("datasets")
    requests = []

    def load_dataset(name, configuration, split):
        requests.append((name, configuration, split))
        if split == "nowhere":
            raise ValueError(f"Unknown split {split!r}")
        return [ROW | {"subject": "virology"}, ROW, ROW | {"question": "!"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = MMLU("cais/mmlu")
    assert list(data.split("test")) == ["astronomy", "virology"]
    assert [question.index for question in data.split("test")["astronomy"]] == [0, 1]
    assert requests == [("cais/mmlu", "all", "test")]
    with pytest.raises(BareloopError, match="cais/mmlu has no nowhere split"):
        data.split("nowhere")
