"""How the library is built: one for each instruction set, version of the sources and of torch, in the user's cache.

python -m engine.kernels.build [ISA] builds it now, and shows what the compiler says.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from engine.errors import BareloopError, UsageError
from engine.files import exclusive, write_atomic

SOURCES = Path(__file__).parent
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
    """The paths of this CPU, the best one first."""
    has = torch.backends.cpu.get_cpu_capability()
    return [*{"AVX512": ["avx512", "avx2"], "AVX2": ["avx2"]}.get(has, []), "portable", "torch"]


def namespace(isa: str) -> str:
    """Of the operators: `torch.ops.bareloop_avx2`."""
    return f"bareloop_{isa}"


def compiler_flags(isa: str) -> list[str]:
    """For one path."""
    own = FLAGS[isa]
    if isa == "avx512" and torch.cpu._is_avx512_bf16_supported():
        own = (*own, "-mavx512bf16")
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
    log = _log(isa)
    compiler = os.environ.get("CXX", "c++")
    if os.name != "posix":
        return f"the C++ kernels are not built on {platform.system()}"
    if shutil.which(compiler) is None:
        return f"no C++ compiler ({compiler}): install g++ or clang"
    if log.exists():
        return f"the C++ kernels could not be built; {log} says why, and they are tried again without it"
    return None


def in_background(isa: str) -> subprocess.Popen[bytes]:
    """The build as a process that neither Ctrl-C nor our end stops, so that short runs get it done too."""
    return subprocess.Popen(
        [sys.executable, "-m", "engine.kernels.build", isa],
        cwd=SOURCES.parents[1],
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
        shutil.rmtree(draft, ignore_errors=True)  # what a process left that was killed
        draft.mkdir()
        try:
            _compile(isa, draft, verbose)
            draft.rename(place)
        except Exception as error:
            write_atomic(_log(isa), f"{error}\n")
            raise BareloopError(f"the C++ kernels could not be built; {_log(isa)} says why") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _compile(isa: str, folder: Path, verbose: bool) -> None:
    """By torch's own builder, which knows its headers and the flags that belong to them."""
    import ninja
    from torch.utils import cpp_extension

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
    try:
        import platformdirs
    except ImportError:
        return Path(tempfile.gettempdir()) / "bareloop" / "kernels"
    return platformdirs.user_cache_path("bareloop", appauthor=False) / "kernels"


if __name__ == "__main__":
    os.nice(10)  # what else runs here comes first
    build(sys.argv[1] if len(sys.argv) > 1 else choose_isa(), verbose=True)
