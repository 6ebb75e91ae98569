"""Weight formats: matrices in fewer bits. This file has only their names, so that flags need no torch.

`base` defines what a format is; `panels` has int8 and int4, `torch_packed` the same for a CPU without a compiler,
`bitsandbytes` that library's formats, `tables` its nf4 and fp4 in panels, `gguf` the blocks of GGUF files as they are.
Which matrix of a model gets which format: engine/checkpoints/weight_formats.py.
"""

from engine.runtime.errors import UsageError, quote

BUILTIN = ("int8", "int4")
BITSANDBYTES = ("nf4", "fp4", "nf4-double", "fp4-double", "llm.int8")  # double: the scales are quantized, too
GGUF = "gguf"  # the file's own blocks, on a CPU
QUANTS = ("none", *BUILTIN, *BITSANDBYTES, GGUF)
AUTO = "auto"  # `gguf` for a GGUF file in its types on a CPU with the C++ kernels; for any other model `none`
ALIASES = {"8bit": "llm.int8", "4bit": "nf4"}


def canonical(quant: str, also: tuple[str, ...] = ()) -> str:
    """The format's name without aliases. Raises `UsageError` for an unknown one, unless it is in `also`."""
    name = ALIASES.get(quant, quant)
    if name not in (*also, *QUANTS):
        raise UsageError(f"unknown weight format {quote(quant)}; use {', '.join((*also, *QUANTS, *ALIASES))}")
    return name


def canonical_or_auto(quant: str) -> str:
    """The format's name without aliases, or `auto`, which depends on the model."""
    return canonical(quant, also=(AUTO,))
