"""Build the C++ kernels: one library per instruction set, source version and torch version, in the user's cache.

`python -m engine.kernels.build [ISA]` builds one now, and shows the compiler's output.
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
from functools import cache
from pathlib import Path

import torch

from engine.runtime.errors import BareloopError, UsageError
from engine.runtime.files import exclusive, user_cache, write_atomic

SOURCES = Path(__file__).parent / "cpu"
VARIABLE = "BARELOOP_ISA"

# Compiler flags for each instruction set. CPU_CAPABILITY selects the width of ATen's vectors.
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")
AMX = (*AVX512, "-mavx512vnni", "-mavx512bf16", "-mamx-tile", "-mamx-bf16", "-mamx-int8", "-DBARELOOP_AMX")
FLAGS = {
    "amx": (*AMX, "-DCPU_CAPABILITY=AVX512", "-DCPU_CAPABILITY_AVX512"),
    "avx512": (*AVX512, "-DCPU_CAPABILITY=AVX512", "-DCPU_CAPABILITY_AVX512"),
    "avx2": (*AVX2, "-DCPU_CAPABILITY=AVX2", "-DCPU_CAPABILITY_AVX2"),
    "portable": ("-DCPU_CAPABILITY=DEFAULT", "-DCPU_CAPABILITY_DEFAULT"),
}


def choose_isa() -> str:
    """The instruction set named by `BARELOOP_ISA`, else the best of this CPU. A compiler may be too old for AMX.

    Raises `UsageError` if the named one is unknown, or this CPU does not have it.
    """
    forced = os.environ.get(VARIABLE)
    if forced and forced not in supported_isas():
        problem = "is unknown" if forced not in FLAGS else "is not supported by this CPU"
        raise UsageError(f"{VARIABLE}={forced} {problem}; use {', '.join(supported_isas())}")
    best = supported_isas()[0]
    return forced or ("avx512" if best == "amx" and has_failed(best) else best)


def supported_isas() -> list[str]:
    """The instruction sets of this CPU, the best first.

    `portable` has vectors only on ARM; elsewhere PyTorch's operators ("torch") are faster.
    """
    vectors = {"AVX512": ["avx512", "avx2"], "AVX2": ["avx2"]}.get(torch.backends.cpu.get_cpu_capability(), [])
    if vectors[:1] == ["avx512"] and _can_use_amx():
        vectors.insert(0, "amx")
    arm = platform.machine().lower() in ("arm64", "aarch64")
    return [*vectors, *(("portable", "torch") if arm else ("torch", "portable"))]


@cache
def _can_use_amx() -> bool:
    """Whether this CPU has AMX tiles, and the system lets this process use them, which it asks for."""
    return torch.cpu._is_vnni_supported() and torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx()


def namespace(isa: str) -> str:
    """The namespace of the operators: `torch.ops.bareloop_avx2`."""
    return f"bareloop_{isa}"


def compiler_flags(isa: str) -> list[str]:
    """All compiler flags for one instruction set."""
    flags = FLAGS[isa]
    if isa == "avx512" and torch.cpu._is_vnni_supported():
        flags = (*flags, "-mavx512vnni")
    threads = ("-Xclang", "-fopenmp") if sys.platform == "darwin" else ("-fopenmp",)  # torch's pool is OpenMP's
    return ["-O3", "-std=c++20", *threads, *flags, f"-DBARELOOP_OPS={namespace(isa)}"]


def library_path(isa: str) -> Path:
    """Where the library is or will be. The path has a hash of the sources, the flags and torch's version."""
    parts = [platform.machine(), torch.__version__, *compiler_flags(isa)]
    content = [path.read_bytes() for path in sorted(SOURCES.glob("*.[ch]*"))]
    key = hashlib.sha256(b"\0".join([*(part.encode() for part in parts), *content])).hexdigest()
    return cache_folder() / f"{isa}-{key[:16]}" / f"{namespace(isa)}.so"


def obstacle(isa: str) -> str | None:
    """Why the library cannot be built here, in one line; None if there is no known reason."""
    if os.name != "posix":
        return f"the C++ kernels are not built on {platform.system()}"
    if _executable() is None:
        return f"no C++ compiler ({compiler()}): install g++ or clang"
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if has_failed(isa):
            return f"the C++ kernels could not be built; see {_log_path(isa)}, and delete it to try again"
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return f"the C++ kernels cannot be written to {folder} ({error.strerror})"
    return None


def compiler() -> str:
    """The C++ compiler: `CXX` if set. On Linux g++ before others, because its OpenMP runtime is torch's."""
    default = "g++" if sys.platform == "linux" and shutil.which("g++") else "c++"
    return os.environ.get("CXX", "").strip() or default


def _executable() -> str | None:
    return shutil.which(shlex.split(compiler())[0])


def has_failed(isa: str) -> bool:
    """Whether a build of these sources has failed with this compiler."""
    log, executable = _log_path(isa), _executable()
    try:
        return executable is not None and log.exists() and log.stat().st_mtime > Path(executable).stat().st_ctime
    except OSError:
        return False


def is_built(isa: str) -> bool:
    """Whether the library exists."""
    try:
        return library_path(isa).exists()
    except OSError:  # another user's folder
        return False


def build_in_background(isa: str) -> subprocess.Popen[bytes]:
    """Start the build as a process that neither Ctrl-C nor the end of this process stops, so that short runs build it
    too.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "engine.kernels.build", isa],
        cwd=SOURCES.parents[2],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def build(isa: str, verbose: bool = False) -> None:
    """Build the library unless it exists. One process at a time builds; the others wait for its lock.

    Raises `BareloopError` if the compiler fails; its output is in the log.
    """
    target = library_path(isa)
    if target.exists():
        return
    folder = target.parent
    with exclusive(folder.with_suffix(".lock")):
        if target.exists():
            return
        draft = folder.with_suffix(".draft")
        try:
            shutil.rmtree(draft, ignore_errors=True)  # left by a killed process
            draft.mkdir()
            _compile(isa, draft, verbose)
            draft.rename(folder)
            _log_path(isa).unlink(missing_ok=True)
        except Exception as error:
            write_atomic(_log_path(isa), f"{error}\n")
            raise BareloopError(f"the C++ kernels could not be built; see {_log_path(isa)}") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _compile(isa: str, folder: Path, verbose: bool) -> None:
    """Compile with torch's extension builder, which knows torch's headers and their flags."""
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


def _log_path(isa: str) -> Path:
    return library_path(isa).parent.with_suffix(".log")


def cache_folder() -> Path:
    """The folder of the libraries."""
    return user_cache("kernels")


if __name__ == "__main__":
    os.nice(10)  # let interactive work on this machine go first
    build(sys.argv[1] if len(sys.argv) > 1 else choose_isa(), verbose=True)
