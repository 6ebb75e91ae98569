"""Run files: which files are refused and why, how a run resumes, and what is kept."""

from __future__ import annotations

import json

import pytest

from engine.runtime.errors import BareloopError
from evals.runs.run_file import RunFile, read
from tests.evals.synthetic import HEADER


def row(index: int, subject: str = "anatomy") -> dict[str, object]:
    return {
        "subject": subject,
        "index": index,
        "prompt_sha256": "0" * 64,
        "gold": 1,
        "prediction": 1,
        "correct": True,
        "loglikelihoods": [-2.0, -1.0],
        "greedy": [False, False],
        "margin": 1.0,
        "tokens": 10,
        "truncated": False,
        "times": {"real": 0.1, "cpu": 0.2, "computed": 5.0, "peak_memory": 1},
    }


def test_a_resumed_run_keeps_its_header_and_records(tmp_path):
    path = tmp_path / "file.run.jsonl"
    with RunFile(path, HEADER) as run:
        run.append([row(0), row(1)])
    path.write_text(path.read_text() + json.dumps(row(2))[:-3])  # killed in the middle of a write
    informational = {"version": "2", "model": "moved", "date": "later", "machine": "other", "batch_size": 3}
    with RunFile(path, HEADER | informational) as run:
        assert list(run.records) == [("anatomy", 0), ("anatomy", 1)]
        assert run.header["date"] == "today"
        run.append([row(2), row(0, "law")])
    header, records = read(path)
    assert header == HEADER
    assert len(records) == 4
    assert path.read_text().count("\n") == 5


def test_a_run_killed_in_its_first_write_starts_over(tmp_path):
    path = tmp_path / "file.run.jsonl"
    for torn in ('{"format": 1, "task": "mmlu", "sh', '{"form', ""):
        path.write_text(torn)
        with RunFile(path, HEADER) as run:
            assert run.records == {}
            run.append([row(0)])
        assert read(path)[0] == HEADER


def test_nothing_is_written_or_renamed_before_the_first_record(tmp_path):
    path = tmp_path / "file.run.jsonl"
    for fresh in (False, True):
        RunFile(path, HEADER, fresh).close()
        assert not path.exists(), "a run without records leaves no empty file"
    with RunFile(path, HEADER) as run:
        run.append([row(0)])
    before = path.read_bytes()
    for _ in range(2):
        RunFile(path, HEADER, fresh=True).close()
    assert path.read_bytes() == before
    for number in range(3):
        with RunFile(path, HEADER, fresh=True) as run:
            assert run.records == {}
            run.append([row(number)])
            run.append([row(9)])
    assert len(list(tmp_path.glob("*.old"))) == 3
    assert list(read(path)[1]) == [("anatomy", 2), ("anatomy", 9)]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("weights", "f" * 64, r"other weights \(aaaaaaaaaaaa…, now ffffffffffff…\)"),
        ("config", "f", "another config.json"),
        ("tokenizer", "f", "another tokenizer"),
        ("data", "f", "other data"),
        ("max_length", 2048, r"another maximum length \(512, now 2048\)"),
        ("batch_tokens", 7, r"another --batch-tokens \(1024, now 7\)"),
        ("seed", 3, "another seed"),
        ("more", 3, "another more"),
    ],
)
def test_a_run_of_another_setting_is_refused_with_the_differing_field(tmp_path, name, value, message):
    path = tmp_path / "file.run.jsonl"
    with RunFile(path, HEADER) as run:
        run.append([row(0)])
    before = path.read_bytes()
    with pytest.raises(BareloopError, match=f"was started with {message}.*--fresh.*--output-dir"):
        RunFile(path, HEADER | {name: value})
    assert path.read_bytes() == before
    with RunFile(path, HEADER | {name: value}, fresh=True) as run:
        run.append([row(0)])
    (old,) = tmp_path.glob("*.old")
    assert old.read_bytes() == before


BEGIN = json.dumps({"format": 1, **HEADER}) + "\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hello\n", "line 1 is not a record"),
        ("[1]\n", "line 1 is not a record"),
        ('{"a": 1}\n', "is not a run file of this version"),
        ('{"format": 99}\n', "is not a run file of this version"),
        ('{"format": 1}\n', "is not a run file of this version"),
        (BEGIN + '{"subject": "anatomy", "index": 1}\n', "line 2 is not a record"),
        (BEGIN + json.dumps(row(0))[:50] + "\n" + json.dumps(row(0)) + "\n", "line 2 is not a record"),
        *(
            (BEGIN + json.dumps(row(0)) + "\n" + json.dumps(row(1) | change) + "\n", "line 3 is not a record")
            for change in (
                {"index": 3.7},
                {"index": -1},
                {"correct": False},
                {"gold": 7},
                {"prediction": 0},
                {"times": {}},
                {"times": {"real": "x", "cpu": 1.0, "computed": 1.0, "peak_memory": 1}},
                {"greedy": []},
                {"loglikelihoods": [-2.0]},
                {"loglikelihoods": ["a", "b"]},
            )
        ),
        (BEGIN.replace('"here"', "5"), "is not a run file of this version"),
        ("\x00\x01\n", "line 1 is not a record"),
    ],
)
def test_a_foreign_or_damaged_file_is_refused_and_unchanged(tmp_path, text, message):
    path = tmp_path / "file.run.jsonl"
    path.write_text(text)
    with pytest.raises(BareloopError, match=message):
        RunFile(path, HEADER)
    assert path.read_text() == text
    with pytest.raises(BareloopError, match=message):
        read(path)


def test_a_foreign_file_without_a_newline_is_refused_and_unchanged(tmp_path):
    path = tmp_path / "file.run.jsonl"
    path.write_text("my only copy")
    with pytest.raises(BareloopError, match="line 1 is not a record"):
        RunFile(path, HEADER)
    assert path.read_text() == "my only copy"
    with RunFile(path, HEADER, fresh=True) as run:
        run.append([row(0)])
    (old,) = tmp_path.glob("*.old")
    assert old.read_text() == "my only copy"


def test_one_process_writes_while_others_read(tmp_path):
    path = tmp_path / "file.run.jsonl"
    with RunFile(path, HEADER) as run:
        run.append([row(0)])
        with pytest.raises(BareloopError, match="another process is writing"):
            RunFile(path, HEADER)
        with pytest.raises(BareloopError, match="another process is writing"):
            RunFile(path, HEADER, fresh=True)
        assert len(read(path)[1]) == 1
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(BareloopError, match="cannot read"):
            read(missing)
    path.write_text("")
    with pytest.raises(BareloopError, match="nothing has been scored yet"):
        read(path)
