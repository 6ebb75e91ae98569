"""A tokenizer's tokens as llguidance needs them: their bytes, and how a text is split into them."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from engine.runtime.errors import BareloopError
from engine.text.detokenizer import ByteLevel, SentencePiece, sentencepiece_bytes
from engine.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher

Bits = NDArray[np.uint8]  # one bit per token, the lowest first
DEAD_END = "no token can follow"


class Vocabulary:
    """The tokens of a model that may be a part of a text: no control tokens, no EOS tokens, no padded entries."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos: frozenset[int]) -> None:
        """`vocab_size`: of the model. Raises `BareloopError` if the tokenizer is of an unknown kind."""
        from llguidance import LLTokenizer, TokenizerWrapper

        splitter = _Splitter(tokenizer, vocab_size, eos)
        self.pieces = splitter.tokens
        self.end = splitter.eos_token_id  # a further bit of masks: whether the text may end
        self.backend = LLTokenizer(TokenizerWrapper(splitter))
        self.text = _bits([token < vocab_size and piece != b"" for token, piece in enumerate(self.pieces)])
        self.after_space = _bits([piece.startswith(b" ") for piece in self.pieces])

    @staticmethod
    def cached(tokenizer: Tokenizer, vocab_size: int, eos: frozenset[int]) -> Vocabulary:
        """The same object for the same arguments: creating one takes up to a second. It goes with its tokenizer.

        If several threads want it at once, one creates it.
        """
        key = vocab_size, eos
        if (found := _VOCABULARIES.get(tokenizer, {}).get(key)) is None:  # those that exist are had without waiting
            with _CREATING:
                known = _VOCABULARIES.setdefault(tokenizer, {})
                found = known[key] = known.get(key) or Vocabulary(tokenizer, vocab_size, eos)
        return found

    def is_text(self, token: int) -> bool:
        """Whether a token may be a part of a text."""
        return 0 <= token < self.end and bool(self.text[token >> 3] >> (token & 7) & 1)

    def matcher(self, definition: str) -> LLMatcher:
        """llguidance's matcher of a grammar, which prints nothing."""
        from llguidance import LLMatcher

        return LLMatcher(self.backend, definition, log_level=0)

    def read(self, matcher: LLMatcher) -> tuple[Bits, bool]:
        """The tokens with which a text can go on, and whether it may end here. Raises `BareloopError` at a limit."""
        bits = np.zeros_like(self.text)
        matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        if matcher.is_error():  # which sets the bit of the end
            if (error := reason(matcher.get_error())) != DEAD_END:
                raise BareloopError(error)
            return np.zeros_like(self.text), False
        return bits & self.text, bool(bits[self.end >> 3] >> (self.end & 7) & 1)


_CREATING = threading.Lock()
_VOCABULARIES: WeakKeyDictionary[Tokenizer, dict[tuple[int, frozenset[int]], Vocabulary]] = WeakKeyDictionary()


class _Splitter:
    """What llguidance asks a tokenizer for. It must not refer to the `Vocabulary`: such a cycle is never freed."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos: frozenset[int]) -> None:
        detokenizer = tokenizer.detokenizer(continues=True)
        if isinstance(detokenizer, ByteLevel):
            pieces: Mapping[int, bytes] = detokenizer.pieces
        elif isinstance(detokenizer, SentencePiece):
            pieces = {token: sentencepiece_bytes(piece) for token, piece in detokenizer.pieces.items()}
        else:
            raise BareloopError("a grammar needs a byte-level or SentencePiece tokenizer, and this model has another")
        self.is_byte_level = isinstance(detokenizer, ByteLevel)
        self.library = tokenizer.backend
        added = self.library.get_added_tokens_decoder()
        self.added = {added[token].content: token for token in added if token in pieces}  # <tool_call>, runs of spaces
        longest_first = sorted(self.added, key=len, reverse=True)
        self.split = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})").split
        size = max(vocab_size, max(pieces, default=0) + 1)
        self.eos_token_id, self.unknown = size, size + 1  # beyond all tokens
        self.tokens = [b"" if token in eos else pieces.get(token, b"") for token in range(size + 2)]

    def __call__(self, text: bytes) -> list[int]:
        """The tokens of a part of a text, in which nothing is a control token."""
        tokens: list[int] = []
        try:
            for part in self.split(text.decode()):
                if part in self.added:
                    tokens.append(self.added[part])
                    continue
                words = [part.replace(" ", "▁")]
                if self.is_byte_level:
                    words = [word for word, _ in self.library.pre_tokenizer.pre_tokenize_str(part)]
                tokens += [token.id for word in words for token in self.library.model.tokenize(word)]
            if b"".join(self.tokens[token] for token in tokens) == text:
                return tokens
        except Exception:  # the library raises no narrower class, and llguidance must not see one
            pass
        return self._longest(text)  # the tokenizer adds a space or lacks a character

    def _longest(self, text: bytes) -> list[int]:
        """Tokens of a text: at each place the longest that fits. Where none does, `unknown` ends them."""
        tokens, start = [], 0
        while start < len(text):
            ends = range(min(len(text), start + self._longest_piece), start, -1)
            token = next((self._ids[text[start:end]] for end in ends if text[start:end] in self._ids), self.unknown)
            tokens.append(token)
            start += len(self.tokens[token]) or len(text)
        return tokens

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        return {piece: token for token, piece in enumerate(self.tokens) if piece}

    @cached_property
    def _longest_piece(self) -> int:
        return max(map(len, self.tokens))


def _bits(flags: list[bool]) -> Bits:
    bits = np.packbits(np.array(flags), bitorder="little")
    return np.pad(bits, (0, -len(bits) % 4))  # llguidance writes words of 32 bits


def reason(error: str) -> str:
    """The line of llguidance's error message that says what is wrong."""
    lines = error.splitlines()
    of_regex = next((line for line in lines if line.startswith("error: ")), lines[0])
    line = of_regex.removeprefix("error: ").rpartition("(in regex): ")[2]
    return DEAD_END if line == "NoExtensionBias" else line
