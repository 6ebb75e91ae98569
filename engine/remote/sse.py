"""Server-sent events: the bytes of a streamed answer -> the data of its events."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator

from engine.runtime.errors import BareloopError

MAX_EVENT = 2**24  # characters of an event; more is not an answer of a language model


def events(chunks: Iterable[bytes]) -> Iterator[str]:
    """Yield the data of each event: its `data` lines, joined by line breaks. Comments and other fields are skipped.

    Lines end with LF, CRLF or CR, and with nothing else: text may contain other line breaks, such as U+2028. An event
    ends with an empty line, or with the stream after a complete line.

    Source: the HTML standard, section 9.2. Raises `BareloopError` for an event of more than 16 Mi characters.
    """
    data: list[str] = []
    for line in lines(chunks):
        if not line:
            if data:
                yield "\n".join(data)
            data = []
            continue
        field, _, value = line.partition(":")
        if field == "data":
            data.append(value.removeprefix(" "))
            _check_size(sum(map(len, data)))
    if data:
        yield "\n".join(data)


def lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Yield complete lines of UTF-8 as soon as they have arrived. Bytes that are not UTF-8 become U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pending, follows_cr = "", False
    for chunk in chunks:
        text = decoder.decode(chunk)
        if follows_cr and text:  # an LF that belongs to the CR before it
            text = text.removeprefix("\n")
            follows_cr = False
        follows_cr = follows_cr or text.endswith("\r")
        *complete, pending = (pending + text).replace("\r\n", "\n").replace("\r", "\n").split("\n")
        yield from complete
        _check_size(len(pending))


def _check_size(characters: int) -> None:
    if characters > MAX_EVENT:
        raise BareloopError(f"the server sent an event of more than {MAX_EVENT:,} characters; use another server")
