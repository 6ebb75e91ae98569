"""Reading safetensors: valid files are read exactly, and damaged ones are refused with one line."""

from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from engine.checkpoints.safetensors import SafetensorsFile, open_checkpoint
from engine.runtime.errors import BareloopError


def write(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype: str = "F32", shape: tuple[int, ...] = (2,), offsets: tuple[int, int] = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_files_of_the_safetensors_library_are_read_in_any_dtype(tmp_path, dtype):
    tensors = {"a": torch.randn(3, 5).to(dtype), "b": torch.randn(7).to(dtype), "c": torch.zeros(0, 4, dtype=dtype)}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    tensors_read = open_checkpoint(tmp_path)
    assert set(tensors_read) == set(tensors)
    for name, stored in tensors_read.items():
        for target_dtype in (dtype, torch.float32, torch.bfloat16):
            target = torch.full(stored.shape, 9.0, dtype=target_dtype)
            stored.read_into(target)
            assert torch.equal(target, tensors[name].to(target_dtype))
        if stored.aligned:
            assert torch.equal(stored.view(), tensors[name])


def test_writing_to_a_mapped_tensor_does_not_change_the_file(tmp_path):
    save_file({"a": torch.ones(4)}, tmp_path / "model.safetensors")
    before = (tmp_path / "model.safetensors").read_bytes()
    open_checkpoint(tmp_path)["a"].view().mul_(2)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_tensor_larger_than_the_buffer_is_converted_in_steps(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.checkpoints.tensor_file.BUFFER", 40)
    tensor = torch.randn(7, 9)
    save_file({"a": tensor}, tmp_path / "model.safetensors")
    target = torch.empty(7, 9, dtype=torch.float64)
    open_checkpoint(tmp_path)["a"].read_into(target)
    assert torch.equal(target, tensor.double())


@pytest.mark.parametrize(
    ("header", "length", "message"),
    [
        (b"", 2**63, "is truncated"),
        (b"{}", 11, "is truncated"),
        (b"not json", None, "not JSON"),
        (b"[" * 5000, None, "not JSON"),
        (b"[]", None, "not a JSON object"),
        ({"a": 1}, None, "malformed"),
        ({"a": {"dtype": "F32"}}, None, "malformed"),
        ({"a": entry(shape=(-2,))}, None, "malformed"),
        ({"a": {**entry(), "shape": [True, 2]}}, None, "malformed"),
        ({"a": entry(dtype="F8_E4M3")}, None, "dtype F8_E4M3"),
        ({"a": entry(offsets=(0, 4))}, None, "takes 8 bytes"),
        ({"a": entry(offsets=(-8, 0))}, None, "takes 8 bytes"),
        ({"a\nb" * 1000: 1}, None, "malformed"),
        ({"a": entry(shape=(10**4000,))}, None, "malformed"),
        ({"a": entry(shape=(1,) * 1000)}, None, "malformed"),
        ({"a": entry(shape=(2**40, 2**40), offsets=(0, 2**82))}, None, "is truncated"),
        ({"a": entry(offsets=(8, 16))}, None, "is truncated"),
    ],
)
def test_a_malformed_header_raises_a_one_line_error(tmp_path, header, length, message):
    path = write(tmp_path / "model.safetensors", header, b"\0" * 8, length)
    with pytest.raises(BareloopError, match=message) as caught:
        open_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))


@given(st.binary(max_size=200))
@settings(max_examples=200)
def test_random_bytes_are_read_or_raise_a_one_line_error(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(data)
        try:
            tensors = SafetensorsFile(path).tensors
        except BareloopError as error:
            assert "\n" not in str(error)
        else:
            assert all(stored.start + stored.nbytes <= len(data) for stored in tensors.values())


def test_a_truncated_file_raises_a_one_line_error(tmp_path):
    save_file({"a": torch.ones(100)}, tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    for size in (0, 3, 8, 40, len(content) - 1):
        (tmp_path / "model.safetensors").write_bytes(content[:size])
        with pytest.raises(BareloopError, match=r"truncated.*download it again"):
            open_checkpoint(tmp_path)


def test_shards_are_found_by_their_index_and_missing_shards_are_named(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": torch.zeros(2)}, tmp_path / "model-00002-of-00002.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    index.write_text(json.dumps({"weight_map": names}))
    assert {name: stored.view()[0].item() for name, stored in open_checkpoint(tmp_path).items()} == {"a": 1, "b": 0}
    (tmp_path / names["b"]).unlink()
    with pytest.raises(BareloopError, match=r"1 of 2 shards are missing in .*: model-00002-of-00002"):
        open_checkpoint(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    with pytest.raises(BareloopError, match="not a file in the same folder"):
        open_checkpoint(tmp_path)
    index.write_text("{}")
    with pytest.raises(BareloopError, match="no weight_map"):
        open_checkpoint(tmp_path)


def test_each_tensor_comes_from_the_file_that_the_index_names(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "1.safetensors")
    save_file({"a": torch.full((2,), 9.0), "b": torch.zeros(2)}, tmp_path / "2.safetensors")
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert open_checkpoint(tmp_path)["a"].view()[0] == 1


def test_long_names_are_clipped_in_messages(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "x" * 10_000}}))
    with pytest.raises(BareloopError, match="1 of 1 shards are missing") as caught:
        open_checkpoint(tmp_path)
    assert len(str(caught.value)) <= 600
