"""Documents as sections of text, each with its place: plain text, Markdown, HTML and PDF. Loads without torch."""

from __future__ import annotations

import codecs
import logging
import os
import re
import stat
from html.parser import HTMLParser
from pathlib import Path

from engine.runtime.errors import BareloopError

MAX_BYTES = 64 << 20  # of a file
Sections = list[tuple[str, str]]  # place and text

MARKDOWN, HTML, PDF = (".md", ".markdown"), (".html", ".htm", ".xhtml"), (".pdf",)
HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*$")
UNDERLINE = re.compile(r" {0,3}(=+|-{2,})[ \t]*$")
FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
CHARSET = re.compile(rb"charset=[\"']?([\w.:-]+)", re.IGNORECASE)
BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
MAX_PLACE = 120  # characters


def read_file(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """The content of a regular file. Raises `BareloopError` for links, other kinds of files and large ones."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        if path.is_symlink():
            raise BareloopError("a link, which is not followed")
        with os.fdopen(os.open(path, flags), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BareloopError("not a regular file")
            if status.st_size > max_bytes:
                raise BareloopError(f"{status.st_size / 2**20:,.1f} MB; the limit is {max_bytes / 2**20:,.0f} MB")
            return file.read(max_bytes)
    except OSError as error:
        raise BareloopError(error.strerror or str(error)) from error


def read_document(path: Path, content: bytes | None = None) -> Sections:
    """The sections of a document, by its suffix; anything unknown is read as plain text.

    `content`: of the file, if it has been read. A place is the headings above a section, the page of a PDF, or empty.
    Raises `BareloopError` for a file that has no text, or cannot be read.
    """
    content = read_file(path) if content is None else content
    suffix = path.suffix.lower()
    if suffix in PDF or content.startswith(b"%PDF-"):
        return _read_pdf(content)
    if suffix in HTML:
        return read_html(_decode_html(content))
    text = _decode(content)
    return read_markdown(text) if suffix in MARKDOWN else [("", text)] if text.strip() else []


def _decode(content: bytes) -> str:
    encoding = next((name for mark, name in BOMS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeError:
        raise BareloopError("not a text in UTF-8") from None
    if "\0" in text:
        raise BareloopError("a binary file")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _decode_html(content: bytes) -> str:
    """A page in UTF-8, or else in the character set that it names."""
    try:
        return _decode(content)
    except BareloopError:
        named = CHARSET.search(content[:2048])
        if named is None or b"\0" in content:
            raise
    try:
        return content.decode(named[1].decode(), errors="replace")
    except LookupError:
        raise BareloopError("not a text in UTF-8, nor in the character set that it names") from None


class _Sections:
    """Collects lines under the headings above them."""

    def __init__(self) -> None:
        self.result: Sections = []
        self._headings: list[tuple[int, str]] = []  # those above, with their levels
        self._lines: list[str] = []
        self._has_body = False

    def line(self, line: str) -> None:
        """Add a line. Of empty lines below a heading one is kept."""
        if line.strip() or self._has_body or self._lines[-1:] != [""]:
            self._lines.append(line)
        self._has_body = self._has_body or bool(line.strip())

    def heading(self, level: int, title: str, line: str) -> None:
        """Begin a section. Its text begins with the heading; headings without a text of their own stay in front."""
        if self._has_body:
            self.close()
        self._headings = [*(above for above in self._headings if above[0] < level), (level, title)]
        self._lines += [line, ""]

    def close(self) -> None:
        text = "\n".join(self._lines).strip()
        if text:
            place = " > ".join(title for _, title in self._headings if title)
            self.result.append((place if len(place) <= MAX_PLACE else f"…{place[1 - MAX_PLACE :]}", text))
        self._lines, self._has_body = [], False


def read_markdown(text: str) -> Sections:
    """Sections under their headings, with # or underlined; not those inside blocks of code."""
    sections, fence = _Sections(), ""
    lines = text.split("\n")
    number = 0
    if lines[0] == "---" and "---" in lines[1:]:  # front matter
        number = lines.index("---", 1) + 1
        for line in lines[1 : number - 1]:
            sections.line(line)
    while number < len(lines):
        line = lines[number]
        number += 1
        if mark := FENCE.match(line):
            if not fence:
                fence = mark[1]
            elif mark[1].startswith(fence) and not line.strip(" `~"):
                fence = ""
        following = lines[number] if number < len(lines) else ""
        if not fence and (heading := HEADING.match(line)):
            sections.heading(len(heading[1]), heading[2], line)
        elif not fence and _is_title(lines, number - 1) and (underline := UNDERLINE.match(following)):
            sections.heading(1 if underline[1][0] == "=" else 2, line.strip(), line.strip())
            number += 1
        else:
            sections.line(line)
    sections.close()
    return sections.result


def _is_title(lines: list[str], number: int) -> bool:
    """Whether an underline would make this line a heading: it is a paragraph of one line."""
    line = lines[number]
    return bool(line.strip()) and line[:1] not in "-*+>|#" and (number == 0 or not lines[number - 1].strip())


def read_html(text: str) -> Sections:
    """The text of a page, without scripts and styles, in sections under their headings; the title is above them all."""
    parser = _PageParser()
    parser.feed(text)
    parser.close()
    parser.end_block()
    parser.sections.close()
    return parser.sections.result


class _PageParser(HTMLParser):
    DROPPED = frozenset({"script", "style", "template", "svg", "noscript", "iframe"})
    INLINE = frozenset(
        {"a", "abbr", "b", "bdi", "bdo", "cite", "code", "data", "del", "dfn", "em", "font", "i", "img", "ins", "kbd"}
        | {"label", "mark", "q", "s", "samp", "small", "span", "strong", "sub", "sup", "time", "tt", "u", "var", "wbr"}
    )

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.sections = _Sections()
        self._dropped: list[str] = []
        self._heading = 0  # level of the heading that is open; the title of the page has 0.5
        self._title = False
        self._preformatted = 0
        self._text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        if tag == "body":
            self._dropped = []
        if tag in self.DROPPED:
            self._dropped.append(tag)
        elif tag == "br":
            self._text.append("\n")
        elif tag in ("td", "th"):
            self._text.append(" ")
        elif tag not in self.INLINE:
            self.end_block()
            if tag == "li":
                self._text.append("- ")
            self._title = tag == "title"
            self._heading = int(tag[1]) if re.fullmatch("h[1-6]", tag) else 0
            self._preformatted += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        if tag in self._dropped:
            del self._dropped[self._dropped.index(tag) :]
        elif tag not in self.INLINE and tag not in ("br", "td", "th"):
            self.end_block()
            self._preformatted -= tag == "pre" and self._preformatted > 0

    def handle_data(self, data: str) -> None:
        if not self._dropped:
            self._text.append(data if self._preformatted else re.sub(r"\s+", " ", data))

    def end_block(self) -> None:
        """Write the text so far as a heading or a paragraph."""
        text = "".join(self._text)
        self._text = []
        if not self._preformatted:
            text = "\n".join(" ".join(line.split()) for line in text.split("\n"))
        text = text.strip("\n")
        if self._title or self._heading:
            if text.strip():
                title = " ".join(text.split())
                self.sections.heading(self._heading, title, title)
            self._title, self._heading = False, 0
        elif text.strip() not in ("", "-"):
            self.sections.line(text)
            if not text.startswith("- "):
                self.sections.line("")


def _read_pdf(content: bytes) -> Sections:
    """The text of each page."""
    try:
        import pypdf
    except ImportError:
        raise BareloopError("PDF needs the package pypdf: pip install 'bareloop[memory]'") from None
    from io import BytesIO

    logger = logging.getLogger("pypdf")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # its warnings about damaged files are not for users
    try:
        reader = pypdf.PdfReader(BytesIO(content))
        if reader.is_encrypted and not reader.decrypt(""):
            raise BareloopError("a PDF with a password")
        pages = [(f"page {number}", page.extract_text()) for number, page in enumerate(reader.pages, 1)]
    except BareloopError:
        raise
    except Exception as error:  # pypdf raises many kinds for damaged files
        raise BareloopError(f"a damaged PDF ({type(error).__name__}: {error})") from error
    finally:
        logger.setLevel(level)
    sections = [(place, text.strip()) for place, text in pages if text.strip()]
    if not sections:
        raise BareloopError("a PDF without text; its pages may be pictures")
    return sections
