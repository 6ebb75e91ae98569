"""bareloop's engine: a small LLM engine with its decode loop in plain sight.

    from engine import LLM
    llm = LLM.load("path/to/model")
    print(llm.generate(["Once upon a time"])[0].text)

Names are imported when they are first used, so that importing the package does not load torch.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# torch's OpenMP threads spin for milliseconds after each of its products, on the cores that the threads of the C++
# kernels need then. This many turns take less than one. It has an effect only if torch is imported later.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

if TYPE_CHECKING:
    from engine.decoding.completion import Completion
    from engine.decoding.grammar import Grammar
    from engine.decoding.params import SamplingParams
    from engine.llm import LLM
    from engine.runtime.errors import BareloopError

__all__ = ["LLM", "BareloopError", "Completion", "Grammar", "SamplingParams"]

_HOMES = {
    "LLM": "engine.llm",
    "BareloopError": "engine.runtime.errors",
    "Completion": "engine.decoding.completion",
    "Grammar": "engine.decoding.grammar",
    "SamplingParams": "engine.decoding.params",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
