"""A page as a tree one can ask questions of; it insists that every element is closed in order."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "img", "input", "hr"}


@dataclass
class Node:
    tag: str
    attributes: dict[str, str | None]
    children: list[Node] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)

    def walk(self):
        yield self
        for child in self.children:
            yield from child.walk()

    def all(self, tag: str, **wanted: str) -> list[Node]:
        return [
            node
            for node in self.walk()
            if node.tag == tag
            and all(
                value in (node.attributes.get(name.rstrip("_")) or "").split()
                for name, value in wanted.items()
            )
        ]

    def text(self) -> str:
        return " ".join("".join(self.pieces).split())

    def rows(self) -> list[list[str]]:
        return [[cell.text() for cell in row.children] for row in self.all("tr")]


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.root = Node("page", {})
        self.open = [self.root]
        self.feed(text)
        self.close()
        assert [node.tag for node in self.open] == ["page"], "elements left open"

    def handle_starttag(self, tag, attrs):
        node = Node(tag, dict(attrs))
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag, attrs):
        self.open[-1].children.append(Node(tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data):
        for node in self.open:
            node.pieces.append(data)
