"""A page as its reader's machine sees it: text, elements and what it asks the network for."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "br", "img", "input", "path", "use", "line", "rect", "circle"}


class Page(HTMLParser):
    """Text of a page and every element's attributes; tags that close in the wrong order are an error."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self._open: list[str] = []
        self._text: list[str] = []
        self.path = path
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("style", "script"):
            self._text.append(data)

    @property
    def text(self) -> str:
        """All words a reader sees, with single spaces."""
        return " ".join("".join(self._text).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        """Attributes of every element of that name."""
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def asked_from_outside(self) -> list[str]:
        """Addresses that a browser would fetch and that are neither in the page nor beside it."""
        addresses = [a[key] for _, a in self.elements for key in ("src", "href", "data", "poster") if key in a]
        return [address for address in addresses if not address.startswith(("data:", "#", "figures/"))]
