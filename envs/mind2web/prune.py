"""Pruned pages: what an agent sees of a page of hundreds of kilobytes (MindAct; Deng et al., 2023).

What remains of the page's tree: the candidates, their ancestors, their descendants down to depth 5
(50 at most; a child has depth 0, as upstream counts) and three siblings on each side. Attributes
are reduced to a short text of their values, wrappers without content are dropped, and the
candidates are renumbered in the order of the page: `<button id=4 submit> Search </button>`.

Beyond upstream:

- A page is parsed once, indexed by node id, and written straight from the tree for any set of
  candidates; upstream parses, searches (XPath) and copies the complete page each time.
- A view respects a budget of tokens: if MindAct's is too long, less is shown around the candidates
  (`DETAILS`), then a flat list of them, and finally the lowest-ranked are left out.
- Candidates that the tree does not show (texts, anything in `<noscript>`) are listed after it, and
  those missing from the page (it is truncated, broken or too large) from their own attributes.
- Broken markup is repaired by libxml2; entities, network access and documents nested deeper than
  256 are rejected.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any
from zlib import crc32

MAX_PAGE = 10_000_000
"""Characters of HTML that are parsed. For larger pages only the candidates are listed."""
MAX_ATTRIBUTES = 500
"""Attributes of an HTML element. The time that libxml2 takes for one grows with their square."""
NODE_ID = "backend_node_id"
ATTRIBUTES = (
    *("role", "aria_role", "type", "alt", "aria_description", "aria_label", "label", "title"),
    *("name", "text_value", "value", "placeholder", "input_checked", "input_value"),
    *("option_selected", "class"),
)
"""Attributes whose values are shown, in this order (upstream's list)."""
_SILENT = frozenset({"hidden", "none", "presentation", "null", "undefined"})
_UNSEEN = frozenset({"script", "style", "noscript", "head", "template", "link", "meta"})
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Detail:
    """How much of a page is shown around the candidates."""

    depth: int = 5
    """Depth of descendants; a candidate's children have depth 0. −1: none."""
    descendants: int = 50
    """Descendants of one candidate, at most."""
    siblings: int = 3
    """Siblings on each side."""
    words: int = 20
    """Words of a text and of an element's attributes."""
    flat: bool = False
    """A list of the candidates instead of the tree."""


MINDACT = Detail()
DETAILS = (
    MINDACT,
    Detail(depth=2, descendants=16, siblings=1, words=10),
    Detail(depth=1, descendants=8, siblings=0, words=6),
    Detail(flat=True, descendants=24, words=12),
    Detail(flat=True, descendants=12, words=7),
    Detail(flat=True, descendants=6, words=4),
    Detail(flat=True, descendants=3, words=2),
)
"""From the complete view that MindAct shows to the shortest."""


@dataclass(frozen=True)
class Candidate:
    """An element that may be acted on: its id in the page's own numbering, tag and attributes."""

    node: str
    tag: str = ""
    attributes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class View:
    """A pruned page. `nodes[n]` is the node id of the element that it shows as `id=n`."""

    text: str
    nodes: tuple[str, ...]
    labels: tuple[str, ...]
    """Each element by itself, in at most ten words."""
    options: Mapping[int, tuple[str, ...]]
    """Number of a select element → the texts of its options."""
    tags: tuple[str, ...]


def scattered(node: str) -> tuple[int, str]:
    """Sort key of node ids for an order that reveals nothing about pages, ranks or right
    answers."""
    return crc32(node.encode("utf-8", "replace")), node


def tokens(text: str) -> int:
    """Estimated number of subword tokens in the text: four letters of a word are one.

    >>> tokens("<button id=12 submit>")
    9
    """
    return sum((len(word) + 3) // 4 for word in _WORD.findall(text))


class Page:
    """A parsed page, which can be shown around any set of candidates.

    `html` is the benchmark's cleaned HTML, or raw HTML whose elements carry `backend_node_id`.
    `problem` says what is wrong with it ("" if nothing is); nothing raises.
    """

    def __init__(self, html: str):
        self.problem = ""
        self._root: Any = None
        self._nodes: dict[str, Any] = {}
        self._order: dict[str, int] = {}
        if len(html) > MAX_PAGE:
            self.problem = "page over 10 MB"
        elif html.strip():
            self._root, self.problem = parse(html)
        if self._root is not None:
            # The first of equal ids counts; libxml2 keeps nodes only while they are referenced.
            for node in self._root.iter("*"):
                self._nodes.setdefault(node.get(NODE_ID, ""), node)
            self._nodes.pop("", None)
            self._order = {name: place for place, name in enumerate(self._nodes)}
            if not self._nodes:
                self.problem = "page without node ids"

    def __contains__(self, node_id: str) -> bool:
        return node_id in self._nodes

    def words(self, node_id: str, limit: int = 30) -> str:
        """What an element says: its attributes' values and the texts in it."""
        node = self._nodes[node_id]
        texts = [attributes_text(node.attrib, limit)]
        texts += _texts(node, limit)
        return " ".join(" ".join(texts).split()[:limit])

    def around(self, node_id: str, limit: int = 12) -> str:
        """The texts of the element's parent, without the element's own (a label, a heading)."""
        node = self._nodes[node_id]
        parent = node.getparent()
        if parent is None:
            return ""
        texts: list[str] = [parent.text or ""]
        for child in parent:
            if child is not node and isinstance(child.tag, str):
                texts += _texts(child, limit)
        return " ".join(" ".join(texts).split()[:limit])

    def options(self, node_id: str) -> tuple[str, ...]:
        """The texts of a select element's options, in order; () for any other element."""
        node = self._nodes.get(node_id)
        if node is None or node.tag != "select":
            return ()
        texts = (" ".join(" ".join(_texts(option, 50)).split()) for option in node.iter("option"))
        return tuple(text for text in texts if text)

    def view(self, candidates: Sequence[Candidate], budget: int | None = None) -> View:
        """The page around the candidates (best first), in at most `budget` tokens (None: any).

        Fewer candidates are shown only if even the shortest list of all is too long.
        """
        shown = list(candidates)
        while True:
            for detail in DETAILS if budget is not None else (MINDACT,):
                view = self.draw(shown, detail)
                if budget is None or tokens(view.text) <= budget or not shown:
                    return view
            # Candidates take about the same space each: one step comes close.
            fitting = int(len(shown) * budget / tokens(view.text)) if budget else 0
            shown = shown[: min(len(shown) - 1, max(fitting, 0))]

    def draw(self, candidates: Iterable[Candidate], detail: Detail = MINDACT) -> View:
        """The page around the candidates, in one detail."""
        by_node = {c.node: c for c in candidates}
        chosen = {name for name in by_node if name in self._nodes}
        writer = _Writer(chosen, detail)
        if chosen and detail.flat:
            order = sorted(chosen, key=self._order.__getitem__)
            text = "\n".join(writer.line(self._nodes[name]) for name in order)
        elif chosen:
            text = " ".join(writer.tree(self._root, self._visible(chosen, detail)).split())
        else:
            text = ""
        unseen = sorted(chosen - writer.numbers.keys(), key=self._order.__getitem__)
        absent = sorted(by_node.keys() - chosen, key=scattered)
        unseen_lines = [writer.line(self._nodes[name]) for name in unseen]
        unseen_lines += [writer.missing(by_node[name]) for name in absent]
        nodes = tuple(writer.numbers)
        labels = [
            writer.label(self._nodes[n]) if n in chosen else writer.missing(by_node[n])
            for n in nodes
        ]
        return View(
            "\n".join(part for part in (text, *unseen_lines) if part),
            nodes,
            tuple(labels),
            {i: options for i, n in enumerate(nodes) if (options := self.options(n))},
            tuple(self._nodes[n].tag if n in chosen else by_node[n].tag for n in nodes),
        )

    def _visible(self, chosen: set[str], detail: Detail) -> set[Any]:
        """Candidates, ancestors, descendants and siblings (elements other than `text` nodes)."""
        visible: set[Any] = set()
        for name in chosen:
            node = self._nodes[name]
            visible.add(node)
            for above in node.iterancestors():
                if above in visible:
                    break  # and so are all above it
                visible.add(above)
            visible.update(islice(_descendants(node, detail.depth), detail.descendants))
            parent = node.getparent()
            if parent is not None and detail.siblings:
                elements = (x for x in parent if isinstance(x.tag, str))
                beside = [x for x in elements if x.tag != "text" or x is node]
                at = beside.index(node)
                visible.update(beside[max(0, at - detail.siblings) : at + detail.siblings + 1])
        return visible


class _Writer:
    """Writes elements as text and numbers the candidates among them."""

    def __init__(self, chosen: set[str], detail: Detail):
        self.chosen, self.detail = chosen, detail
        self.numbers: dict[str, int] = {}

    def tree(self, node: Any, visible: set[Any]) -> str:
        """A visible element, with what is visible below it."""
        name = node.get(NODE_ID, "")
        candidate = name in self.chosen
        if candidate:  # before its descendants, to be numbered in the page's order
            self.numbers.setdefault(name, len(self.numbers))
        texts, parts = 0, [_cut(node.text, self.detail.words)]
        for child in node:
            if isinstance(child.tag, str):
                if child.tag == "text":
                    parts.append(_cut(child.text, self.detail.words))
                    texts += 1
                elif child in visible and child.tag not in _UNSEEN:
                    parts.append(self.tree(child, visible))
            parts.append(_cut(child.tail, self.detail.words))
        parts = [part for part in parts if part]
        own = len(node.attrib) - (NODE_ID in node.attrib)
        silent = not candidate and not own and not texts and len(parts) <= 1
        if silent and node.getparent() is not None:
            return "".join(parts)  # a wrapper without content
        head = self.head(node)
        return f"<{head}> {' '.join(parts)} </{node.tag}>" if parts else f"<{head}/>"

    def head(self, node: Any) -> str:
        name = node.get(NODE_ID, "")
        number = f"id={self.numbers[name]}" if name in self.numbers else ""
        attributes = attributes_text(node.attrib, self.detail.words)
        return " ".join(part for part in (node.tag, number, attributes) if part)

    def line(self, node: Any) -> str:
        """A candidate on a line of its own: in the flat list, or one that the tree does not
        show."""
        self.numbers.setdefault(node.get(NODE_ID), len(self.numbers))
        words = self.detail.words
        shorter = replace(self.detail, words=max(2, words // 2))
        head = _Writer(self.chosen, shorter)
        head.numbers = self.numbers
        limit = self.detail.descendants if node.tag == "select" else words
        before = node.getprevious()
        # It stands for the label in the tree.
        has_label = before is not None and before.tag == "label"
        label = _texts(before, shorter.words) if has_label else []
        return f"<{' '.join([head.head(node), *label, *_texts(node, limit)])}>"

    def missing(self, candidate: Candidate) -> str:
        """A candidate missing from the page, from its own attributes."""
        number = self.numbers.setdefault(candidate.node, len(self.numbers))
        attributes = attributes_text(dict(candidate.attributes), self.detail.words)
        parts = (candidate.tag or "element", f"id={number}", attributes)
        return f"<{' '.join(part for part in parts if part)}>"

    def label(self, node: Any) -> str:
        """A candidate in at most ten words, as the choices of MindAct show it."""
        words = " ".join([self.head(node), *_texts(node, 10)]).split()
        return f"<{' '.join(words[:10])}>"


def parse(html: str) -> tuple[Any, str]:
    """(root element or None, problem): cleaned HTML is XML; anything else is read as HTML.

    Broken markup is repaired as far as libxml2 can, and reported.
    """
    from lxml import etree

    text = _UNWRITABLE.sub(" ", html)
    raw = re.match(r"\s*(<!doctype|<\?xml|<!--)", text, re.IGNORECASE) is not None
    options: dict[str, Any] = {"recover": True, "no_network": True, "remove_comments": True}
    if not raw:
        parser = etree.XMLParser(
            resolve_entities=False, load_dtd=False, remove_pis=True, encoding="utf-8", **options
        )
        root = _read(etree, text, parser)
        if root is not None and (root.get(NODE_ID) or root.find(f".//*[@{NODE_ID}]") is not None):
            return root, "broken markup" if len(parser.error_log) else ""
    if _read(etree, text, etree.HTMLParser(encoding="utf-8", target=_Attributes(), **options)):
        return None, f"an element of more than {MAX_ATTRIBUTES} attributes"
    parser = etree.HTMLParser(encoding="utf-8", remove_pis=True, **options)
    root = _read(etree, text, parser)
    return (root, "" if raw else "broken markup") if root is not None else (None, "unreadable page")


class _Attributes:
    """What a parser tells of elements; in the end, whether one has too many attributes."""

    def __init__(self) -> None:
        self._most = 0

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        self._most = max(self._most, len(attributes))

    def end(self, tag: str) -> None:
        pass

    def close(self) -> bool:
        return self._most > MAX_ATTRIBUTES


_UNWRITABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def _read(etree: Any, text: str, parser: Any) -> Any:
    try:
        return etree.fromstring(text.encode("utf-8", "replace"), parser)
    except (etree.XMLSyntaxError, ValueError):
        return None


def attributes_text(attributes: Mapping[str, str], words: int = 20) -> str:
    """The values of an element's attributes in one short text: 5 words of each, none twice.

    >>> attributes_text({"type": "text", "name": "text", "aria_label": "Where to?"})
    'text where to?'
    """
    known = {name.replace("-", "_"): value for name, value in attributes.items()}
    values: dict[str, None] = {}
    for name in ATTRIBUTES:
        value = known.get(name)
        if not value:
            continue
        value = value[:2000].lower()
        if value in _SILENT or value.startswith("http"):
            continue
        value = " ".join([word for word in value.split() if len(word) < 15][:5])
        if value:
            values[value] = None
    return " ".join(" ".join(values).split()[:words])


def _descendants(node: Any, depth: int) -> Iterator[Any]:
    """The elements below a node, in the page's order (`text` nodes count, as upstream)."""
    for child in node if depth >= 0 else ():
        if isinstance(child.tag, str):
            yield child
            yield from _descendants(child, depth - 1)


def _texts(node: Any, limit: int) -> list[str]:
    """The texts in an element, up to about `limit` words."""
    texts: list[str] = []
    for text in node.itertext():
        words = text.split()
        if words:
            texts += words[: limit - len(texts)]
            if len(texts) >= limit:
                break
    return [" ".join(texts)] if texts else []


def _cut(text: str | None, words: int) -> str:
    return " ".join(text.split()[:words]) if text and not text.isspace() else ""
