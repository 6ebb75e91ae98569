"""Streaming detokenizers: token ids to text, each piece as soon as it is certain, in linear time.

The pieces together equal the decoding of all ids at once. There is one class for each kind of tokenizer: byte-level BPE
(GPT-2, Llama 3, Qwen, OLMo), where tokens are bytes and a character may span several; SentencePiece BPE (Llama 2,
Mistral), where unknown characters are runs of <0xXX> tokens; and all others, by decoding a short window again.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

WINDOW = 8  # previous ids that `Windowed` decodes along with a piece
REPLACEMENT = "\ufffd"
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Detokenizer(Protocol):
    """The interface of a streaming detokenizer, for one text."""

    def push(self, token_id: int) -> str:
        """The text that this id completes; empty if it is only a part of a character."""

    def flush(self) -> str:
        """The pending text, at the end of the ids."""


def byte_table() -> dict[str, int]:
    """GPT-2's mapping: the printable character that stands for each byte in a byte-level vocabulary."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def piece_bytes(token: str, table: Mapping[str, int]) -> bytes:
    """The bytes of a byte-level token; added tokens are plain text."""
    if all(character in table for character in token):
        return bytes(table[character] for character in token)
    return token.encode()


def sentencepiece_bytes(token: str) -> bytes:
    """The bytes of a SentencePiece token inside a text: ▁ is a space, <0xXX> is a byte."""
    match = BYTE_TOKEN.fullmatch(token)
    return bytes.fromhex(match[1]) if match else token.replace("▁", " ").encode()


class ByteLevel:
    """For tokens that are bytes: an incremental UTF-8 decoder. `pieces` has no entry for skipped ids."""

    def __init__(self, pieces: Mapping[int, bytes]) -> None:
        self.pieces = pieces
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self.decoder.decode(self.pieces.get(token_id, b""))

    def flush(self) -> str:
        return self.decoder.decode(b"", final=True)


class SentencePiece:
    """▁ is a space. A run of byte tokens is decoded together; if it is not UTF-8, every byte becomes U+FFFD.

    The first space of a text was added by the tokenizer and is dropped, unless the text `continues` another.
    """

    def __init__(self, pieces: Mapping[int, str], continues: bool) -> None:
        self.pieces = pieces
        self.run = bytearray()
        self.at_start = not continues

    def push(self, token_id: int) -> str:
        piece = self.pieces.get(token_id)
        if piece is None:
            return ""
        if byte := BYTE_TOKEN.fullmatch(piece):
            self.run.append(int(byte[1], 16))
            return ""
        return self._emit(self._end_run() + piece.replace("▁", " "))

    def flush(self) -> str:
        return self._emit(self._end_run())

    def _end_run(self) -> str:
        run, self.run = bytes(self.run), bytearray()
        try:
            return run.decode()
        except UnicodeDecodeError:
            return REPLACEMENT * len(run)

    def _emit(self, text: str) -> str:
        if self.at_start and text:
            self.at_start = False
            return text.removeprefix(" ")
        return text


class Windowed:
    """For all other tokenizers: decode the last few ids together with the new ones, and return the new part."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self.decode = decode
        self.context: list[int] = []
        self.pending: list[int] = []

    def push(self, token_id: int) -> str:
        self.pending.append(token_id)
        text = self._new_text()
        if text.endswith(REPLACEMENT) and len(self.pending) < WINDOW:
            return ""
        self.context = (self.context + self.pending)[-WINDOW:]
        self.pending = []
        return text

    def flush(self) -> str:
        return self._new_text() if self.pending else ""

    def _new_text(self) -> str:
        return self.decode(self.context + self.pending)[len(self.decode(self.context)) :]


class StopStrings:
    """Cuts streamed text at the first stop string, and holds back text that may be the start of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = stops
        self.pending = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """Add text. Return the part that is certainly not in a stop string."""
        if self.found is not None:
            return ""
        text = self.pending + text
        matches = [(index, -len(stop), stop) for stop in self.stops if (index := text.find(stop)) >= 0]
        if matches:
            index, _, self.found = min(matches)
            self.pending = ""
            return text[:index]
        keep = max((_overlap(text, stop) for stop in self.stops), default=0)
        self.pending = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """The pending text, at the end of the text."""
        pending, self.pending = self.pending, ""
        return pending


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text that is the start of a stop string."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
