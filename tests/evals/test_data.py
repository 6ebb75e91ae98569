"""Rows from files: both layouts give the same questions, and bad ones are named."""

from __future__ import annotations

import gzip
import json

import pytest

from engine.errors import BareloopError, UsageError
from evals.data import MMLU

ROW = {"question": "?", "subject": "astronomy", "choices": ["a", "b", "None", "4"], "answer": 2}


def test_jsonl_and_parquet_hold_the_same_questions(shared):
    lines, parquet = MMLU(str(shared / "data" / "mmlu")), MMLU(str(shared / "data" / "mmlu" / "parquet"))
    assert lines.subjects("test") == parquet.subjects("test")
    for subject in ("astronomy", "professional_law"):
        for split in ("dev", "test"):
            assert lines.questions(subject, split) == parquet.questions(subject, split)
    assert len(lines.questions("astronomy", "test")) == 152


def test_subjects_by_name(shared):
    data = MMLU(str(shared / "data" / "mmlu"))
    assert data.choose(["anatomy", "astronomy", "anatomy"], "test") == ["anatomy", "astronomy"]
    assert len(data.choose(["all"], "test")) == 10
    with pytest.raises(UsageError, match=r"no subject 'astronmy' .*nearest: astronomy"):
        data.choose(["astronmy"], "test")
    with pytest.raises(UsageError, match=r"no subject 'xyz' .*there are: abstract_algebra"):
        data.choose(["xyz"], "test")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (json.dumps(ROW | {"choices": ["a", "b", "c"]}), "row 2 has 3 choices"),
        (json.dumps(ROW | {"answer": 1.9}), "row 2 is no question"),
        (json.dumps(ROW | {"choices": ["a", None, "c", "d"]}), "row 2 is no question"),
        (json.dumps(ROW | {"answer": 4}), "row 2 has 4 choices and answer 4"),
        (json.dumps({"question": "?"}), "row 2 is no question with choices and answer"),
        ("[1]", "row 2 is no question"),
        ('{"question"', "line 2 is not JSON"),
    ],
)
def test_bad_rows_are_named(tmp_path, line, message):
    (tmp_path / "test.jsonl").write_text(json.dumps(ROW) + "\n" + line + "\n")
    with pytest.raises(BareloopError, match=message):
        MMLU(str(tmp_path)).subjects("test")


def test_choices_stay_text(tmp_path):
    with gzip.open(tmp_path / "test.jsonl.gz", "wt") as file:
        file.write(json.dumps(ROW) + "\n")
    (question,) = MMLU(str(tmp_path)).questions("astronomy", "test")
    assert question.choices == ("a", "b", "None", "4")
    (tmp_path / "test.jsonl.gz").write_bytes(b"not gzip")
    with pytest.raises(BareloopError, match="cannot read"):
        MMLU(str(tmp_path)).subjects("test")


def test_what_is_not_there(tmp_path):
    with pytest.raises(BareloopError, match="is no folder here"):
        MMLU("./nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(BareloopError, match="is a file; name its folder"):
        MMLU(str(tmp_path / "file"))
    with pytest.raises(BareloopError, match="has no test split"):
        MMLU(str(tmp_path)).subjects("test")
    with pytest.raises(BareloopError, match=r"cannot get the data set me/none .*--data"):
        MMLU("me/none").subjects("test")
