"""Rows from folders in every layout, and from the hub; missing data is named."""

from __future__ import annotations

import gzip
import json
import sys
from types import SimpleNamespace

import pytest

from engine.runtime import rows
from engine.runtime.errors import BareloopError
from evals.data import source

ROWS = [{"question": "?", "number": 1}, {"question": "é", "number": 2}]


def write(path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


@pytest.mark.parametrize(
    ("name", "config", "is_only_config"),
    [
        ("test.jsonl", None, True),
        ("test.jsonl.gz", "main", True),
        ("main/test.jsonl", "main", False),
        ("main_test.jsonl.gz", "main", False),
        ("test-00000-of-00001.parquet", None, True),
        ("data/test-00000-of-00001.parquet", None, True),
        ("main/test-00000-of-00001.parquet", "main", False),
        ("main/test.parquet", "main", True),
    ],
)
def test_every_layout_is_read(tmp_path, name, config, is_only_config):
    write(tmp_path / name, ROWS)
    assert source.load_rows(str(tmp_path), "test", config, is_only_config) == ROWS


def test_parts_of_a_split_are_read_in_order(tmp_path):
    for part in range(2):
        write(tmp_path / f"test-0000{part}-of-00002.parquet", ROWS[part : part + 1])
    assert source.load_rows(str(tmp_path), "test") == ROWS


def test_one_of_several_configurations_is_never_taken_for_another(tmp_path):
    write(tmp_path / "test.jsonl", ROWS)
    with pytest.raises(BareloopError, match=r"has no test split of easy: no easy/test.jsonl\(.gz\) or -\*.parquet"):
        source.load_rows(str(tmp_path), "test", "easy", is_only_config=False)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b'{"a": 1}\nhello\n', "line 2 is not JSON"),
        (b"\x1f\x8b broken", "cannot read"),
        (b"\xff\xfe\n", "cannot read"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, content, line):
    (tmp_path / "test.jsonl").write_bytes(content)
    with pytest.raises(BareloopError, match=line):
        source.load_rows(str(tmp_path), "test")
    (tmp_path / "test.jsonl").rename(tmp_path / "test-0.parquet")
    with pytest.raises(BareloopError, match="cannot read"):
        source.load_rows(str(tmp_path), "test")


def test_a_file_and_a_missing_folder_are_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(BareloopError, match="is a file; name its folder"):
        source.data_folder(str(tmp_path / "file"))
    with pytest.raises(BareloopError, match="is not a folder"):
        source.data_folder("./nowhere")
    assert source.data_folder("openai/gsm8k") is None


def test_the_hub_is_asked_for_the_configuration_and_the_split(monkeypatch):
    """With a fake of `datasets`, which needs the hub."""
    requests = []

    def load_dataset(name, config, split):
        requests.append((name, config, split))
        if split != "test":
            raise ValueError(f'Unknown split "{split}".')
        return ROWS

    monkeypatch.setattr(rows, "check_data_set", requests.append)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert source.load_rows("openai/gsm8k", "test", "main") == ROWS
    assert requests == ["openai/gsm8k", ("openai/gsm8k", "main", "test")]
    with pytest.raises(BareloopError, match="openai/gsm8k has no dev split"):
        source.load_rows("openai/gsm8k", "dev", "main")
