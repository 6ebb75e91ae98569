"""How the library is built: one for each instruction set, version of the sources and of torch, in the user's cache.

python -m engine.kernels.build [ISA] builds it now, and shows what the compiler says.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from engine.runtime.errors import BareloopError, UsageError
from engine.runtime.files import exclusive, user_cache, write_atomic

SOURCES = Path(__file__).parent / "cpu"
VARIABLE = "BARELOOP_ISA"

# What the compiler may use; ATen's vectors follow CPU_CAPABILITY.
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")
FLAGS = {
    "avx512": (*AVX512, "-DCPU_CAPABILITY=AVX512", "-DCPU_CAPABILITY_AVX512"),
    "avx2": (*AVX2, "-DCPU_CAPABILITY=AVX2", "-DCPU_CAPABILITY_AVX2"),
    "portable": ("-DCPU_CAPABILITY=DEFAULT", "-DCPU_CAPABILITY_DEFAULT"),
}


def choose_isa() -> str:
    """The best path of this CPU, or the one that the variable names, if the CPU has it."""
    forced = os.environ.get(VARIABLE)
    if forced and forced not in able():
        known = "is no path" if forced not in FLAGS else "is a path that this CPU does not have"
        raise UsageError(f"{VARIABLE}={forced} {known}; use {', '.join(able())}")
    return forced or able()[0]


def able() -> list[str]:
    """The paths of this CPU, the best one first. `portable` has vectors on ARM alone; elsewhere PyTorch is faster."""
    vectors = {"AVX512": ["avx512", "avx2"], "AVX2": ["avx2"]}.get(torch.backends.cpu.get_cpu_capability(), [])
    arm = platform.machine().lower() in ("arm64", "aarch64")
    return [*vectors, *(("portable", "torch") if arm else ("torch", "portable"))]


def namespace(isa: str) -> str:
    """Of the operators: `torch.ops.bareloop_avx2`."""
    return f"bareloop_{isa}"


def compiler_flags(isa: str) -> list[str]:
    """For one path."""
    own = FLAGS[isa]
    if isa == "avx512" and torch.cpu._is_avx512_bf16_supported():
        own = (*own, "-mavx512bf16")
    if isa == "avx512" and torch.cpu._is_vnni_supported():
        own = (*own, "-mavx512vnni")
    threads = ("-Xclang", "-fopenmp") if sys.platform == "darwin" else ("-fopenmp",)  # torch's pool is OpenMP's
    return ["-O3", *threads, *own, f"-DBARELOOP_OPS={namespace(isa)}"]


def library(isa: str) -> Path:
    """Where the library of this path, these sources and this torch is, or will be."""
    parts = [platform.machine(), torch.__version__, *compiler_flags(isa)]
    content = [path.read_bytes() for path in sorted(SOURCES.glob("*.[ch]*"))]
    key = hashlib.sha256(b"\0".join([*(part.encode() for part in parts), *content])).hexdigest()
    return cache_folder() / f"{isa}-{key[:16]}" / f"{namespace(isa)}.so"


def obstacle(isa: str) -> str | None:
    """Why it cannot be built here, in one line; None if nothing is known against it."""
    if os.name != "posix":
        return f"the C++ kernels are not built on {platform.system()}"
    found = shutil.which(shlex.split(compiler())[0])
    if found is None:
        return f"no C++ compiler ({compiler()}): install g++ or clang"
    log, folder = _log(isa), cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if log.exists() and log.stat().st_mtime > Path(found).stat().st_ctime:  # by this compiler
            return f"the C++ kernels could not be built; {log} says why, and they are tried again without it"
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return f"the C++ kernels cannot be kept in {folder} ({error.strerror})"
    return None


def compiler() -> str:
    """Of C++: the one that CXX names. On Linux g++ before others, because its threads are torch's."""
    usual = "g++" if sys.platform == "linux" and shutil.which("g++") else "c++"
    return os.environ.get("CXX", "").strip() or usual


def is_built(isa: str) -> bool:
    """Whether the library is there to be loaded."""
    try:
        return library(isa).exists()
    except OSError:  # a folder of somebody else's
        return False


def in_background(isa: str) -> subprocess.Popen[bytes]:
    """The build as a process that neither Ctrl-C nor our end stops, so that short runs get it done too."""
    return subprocess.Popen(
        [sys.executable, "-m", "engine.kernels.build", isa],
        cwd=SOURCES.parents[2],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def build(isa: str, verbose: bool = False) -> None:
    """Build it, unless it is there. One process at a time does; a killed one is nothing to wait for."""
    target = library(isa)
    if target.exists():
        return
    place = target.parent
    with exclusive(place.with_suffix(".lock")):
        if target.exists():
            return
        draft = place.with_suffix(".draft")
        try:
            shutil.rmtree(draft, ignore_errors=True)  # what a process left that was killed
            draft.mkdir()
            _compile(isa, draft, verbose)
            draft.rename(place)
            _log(isa).unlink(missing_ok=True)
        except Exception as error:
            write_atomic(_log(isa), f"{error}\n")
            raise BareloopError(f"the C++ kernels could not be built; {_log(isa)} says why") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _compile(isa: str, folder: Path, verbose: bool) -> None:
    """By torch's own builder, which knows its headers and the flags that belong to them."""
    import ninja
    from torch.utils import cpp_extension

    os.environ["CXX"] = compiler()
    os.environ["PATH"] = os.pathsep.join((ninja.BIN_DIR, os.environ.get("PATH", "")))
    cpp_extension.load(
        namespace(isa),
        [str(SOURCES / "library.cpp")],
        extra_cflags=compiler_flags(isa),
        extra_ldflags=["-lomp"] if sys.platform == "darwin" else ["-fopenmp"],
        build_directory=str(folder),
        is_python_module=False,
        verbose=verbose,
    )


def _log(isa: str) -> Path:
    return library(isa).parent.with_suffix(".log")


def cache_folder() -> Path:
    """Where libraries are kept."""
    return user_cache("kernels")


if __name__ == "__main__":
    os.nice(10)  # what else runs here comes first
    build(sys.argv[1] if len(sys.argv) > 1 else choose_isa(), verbose=True)
