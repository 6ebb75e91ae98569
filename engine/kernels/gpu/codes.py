"""The codes of quantized weights become numbers, in Triton: two at a time where they have 16 bits."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def two_numbers(word, scale, table, GROUP: tl.constexpr, IS_TABLE: tl.constexpr, dtype: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """The numbers of the codes that begin in bits 0 and 16 of words; only those of int4 are scaled."""
    if IS_TABLE:
        low, high = entry(table, word).to(dtype), entry(table, word >> 16).to(dtype)
    elif GROUP == 0:
        low, high = _bytes(word, dtype)
    else:
        low, high = _codes(word, dtype)
        low, high = _product(low, scale), _product(high, scale)
    return low, high


@triton.jit
def entry(table, word):  # type: ignore[no-untyped-def]
    """Entries of a table for the 4-bit codes that begin in bit 0 of words."""
    return tl.load(table + (word & 15))


@triton.jit  # type: ignore[untyped-decorator]
def _codes(word, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    """The 4-bit codes that begin in bits 0 and 16 of words, minus 8.

    bfloat16 numbers from 128 and float16 numbers from 1024 are integers, with the code as their last bits.
    """
    if dtype == tl.float32:
        low, high = ((word & 15) - 8).to(dtype), ((word >> 16 & 15) - 8).to(dtype)
    elif dtype == tl.bfloat16:
        low, high = _halves(word & 0x000F000F | 0x43004300, dtype)
        low, high = _difference(low, 136.0), _difference(high, 136.0)
    else:
        low, high = _halves(word & 0x000F000F | 0x64006400, dtype)
        low, high = _difference(low, 1032.0), _difference(high, 1032.0)
    return low, high


@triton.jit  # type: ignore[untyped-decorator]
def _bytes(word, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    """Bytes 0 and 2 of words, signed: the last seven bits minus 128 times the first, as in `_codes`.

    The first bit makes 1152 of 1024; bfloat16 has only seven bits for integers from 128, but there it makes 256 of 128.
    """
    if dtype == tl.float32:
        low, high = (word << 24 >> 24).to(dtype), (word << 8 >> 24).to(dtype)
    else:
        start: tl.constexpr = 0x43004300 if dtype == tl.bfloat16 else 0x64006400
        low, high = _halves(word & 0x007F007F | start, dtype)
        low_sign, high_sign = _halves(word & 0x00800080 | start, dtype)
        low, high = _difference(low, low_sign.to(tl.float32)), _difference(high, high_sign.to(tl.float32))
    return low, high


@triton.jit  # type: ignore[untyped-decorator]
def _halves(word, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    """The two 16-bit numbers in words."""
    return word.to(tl.int16).to(dtype, bitcast=True), (word >> 16).to(tl.int16).to(dtype, bitcast=True)


# Written in float32, because Triton's interpreter has no other arithmetic of bfloat16. The result is the same, so the
# compiler uses instructions for two 16-bit numbers.
@triton.jit
def _difference(a, b):  # type: ignore[no-untyped-def]
    return (a.to(tl.float32) - b).to(a.dtype)


@triton.jit
def _product(a, b):  # type: ignore[no-untyped-def]
    return (a.to(tl.float32) * b.to(tl.float32)).to(a.dtype)
