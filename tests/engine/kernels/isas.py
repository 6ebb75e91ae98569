"""The instruction sets that the tests run."""

from __future__ import annotations

from engine.kernels import build


def tested_isas() -> list[str]:
    """Those of this CPU, but for avx512 if there is amx, which has all of its code."""
    isas = set(build.supported_isas())
    return [isa for isa in build.FLAGS if isa in isas and not (isa == "avx512" and "amx" in isas)]
