"""The page's files without a browser: weight, names, no other hosts, nothing inline, licences."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "chat/web/page"
FILES = sorted(path for path in PAGE.rglob("*") if path.is_file())
SERVED = [path for path in FILES if path.suffix in {".html", ".mjs", ".js", ".css", ".svg"}]
OWN = [path for path in SERVED if path.parent.name != "vendor"]
MODULES = [path for path in OWN if path.suffix == ".mjs"]
IMPORT = re.compile(r"""^(?:import|export) [^"'();=]*["']([^"']+)["'];""", re.MULTILINE)
LATER = re.compile(r"""\bimport\(["']([^"']+)["']\)""")
NAMED = re.compile(r"""(?:src|href)=["']/static/([^"'#]+)|["'`]/static/([^"'`#]+)""")


def name(path: Path) -> str:
    return path.relative_to(PAGE).as_posix()


def used_by(path: Path, *, later: bool = True) -> set[str]:
    """The names that a file asks the server for, relative to /static/; `later`: also those that it may need later."""
    text = path.read_text()
    absolute = {first or second for first, second in NAMED.findall(text)}
    imports = IMPORT.findall(text) + (LATER.findall(text) if later else []) if path.suffix == ".mjs" else []
    return absolute | {(path.parent / each).resolve().relative_to(PAGE.resolve()).as_posix() for each in imports}


def test_names_are_found_in_imports_of_all_forms():
    assert {"app.mjs", "style.css", "icons.svg"} <= used_by(PAGE / "index.html")
    assert {"base/api.mjs", "conversation/conversation.mjs", "inside/inside.mjs"} <= used_by(PAGE / "app.mjs")
    assert "inside/inside.mjs" not in used_by(PAGE / "app.mjs", later=False)
    assert {"vendor/marked.mjs", "vendor/purify.min.js"} <= used_by(PAGE / "markdown/markdown.mjs")


def test_what_the_page_loads_at_first_weighs_less_than_250_kb():
    loaded, pending = {"index.html"}, ["index.html"]
    while pending:
        new = used_by(PAGE / pending.pop(), later=False) - loaded
        loaded |= new
        pending += new
    assert "vendor/marked.mjs" in loaded
    assert sum((PAGE / each).stat().st_size for each in loaded) < 250_000


@pytest.mark.parametrize("path", [PAGE / "index.html", *MODULES], ids=name)
def test_every_file_that_a_page_file_asks_for_is_served(path):
    from chat.web.pages import STATIC

    for used in used_by(path):
        assert (PAGE / used).is_file()
        assert used in STATIC


def test_everything_that_is_there_is_used():
    used = {each for path in (PAGE / "index.html", *MODULES) for each in used_by(path)}
    assert {name(path) for path in SERVED} - {"index.html"} == used


@pytest.mark.parametrize("path", OWN, ids=name)
def test_page_files_name_no_other_host(path):
    text = path.read_text().replace("http://www.w3.org/2000/svg", "")
    assert re.findall(r"(?:https?:|wss?:)?//[a-z0-9-]+\.[a-z]{2,}\S*", text) == []


def test_the_document_has_nothing_inline_that_the_policy_would_stop():
    text = (PAGE / "index.html").read_text()
    assert re.findall(r"<style\b|\sstyle=|\son[a-z]+=|javascript:", text, re.IGNORECASE) == []
    assert [tag for tag in re.findall(r"<script\b[^>]*>", text) if " src=" not in tag] == []


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_modules_make_no_code_from_text(path):
    text = path.read_text()
    assert re.findall(r"\beval\(|new Function|setAttribute\(\s*[\"'](?:style|on[a-z]+)|document\.write", text) == []
    if path.name != "markdown.mjs":  # where what is inserted has been sanitised
        assert re.findall(r"innerHTML\s*\+?=[^=]|outerHTML\s*=[^=]|insertAdjacentHTML|DOMParser", text) == []


def test_every_vendored_file_has_its_licence_beside_it():
    vendor = [path for path in SERVED if path.parent.name == "vendor"]
    licences = {path.stem.removeprefix("LICENSE-"): path.read_text() for path in PAGE.glob("vendor/LICENSE-*.txt")}
    known = {"marked.mjs": "marked", "purify.min.js": "dompurify"}
    assert {path.name for path in vendor} == set(known)
    assert all("Permission is hereby granted" in text or "Apache License" in text for text in licences.values())
    assert set(licences) == set(known.values())
