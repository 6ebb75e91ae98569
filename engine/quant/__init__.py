"""Weight formats: matrices in fewer bits. This file has only their names, so that flags need no torch.

`base` defines what a format is; `panels` has int8 and int4, `torch_packed` the same for a CPU without a compiler,
`bitsandbytes` that library's formats, `tables` its nf4 and fp4 in panels. Which matrix of a model gets which format:
engine/checkpoints/weight_formats.py.
"""

from engine.runtime.errors import UsageError, quote

BUILTIN = ("int8", "int4")
BITSANDBYTES = ("nf4", "fp4", "nf4-double", "fp4-double", "llm.int8")  # double: the scales are quantized, too
QUANTS = ("none", *BUILTIN, *BITSANDBYTES)
ALIASES = {"8bit": "llm.int8", "4bit": "nf4"}


def canonical(quant: str) -> str:
    """The format's name without aliases. Raises `UsageError` for an unknown one."""
    name = ALIASES.get(quant, quant)
    if name not in QUANTS:
        raise UsageError(f"unknown weight format {quote(quant)}; use {', '.join((*QUANTS, *ALIASES))}")
    return name
