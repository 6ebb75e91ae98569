"""Typed access to the metadata of a GGUF file, and a record of the keys that were read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.runtime.errors import BareloopError, quote

# Keys that change the mathematics, and the values that do not. If an architecture's reader does not read one of them, a
# file with another value is refused.
MATHEMATICS: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.scale": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "expert_count": (0,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "rope.scaling.attn_factor": (0.0, 1.0),
    "rope.scaling.yarn_attn_factor": (0.0, 1.0),
    "rope.scaling.yarn_beta_fast": (32.0,),
    "rope.scaling.yarn_beta_slow": (1.0,),
    "ssm.dt_b_c_rms": (False,),
}


class Metadata:
    """The metadata of a file. Keys are without the architecture's prefix."""

    def __init__(self, entries: Mapping[str, Any], path: object) -> None:
        self.entries = entries
        self.path = path
        self.architecture = str(entries.get("general.architecture"))
        self.read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """A value, or the default if the file has none. The key is recorded as read."""
        self.read.add(key)
        return self.entries.get(f"{self.architecture}.{key}", default)

    def integer(self, key: str, default: int | None = None, most: int = 2**31 - 1) -> int:
        """A positive integer. Raises `BareloopError` if it is missing or something else."""
        value = self.get(key, default)
        if type(value) is not int or not 0 < value <= most:
            raise self.error(f"{key} = {quote(value)} is not an integer from 1 to {most:,}")
        return value

    def number(self, key: str, default: float | None = None) -> float | None:
        """A positive finite number, or the default.

        Stored as float32: the shortest decimal that means the same is returned.
        """
        value = self.get(key, default)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 1e-30 < value < 1e30:
            raise self.error(f"{key} = {quote(value)} is not a positive number")
        return shortest(value)

    def check_mathematics(self) -> None:
        """Raise `BareloopError` if a key that was not read would change the mathematics."""
        for key, neutral in MATHEMATICS.items():
            value = self.entries.get(f"{self.architecture}.{key}")
            if key not in self.read and value is not None and value not in neutral:
                raise self.error(f"{key} = {quote(value)} is not implemented for this architecture")

    def error(self, problem: str) -> BareloopError:
        """An error about a key."""
        return BareloopError(f"{self.path}: {self.architecture}.{problem}")


def shortest(value: float) -> float:
    """The decimal with the fewest digits that rounds to the same float32: 9.999999747e-06 -> 1e-05."""
    import numpy

    return float(str(numpy.float32(value)))
