"""Files that are never lost: atomic replacement, one writer, full disks."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from engine.runtime.errors import BareloopError
from engine.runtime.files import AppendFile, write_atomic


def test_a_file_is_replaced_completely_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "file.json"
    write_atomic(path, "one")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(BareloopError, match=r"cannot write .*file.json: No space left"):
        write_atomic(path, "two")
    assert path.read_text() == "one"
    assert list(path.parent.iterdir()) == [path]


def test_lines_are_appended_after_an_incomplete_one_is_removed(tmp_path):
    path = tmp_path / "a" / "file.jsonl"
    with AppendFile(path) as file:
        assert file.lines == []
        file.append("one\ntwo\n")
    path.write_bytes(path.read_bytes() + "thr\u00e9".encode()[:-1])
    with AppendFile(path) as file:
        assert file.lines == ["one", "two"]
        file.append("three\n")
    assert path.read_text() == "one\ntwo\nthree\n"


def test_an_incomplete_line_is_kept_until_another_is_appended(tmp_path):
    path = tmp_path / "file"
    path.write_text("one\ntorn")
    with AppendFile(path) as file:
        assert (file.lines, file.torn) == (["one"], "torn")
    assert path.read_text() == "one\ntorn"
    with AppendFile(path) as file:
        file.append("2\n")
    assert path.read_text() == "one\n2\n"


def test_a_file_renamed_before_it_was_locked_is_not_changed(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old\n")
    lock = AppendFile._lock

    def lock_late(self, file):
        if path.read_text() == "old\n":
            path.rename(tmp_path / "renamed")
            path.write_text("new\n")
        lock(self, file)

    monkeypatch.setattr(AppendFile, "_lock", lock_late)
    with AppendFile(path) as file:
        assert file.lines == ["new"]
        file.append("more\n")
    assert (tmp_path / "renamed").read_text() == "old\n"
    assert path.read_text() == "new\nmore\n"


def test_pipes_and_links_are_written_through(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE, text=True)
    write_atomic(tmp_path / "pipe", ["one\n", "two\n"])
    assert reader.communicate()[0] == "one\ntwo\n"
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_atomic(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "text"


def test_a_second_writer_is_refused(tmp_path):
    path = tmp_path / "file"
    with AppendFile(path), pytest.raises(BareloopError, match="another process is writing"):
        AppendFile(path)
    AppendFile(path).close()


def test_a_line_that_a_full_disk_cuts_off_is_removed(tmp_path):
    """A limit on the file's size acts like a full disk: a part of the data is written, then writing fails."""
    path = tmp_path / "file"
    program = f"""
import resource
from pathlib import Path
from engine.runtime.errors import BareloopError
from engine.runtime.files import AppendFile
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
with AppendFile(Path({str(path)!r})) as file:
    file.append("x" * 899 + "\\n")
    try:
        file.append("y" * 899 + "\\n")
    except BareloopError as error:
        print(error)
    file.append("z" * 9 + "\\n")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "cannot write" in done.stdout
    assert "everything before is kept" in done.stdout
    assert path.read_text() == "x" * 899 + "\n" + "z" * 9 + "\n"


def test_appending_to_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BareloopError, match="pipe is not a regular file"):
        AppendFile(tmp_path / "pipe")


def test_a_path_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BareloopError, match="cannot write"):
        AppendFile(tmp_path / "file" / "inside")
    with pytest.raises(BareloopError, match="cannot write"):
        write_atomic(tmp_path / "file" / "inside", "text")
    (tmp_path / "kept").write_text("before")
    with pytest.raises(BareloopError, match=r"cannot write .*kept: the text has half of a UTF-16 pair"):
        write_atomic(tmp_path / "kept", "\ud800")
    assert (tmp_path / "kept").read_text() == "before"


def test_lines_are_removed_from_the_end_while_the_lock_is_held(tmp_path):
    path = tmp_path / "file"
    path.write_bytes("é\none\ntwo\ntorn".encode())
    before = path.stat()
    with AppendFile(path) as file:
        file.truncate(2)
        assert (file.lines, file.torn) == (["é", "one"], "")
        assert path.read_text() == "é\none\n"
        with pytest.raises(BareloopError, match="another process is writing"):
            AppendFile(path)
        file.append("more\n")
        assert os.path.samestat(before, path.stat())
    assert path.read_text() == "é\none\nmore\n"
