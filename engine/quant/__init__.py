"""Weight formats: matrices in fewer bits. This file knows only their names, so that flags need no torch.

`base` says what a format is, `panels` has int8 and int4, `torch_packed` the same for a CPU without a compiler,
`bnb` bitsandbytes' formats, and `choice` gives every matrix of a model its own.
"""

from engine.runtime.errors import UsageError

OWN = ("int8", "int4")
BITSANDBYTES = ("nf4", "fp4", "nf4-double", "fp4-double", "llm.int8")  # double: the scales are quantized once more
QUANTS = ("none", *OWN, *BITSANDBYTES)
ALIASES = {"8bit": "llm.int8", "4bit": "nf4"}


def canonical(quant: str) -> str:
    """A format's own name; raises one line for an unknown one."""
    name = ALIASES.get(quant, quant)
    if name not in QUANTS:
        raise UsageError(f"unknown weight format {quant!r}; use {', '.join((*QUANTS, *ALIASES))}")
    return name
