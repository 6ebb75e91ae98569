"""A GGUF file is not trusted: every defect raises a one-line error, without a large allocation."""

from __future__ import annotations

import random
import struct
import tracemalloc

import pytest

from engine import LLM
from engine.runtime.errors import BareloopError

pytest.importorskip("gguf")
from engine.checkpoints.gguf.reader import GGUFFile
from engine.checkpoints.opening import open_model
from tests.engine.checkpoints.gguf.converter import convert

MAX_MEMORY = 50 * 2**20  # bytes of Python's and numpy's memory


@pytest.fixture(scope="module")
def content(tiny_llama, tmp_path_factory) -> bytes:
    """A valid file."""
    return convert(tiny_llama.folder, tmp_path_factory.mktemp("gguf") / "model.gguf").read_bytes()


@pytest.fixture(autouse=True)
def limited_memory():
    """Fail if a test allocates much memory."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MAX_MEMORY


def refusal(path, read=lambda path: open_model(path, "float32")) -> str:
    """Open a model, which may fail with one line; return that line, or nothing."""
    try:
        read(path)
    except BareloopError as error:
        assert "\n" not in str(error) and len(str(error)) < 700
        return str(error)
    return ""


def test_a_truncated_file_raises_a_one_line_error(content, tmp_path, cache):
    path = tmp_path / "model.gguf"
    for size in (*range(5, 64), *range(0, len(content) - 1, 1000), len(content) - 1):
        path.write_bytes(content[:size])
        assert refusal(path), size


def test_a_mutated_header_opens_or_raises_a_one_line_error(content, tmp_path, cache):
    generator, path = random.Random(0), tmp_path / "model.gguf"
    header = content.index(b"blk.2.ffn_norm.weight") + 64
    messages = set()
    for number in range(600):
        mutated = bytearray(content)
        for _ in range(generator.choice((1, 1, 2, 8))):
            position = generator.randrange(header)
            size = generator.choice((1, 4, 8))
            value = generator.choice((0, 1, 255, 2**31 - 1, 2**63, 2**64 - 1, generator.getrandbits(64)))
            mutated[position : position + size] = struct.pack("<Q", value)[:size]
        path.write_bytes(mutated)
        message = refusal(path, GGUFFile)
        if not message and number % 3 == 0:  # the header is valid; its content may not be
            message = refusal(path)
        messages.add(message.replace(str(path), "")[:20])
    assert len(messages) > 15


def header(*entries: bytes, tensors: int = 0, count: int | None = None) -> bytes:
    """The beginning of a file with these metadata entries."""
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, len(entries) if count is None else count) + b"".join(entries)


def text(value: bytes) -> bytes:
    """A string."""
    return struct.pack("<Q", len(value)) + value


HUGE = 2**62


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGML" + bytes(100), "is a file, but not a GGUF file"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(100), "it is big-endian"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(100), "its version is 1; known: 2, 3"),
        (header(count=HUGE) + bytes(100), "it claims .* metadata entries"),
        (header(tensors=HUGE) + bytes(100), "it claims .* tensors"),
        (header(count=50_000) + bytes(100), "is truncated"),
        (header(struct.pack("<Q", HUGE)) + bytes(100), "is truncated"),
        (header(text(b"a") + struct.pack("<IQ", 8, HUGE)) + bytes(100), "is truncated"),
        (header(text(b"a") + struct.pack("<IIQ", 9, 4, HUGE)) + bytes(100), "it claims .* items of 'a'"),
        (header(text(b"a") + struct.pack("<IIQ", 9, 8, HUGE)) + bytes(100), "it claims .* items of 'a'"),
        (header(text(b"a") + struct.pack("<IIQ", 9, 9, 1)) + bytes(100), "'a' is an array of type 9"),
        (header(text(b"a") + struct.pack("<I", 99)) + bytes(100), "'a' has type 99"),
        (header(text(b"general.alignment") + struct.pack("<II", 4, 0)) + bytes(100), "its alignment is 0"),
        (header(tensors=1) + text(b"t") + struct.pack("<I", 9) + bytes(100), "'t' has 9 dimensions"),
        (header(tensors=1) + text(b"t") + struct.pack("<IQQ", 2, HUGE, 4) + bytes(100), "'t' has the shape"),
        (header(tensors=1) + text(b"t") + struct.pack("<IQIQ", 1, 32, 99, 0) + bytes(100), "unknown type 99"),
        (header(tensors=1) + text(b"t") + struct.pack("<IQIQ", 1, 32, 28, 0) + bytes(400), "unknown type 28"),  # F64
        (header(tensors=1) + text(b"t") + struct.pack("<IQIQ", 1, 32, 31, 0) + bytes(400), "no longer has"),
        (header(tensors=1) + text(b"t") + struct.pack("<IQIQ", 1, 33, 2, 0) + bytes(100), "not a multiple of 32"),
        (header(tensors=1) + text(b"t") + struct.pack("<IQIQ", 1, 32, 0, 7) + bytes(100), "'t' is malformed"),
        (header(tensors=1) + text(b"t") + struct.pack("<IQIQ", 1, 32, 0, HUGE) + bytes(100), "'t' ends at byte"),
        (
            header(text(b"general.architecture") + struct.pack("<IIQI", 9, 4, 1, 7)) + bytes(100),
            r"has the architecture \[7\], which is not implemented",
        ),
        (header() + bytes(100), "has the architecture None, which is not implemented; known: llama, qwen2"),
    ],
)
def test_an_invalid_header_raises_a_one_line_error(content, message, tmp_path, cache):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(BareloopError, match=message) as caught:
        LLM.load(path, "cpu")
    assert "\n" not in str(caught.value)


def test_metadata_and_tensors_are_read(content, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    file = GGUFFile(path)
    assert file.metadata["general.architecture"] == "llama"
    assert file.metadata["llama.block_count"] == 3
    assert file.tensors["blk.0.ffn_up.weight"].shape == (80, 48)


def test_a_string_larger_than_any_real_one_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(header(text(b"a") + struct.pack("<IQ", 8, 2**30)))
    with path.open("r+b") as file:
        file.truncate(2**31)  # sparse
    with pytest.raises(BareloopError, match="is damaged: its header continues to byte"):
        GGUFFile(path)
