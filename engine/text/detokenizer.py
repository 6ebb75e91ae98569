"""Ids -> text, token by token: each piece as soon as it is certain, in time linear in the ids.

The pieces together are what the tokenizer makes of all ids at once. Three kinds of tokenizers need three ways:
byte-level BPE (GPT-2, Llama 3, Qwen, OLMo), where tokens are bytes and a character may span several;
SentencePiece's BPE (Llama 2, Mistral), where unknown characters are runs of <0xXX> tokens; and whatever else
a tokenizer.json may hold, by decoding a short window again.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

WINDOW = 8  # ids before a piece that `Windowed` decodes along with it
REPLACEMENT = "\ufffd"
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Detokenizer(Protocol):
    """One text in the making."""

    def push(self, token_id: int) -> str:
        """The text that this id makes certain; none where it is only a part of a character."""

    def flush(self) -> str:
        """What is still held back, now that no more ids come."""


def byte_table() -> dict[str, int]:
    """GPT-2's stand-ins: the printable character that writes each byte in a byte-level vocabulary."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def piece_bytes(token: str, table: Mapping[str, int]) -> bytes:
    """The bytes of a byte-level token; added tokens are written as they are."""
    if all(character in table for character in token):
        return bytes(table[character] for character in token)
    return token.encode()


class ByteLevel:
    """Tokens are bytes: an incremental UTF-8 decoder does it all. `pieces` has no entry for skipped ids."""

    def __init__(self, pieces: Mapping[int, bytes]) -> None:
        self.pieces = pieces
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self.decoder.decode(self.pieces.get(token_id, b""))

    def flush(self) -> str:
        return self.decoder.decode(b"", final=True)


class SentencePiece:
    """▁ is a space, and a run of byte tokens is one text: if any of it is no UTF-8, every byte of it is U+FFFD.

    A text's first space is the tokenizer's own and is dropped, unless the text `continues` another.
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
    """Decode a few ids before along with the new ones, and take what is new."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self.decode = decode
        self.before: list[int] = []
        self.held: list[int] = []

    def push(self, token_id: int) -> str:
        self.held.append(token_id)
        text = self._new_text()
        if text.endswith(REPLACEMENT) and len(self.held) < WINDOW:
            return ""
        self.before = (self.before + self.held)[-WINDOW:]
        self.held = []
        return text

    def flush(self) -> str:
        return self._new_text() if self.held else ""

    def _new_text(self) -> str:
        return self.decode(self.before + self.held)[len(self.decode(self.before)) :]


class StopStrings:
    """Text with an end: passes on what can be no part of a stop string, and cuts at the first one found."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = stops
        self.held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """The text that is certain not to belong to a stop string."""
        if self.found is not None:
            return ""
        text = self.held + text
        hits = [(at, -len(stop), stop) for stop in self.stops if (at := text.find(stop)) >= 0]
        if hits:
            at, _, self.found = min(hits)
            self.held = ""
            return text[:at]
        keep = max((_overlap(text, stop) for stop in self.stops), default=0)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, now that no more text comes."""
        held, self.held = self.held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The longest end of the text that begins a stop string."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
