"""Rows from every layout, with their places; what is missing is named."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from engine.finetune.data.sources import read_data
from engine.runtime import rows as hub
from engine.runtime.errors import BareloopError, UsageError

ROWS = [{"text": "one"}, {"text": "two é"}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.parquet"])
def test_a_file_is_read(write, name):
    path = write(name, ROWS)
    source, valid = read_data(path)
    assert source.rows == ROWS
    assert valid is None
    unit = "line" if name.startswith("a.jsonl") else "row"
    assert source.place(1) == f"{path}, {unit} 2"


def test_places_count_empty_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"text": "a"}\n\n{"text": "b"}\n')
    assert read_data(str(path))[0].place(1) == f"{path}, line 4"


def test_json_lines_may_be_called_json(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"text": "a"}\n{"text": "b"}\n')
    assert read_data(str(path))[0].rows == [{"text": "a"}, {"text": "b"}]


@pytest.mark.parametrize(
    "name", ["train.jsonl", "train.jsonl.gz", "data/train-00000-of-00001.parquet", "plain_text/train-0.parquet"]
)
def test_the_train_split_of_a_folder_is_read(write, tmp_path, name):
    write(name, ROWS)
    assert read_data(str(tmp_path))[0].rows == ROWS
    assert read_data(str(tmp_path))[1] is None


def test_valid_is_read_beside_train_only(write, tmp_path):
    write("train.jsonl", ROWS)
    write("valid.jsonl", ROWS[:1])
    write("test.jsonl", ROWS)
    assert read_data(str(tmp_path))[1].rows == ROWS[:1]
    source, valid = read_data(f"{tmp_path}:valid")
    assert source.rows == ROWS[:1] and valid is None


def test_a_split_and_its_rows_are_chosen_as_in_datasets(write, tmp_path):
    write("validation.jsonl", [{"text": str(number)} for number in range(10)])
    for spec, expected in (("[2:4]", [2, 3]), ("[8:]", [8, 9]), ("[:1]", [0]), ("", list(range(10)))):
        source, _ = read_data(f"{tmp_path}:validation{spec}")
        assert [int(row["text"]) for row in source.rows] == expected
        assert source.place(0).endswith(f"line {expected[0] + 1}")
    with pytest.raises(UsageError, match="no such row, as the split has 10"):
        read_data(f"{tmp_path}:validation[10:]")


def test_a_folder_that_datasets_saved_is_read(tmp_path):
    import datasets

    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=data, test=data).save_to_disk(str(tmp_path / "several"))
    for name in ("one", "several", "several:test"):
        assert read_data(str(tmp_path / name))[0].rows == ROWS
    with pytest.raises(BareloopError, match=r"has no validation split, .* it has test, train: name one as .*:train$"):
        read_data(f"{tmp_path / 'several'}:validation")


def test_what_is_missing_is_named(write, tmp_path):
    path = write("a.jsonl", ROWS)
    with pytest.raises(BareloopError, match=r"has no train split, .* it has a: name one as .*:a$"):
        read_data(str(tmp_path))
    with pytest.raises(UsageError, match="no such file or folder"):
        read_data(str(tmp_path / "nowhere.jsonl"))
    with pytest.raises(UsageError, match="is a file, which has no splits"):
        read_data(f"{path}:train")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b'{"a": 1}\nhello\n', "line 2 is not JSON"),
        (b"\x1f\x8b broken", "cannot read"),
        (b"[1, 2", "line 1 is not JSON"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, content, line):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(BareloopError, match=line):
        read_data(str(tmp_path / "a.jsonl"))


def test_squad_is_read_from_the_hub_by_its_name(monkeypatch):
    """With a fake of `datasets`, which needs the hub."""
    requests = []

    def load_dataset(name, config, split):
        requests.append((name, split))
        return SimpleNamespace(to_list=lambda: ROWS)

    monkeypatch.setattr(hub, "check_data_set", lambda name: None)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert read_data("squad")[0].rows == ROWS
    assert read_data("squad:validation[1:]")[0].rows == ROWS[1:]
    assert requests == [("rajpurkar/squad", "train"), ("rajpurkar/squad", "validation")]


def test_squad_without_a_network_says_what_to_pass(monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("offline")

    monkeypatch.setattr(hub, "check_data_set", lambda name: None)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(
        BareloopError, match=r"cannot get .* or pass a folder that has train-\*\.parquet or train\.jsonl\.gz"
    ):
        read_data("squad")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_byte_order_mark_is_not_a_part_of_the_rows(write, tmp_path, name):
    """As editors of Windows write it."""
    path = tmp_path / name
    path.write_bytes(b"\xef\xbb\xbf" + (tmp_path / write(name, ROWS)).read_bytes())
    assert read_data(str(path))[0].rows == ROWS
