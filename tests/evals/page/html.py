"""Parse the report's page, to check its elements and its embedded questions."""

from __future__ import annotations

import json
from html.parser import HTMLParser

VOID_ELEMENTS = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "wbr"}


class Page(HTMLParser):
    """A page as a list of elements, each with its attributes and all text inside it. Unbalanced tags fail."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))
        if tag not in VOID_ELEMENTS:
            self._open.append(self.elements[-1])

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        for _, _, text in self._open:
            text.append(data)

    def all(self, name: str, **wanted: str) -> list[tuple[dict[str, str | None], str]]:
        """Return attributes and text of the elements with this name and these attributes."""
        return [
            (attributes, "".join(text))
            for tag, attributes, text in self.elements
            if tag == name and wanted.items() <= attributes.items()
        ]

    @property
    def ids(self) -> list[str]:
        return [attributes["id"] or "" for _, attributes, _ in self.elements if "id" in attributes]

    @property
    def questions(self) -> dict[str, dict[str, object]]:
        """The embedded questions of each group."""
        data = [json.loads(text) for _, text in self.all("script", type="application/json")]
        return {group["group"]: group for group in data}
