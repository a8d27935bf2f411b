"""XML of requests and answers: parsing hardened against bombs, building by plain strings.

Parsing: invariants
1. No document type, entity declaration or processing instruction but the XML declaration is accepted, whatever the
   encoding trick: the document must be UTF-8 and `<!` may only begin a comment or CDATA.
2. Size and number of elements are bounded before the parser runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from xml.etree import ElementTree

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n'
MAX_DOCUMENT = 4 << 20
MAX_TAGS = 300_000
MAX_DEPTH = 16

_SPECIAL = re.compile('[&<>"\x00-\x08\x0b-\x1f\x7f\ud800-\udfff\ufffe\uffff]|\t|\n|\r')
_DECLARATION = re.compile(rb"<!(?!--|\[CDATA\[)")
_ENCODING = re.compile(rb"""^\s*<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]+)["']""")
_NAMED = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"}


class Malformed(Exception):
    """The document is not acceptable XML of the expected shape; `too_large` when it was not even parsed."""

    def __init__(self, text: str, too_large: bool = False) -> None:
        super().__init__(text)
        self.too_large = too_large


def escape(text: str) -> str:
    """Text for an element. Control characters become references, as S3 writes them."""
    if _SPECIAL.search(text) is None:
        return text
    return _SPECIAL.sub(lambda found: _NAMED.get(found[0]) or f"&#x{ord(found[0]):x};", text)


def element(name: str, text: str | int | None) -> str:
    """`<name>text</name>`, or nothing when text is None."""
    if text is None:
        return ""
    return f"<{name}>{escape(text) if isinstance(text, str) else text}</{name}>"


def answer(root: str, parts: Iterable[str], namespace: str = NAMESPACE) -> bytes:
    """A whole answer document, in S3's namespace but for the few that have none."""
    declared = f' xmlns="{namespace}"' if namespace else ""
    return f"{HEAD}<{root}{declared}>{''.join(parts)}</{root}>".encode()


class Node:
    """An element without its namespace: name, text, children in order."""

    __slots__ = ("children", "name", "text")

    def __init__(self, name: str, text: str, children: list[Node]) -> None:
        self.name, self.text, self.children = name, text, children

    def all(self, name: str) -> list[Node]:
        return [child for child in self.children if child.name == name]

    def one(self, name: str) -> Node | None:
        """The only child of that name, None when there is none. Malformed when there are several."""
        found = self.all(name)
        if len(found) > 1:
            raise Malformed(f"more than one {name}")
        return found[0] if found else None

    def value(self, name: str) -> str | None:
        child = self.one(name)
        return None if child is None else child.text

    def need(self, name: str) -> str:
        text = self.value(name)
        if text is None:
            raise Malformed(f"{name} is missing")
        return text


def _node(source: ElementTree.Element, depth: int) -> Node:
    if depth > MAX_DEPTH:
        raise Malformed("nested too deeply")
    name = source.tag.rpartition("}")[2]
    return Node(name, source.text or "", [_node(child, depth + 1) for child in source])


def parse(document: bytes, root: str | None = None, limit: int = MAX_DOCUMENT) -> Node:
    """The root element. Raises Malformed for everything that is not well-formed, harmless XML with that root."""
    if len(document) > limit or document.count(b"<") > MAX_TAGS:
        raise Malformed("the document is too large", too_large=True)
    try:
        document.decode()
    except UnicodeDecodeError:
        raise Malformed("the document is not UTF-8") from None
    if _DECLARATION.search(document):
        raise Malformed("declarations are not accepted")
    encoding = _ENCODING.match(document)
    if encoding and encoding[1].lower() not in (b"utf-8", b"utf8", b"us-ascii", b"ascii"):
        raise Malformed("the encoding must be UTF-8")
    try:
        found = ElementTree.fromstring(document)
    except (ElementTree.ParseError, ValueError, LookupError):
        raise Malformed("not well-formed") from None
    node = _node(found, 0)
    if root is not None and node.name != root:
        raise Malformed(f"expected {root}, found {node.name}")
    return node
