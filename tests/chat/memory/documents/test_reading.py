"""Documents become sections with their places: Markdown, HTML, PDF and plain text; other files are refused."""

from __future__ import annotations

import os
import sys

import pytest

from chat.memory.documents.reading import read_document, read_file, read_html, read_markdown
from engine.runtime.errors import BareloopError

MARKDOWN = """---
title: x
---
Before.

# Guide

## Install ##
Run `pip`.
```sh
# not a heading
```
More
----
| a | b |
|---|---|
### Deep
Deep text.

Top
===
Last."""


def pdf(*pages: str) -> bytes:
    """A small PDF with a line of text on each page."""
    count = len(pages)
    kids = " ".join(f"{3 + 2 * page} 0 R" for page in range(count))
    font = 3 + 2 * count
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", f"<< /Type /Pages /Kids [{kids}] /Count {count} >>".encode()]
    for number, text in enumerate(pages):
        stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode()
        objects += [
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {4 + 2 * number} 0 R "
            f"/Resources << /Font << /F1 {font} 0 R >> >> >>".encode(),
            b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        ]
    objects.append(b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    content, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(content))
        content += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size = len(objects) + 1
    trailer = b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (size, len(content))
    return content + b"xref\n0 %d\n0000000000 65535 f \n" % size + table + trailer


def test_markdown_has_its_headings_as_places():
    below = "Run `pip`.\n```sh\n# not a heading\n```\nMore\n----\n| a | b |\n|---|---|"
    assert read_markdown(MARKDOWN) == [
        ("", "title: x\nBefore."),
        ("Guide > Install", f"# Guide\n\n## Install ##\n\n{below}"),
        ("Guide > Install > Deep", "### Deep\n\nDeep text."),
        ("Top", "Top\n\nLast."),
    ]  # fmt: skip
    assert read_markdown("Title\n-----\ntext\n# Empty") == [("Title", "Title\n\ntext"), ("Empty", "# Empty")]
    assert read_markdown("") == []
    assert read_markdown("```\n# open for ever") == [("", "```\n# open for ever")]


def test_html_has_its_text_without_scripts_and_the_nearest_headings_as_places():
    page = """<!doctype html><html><head><title>The  page</title><style>p{}</style><script>if (a<b) "<p>x</p>"</script>
    </head><body><p>Intro <b>bo</b>ld&amp;co<h2>One</h2>text<br>line<ul><li>a<li>b</ul>
    <pre>  x\n    y</pre><table><tr><td>1</td><td>2</td></tr></table>
    <noscript>no</noscript><h3>Deep</h3><div>deep<template><p>t</p></template></div><h2>Two</h2>end<!-- c --></body>"""
    assert read_html(page) == [
        ("The page", "The page\n\nIntro bold&co"),
        ("The page > One", "One\n\ntext\nline\n\n- a\n- b\n  x\n    y\n\n1 2"),
        ("The page > One > Deep", "Deep\n\ndeep"),
        ("The page > Two", "Two\n\nend"),
    ]
    assert read_html("<p>unclosed <i>tags & more") == [("", "unclosed tags & more")]
    assert read_html("<svg><text>drawn</text><body><p>shown") == [("", "shown")]
    assert read_html("<script>alert(1)") == []


def test_a_pdf_has_its_pages_as_places(tmp_path):
    pytest.importorskip("pypdf")
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf("First page", "", "Third page"))
    assert read_document(path) == [("page 1", "First page"), ("page 3", "Third page")]
    for content, line in (
        (pdf(""), "without text"),
        (b"%PDF-1.4 rubbish", "damaged PDF"),
        (pdf("x")[:90], "damaged PDF"),
    ):
        with pytest.raises(BareloopError, match=line) as refused:
            read_document(path, content)
        assert "\n" not in str(refused.value)


def test_pdf_without_pypdf_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pypdf", None)
    with pytest.raises(BareloopError, match="bareloop\\[memory\\]"):
        read_document(tmp_path / "a.pdf", pdf("x"))


@pytest.mark.parametrize(
    ("name", "content", "sections"),
    [
        ("a.txt", "Zoé\r\nb".encode(), [("", "Zoé\nb")]),
        ("a.py", b"\xef\xbb\xbfx = 1", [("", "x = 1")]),
        ("a", "Zoé".encode("utf-16"), [("", "Zoé")]),
        ("a.txt", b" \n", []),
        ("a.html", '<meta charset="latin-1"><p>Zoé'.encode("latin-1"), [("", "Zoé")]),
        ("A.HTM", "<p>Zoé".encode(), [("", "Zoé")]),
        ("a.txt", b"a\0b", "a binary file"),
        ("a.txt", b"\xff\xd8\xff\xe0", "not a text in UTF-8"),
        ("a.html", b"<meta charset=nonsense><p>\xe9", "nor in the character set that it names"),
    ],
)  # fmt: skip
def test_texts_are_decoded_or_refused(tmp_path, name, content, sections):
    path = tmp_path / name
    path.write_bytes(content)
    if isinstance(sections, list):
        assert read_document(path) == sections
        return
    with pytest.raises(BareloopError, match=sections):
        read_document(path)


def test_only_regular_files_within_the_limit_are_read(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * 100)
    assert read_file(path, 100) == b"x" * 100
    (tmp_path / "link").symlink_to(path)
    os.mkfifo(tmp_path / "pipe")
    for name, line in (
        ("link", "a link"),
        ("pipe", "not a regular file"),
        ("gone", "No such file"),
        (".", "directory|regular"),
    ):
        with pytest.raises(BareloopError, match=line):
            read_file(tmp_path / name)
    with pytest.raises(BareloopError, match="limit is 0 MB"):
        read_file(path, 99)
