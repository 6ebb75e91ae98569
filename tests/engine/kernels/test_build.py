"""The build of the C++ kernels: once, in the background, for the best instruction set that the compiler knows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine import kernels
from engine.kernels import build
from engine.runtime.errors import BareloopError

ROOT = Path(__file__).parents[3]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache and a fake compiler; returns the list of instruction sets that it was called for."""
    monkeypatch.setattr(build, "cache_folder", lambda: tmp_path / "kernels")
    built = []

    def compile_fake(isa: str, folder: Path, verbose: bool) -> None:
        built.append(isa)
        (folder / f"{build.namespace(isa)}.so").write_text("a library")

    monkeypatch.setattr(build, "_compile", compile_fake)
    return built


@pytest.fixture
def unloaded(monkeypatch):
    """No library is loaded yet."""
    for name, value in (("_loaded_ops", None), ("_active_ops", None), ("_inactive_reason", ""), ("_isa", "")):
        monkeypatch.setattr(kernels, name, value)


def test_a_library_is_built_once_and_a_partial_one_is_never_used(cache, monkeypatch):
    target = build.library_path("portable")
    draft = target.parent.with_suffix(".draft")
    draft.mkdir(parents=True)
    (draft / target.name).write_text("half a lib")  # left by a process that was killed
    build.build("portable")
    build.build("portable")
    assert cache == ["portable"] and target.read_text() == "a library" and not draft.exists()


def test_a_failed_build_is_explained_and_repeated_once_its_log_is_removed(cache, monkeypatch):
    def fail(isa: str, folder: Path, verbose: bool) -> None:
        raise RuntimeError("error: expected ';'")

    working = build._compile
    monkeypatch.setattr(build, "_compile", fail)
    with pytest.raises(BareloopError, match="could not be built"):
        build.build("portable")
    log = build.library_path("portable").parent.with_suffix(".log")
    assert "expected ';'" in log.read_text() and str(log) in build.obstacle("portable")
    log.unlink()
    assert build.obstacle("portable") is None
    monkeypatch.setattr(build, "_compile", working)
    build.build("portable")
    assert build.library_path("portable").exists()


def test_a_library_that_does_not_load_is_reported_and_removed(cache, unloaded, caplog):
    build.build("portable")  # the fake library is a text file
    kernels._load("portable")
    assert "do not load" in caplog.text and "do not load" in kernels.describe()
    assert kernels._loaded_ops is None and not build.library_path("portable").exists()


def test_a_cache_that_cannot_be_written_is_reported(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(build, "cache_folder", lambda: tmp_path / "file" / "kernels")
    assert not build.is_built("portable")
    assert "cannot be written to" in build.obstacle("portable")


def test_a_compiler_may_be_a_command_with_arguments(monkeypatch):
    monkeypatch.setenv("CXX", f"{sys.executable} -X dev")
    assert build.obstacle("portable") is None
    monkeypatch.setenv("CXX", "")
    assert build.compiler() in ("g++", "c++")


def test_another_version_of_torch_or_instruction_set_has_another_library(monkeypatch):
    before = build.library_path("portable")
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    assert build.library_path("portable") != before
    assert build.library_path("avx2").parent != build.library_path("avx512").parent


PROGRAM = """
import sys
from pathlib import Path
from engine import LLM, SamplingParams, kernels
llm = LLM.load("demo", device="cpu")
tokens = [event.token_id for event in llm.stream("What is", SamplingParams(max_new_tokens=3))]
print(len(tokens), kernels.describe())
Path(sys.argv[1]).touch()
kernels.wait()
print(kernels.describe())
"""


def run_program(cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program above with an empty cache. It creates the file `generated` after its first tokens."""
    arguments = [sys.executable, "-c", PROGRAM, str(cache / "generated")]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "HOME": str(cache), **environment}
    return subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_without_a_compiler_one_line_says_so(tmp_path):
    done = run_program(tmp_path, CXX="no-such-compiler", BARELOOP_ISA="portable")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith("3 PyTorch's operators")
    assert "no C++ compiler (no-such-compiler)" in done.stderr and len(done.stderr.splitlines()) == 1


def test_the_first_tokens_do_not_wait_for_the_build(tmp_path):
    compiler, generated = tmp_path / "slow", tmp_path / "generated"
    compiler.write_text(f"#!/bin/sh\nwhile [ ! -e {generated} ]; do sleep 0.02; done\necho 'no room' >&2\nexit 1\n")
    compiler.chmod(0o755)
    done = run_program(tmp_path, CXX=str(compiler), BARELOOP_ISA="portable")
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.splitlines()
    assert first == "3 PyTorch's operators, while the C++ kernels are built"
    assert "could not be built" in last and list(tmp_path.rglob("*.log"))


@pytest.mark.parametrize("knows_avx512", [True, False])
def test_a_compiler_without_amx_builds_the_next_instruction_set(
    cache, unloaded, tmp_path, monkeypatch, caplog, knows_avx512
):
    monkeypatch.setenv("CXX", sys.executable)  # not a compiler, but older than the logs
    monkeypatch.delenv(build.VARIABLE, raising=False)
    monkeypatch.setattr(build, "supported_isas", lambda: ["amx", "avx512", "avx2", "torch", "portable"])
    monkeypatch.setattr(kernels, "_operators", lambda isa: f"operators for {isa}")
    compile_fake = build._compile

    def compile_known(isa: str, folder: Path, verbose: bool) -> None:
        if isa == "amx" or not knows_avx512:
            raise RuntimeError("error: unrecognized option")
        compile_fake(isa, folder, verbose)

    class BuiltHere:
        """In place of a process that builds."""

        def __init__(self, isa: str) -> None:
            self.status = 0
            try:
                build.build(isa)
            except BareloopError:
                self.status = 1

        def wait(self) -> int:
            return self.status

    monkeypatch.setattr(build, "_compile", compile_known)
    monkeypatch.setattr(build, "build_in_background", BuiltHere)
    assert build.choose_isa() == "amx"
    kernels._build_and_load("amx")
    kernels.adopt()
    failed = sorted(path.name.split("-")[0] for path in tmp_path.rglob("*.log"))
    if knows_avx512:
        assert failed == ["amx"] and cache == ["avx512"]
        assert kernels.describe() == "C++ kernels (avx512)" and kernels._active_ops == "operators for avx512"
        assert build.choose_isa() == "avx512"  # in the next process, at once
    else:
        assert failed == ["amx", "avx512"]
        assert "could not be built" in kernels.describe() and "avx512" in kernels.describe()
        assert len(caplog.records) == 1


@pytest.mark.parametrize("value", ["sse9", "avx512"])
def test_an_unknown_instruction_set_is_refused_with_the_supported_ones(value, monkeypatch):
    monkeypatch.setenv(build.VARIABLE, value)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    with pytest.raises(BareloopError, match=f"BARELOOP_ISA={value} .*; use avx2, (torch, portable|portable, torch)"):
        build.choose_isa()
