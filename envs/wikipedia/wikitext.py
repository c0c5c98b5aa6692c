"""MediaWiki dumps (`…-pages-articles.xml.bz2`): a stream of pages without their markup.

Of each article, its lead is kept: the text above the first heading: the paper shows the first
paragraph, ReAct the first five sentences. Redirects become further titles of their target; other
namespaces and disambiguation pages are left out. A page's markup is removed by rules that suit
leads; what templates would insert (a converted length, say) is lost.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from stepagent.envs.containers import Member, SourceError
from stepagent.envs.wikipedia.corpus import Page, page, unescape

MAX_TEXT = 4 << 20
"""Characters of markup that are read per page."""


@dataclass(frozen=True)
class Redirect:
    """Another title of a page."""

    title: str
    target: str


def dump_items(source: Member, file: IO[bytes], skip: int = 0) -> Iterator[Page | Redirect | None]:
    """One item for each page element: its page, a redirect, or None for what is left out.

    The first `skip` items are None, without being parsed. Memory does not grow. Raises
    SourceError where the file is truncated or not a dump.

    Parameters
    ----------
    source, file: the dump, and its bytes without compression.
    """
    from lxml import etree

    number = 0
    try:
        # A dump has only XML's five entities; nothing is fetched or expanded.
        elements = etree.iterparse(
            file,
            events=("end",),
            tag="{*}page",
            resolve_entities=False,
            no_network=True,
            huge_tree=True,
        )
        for _, element in elements:
            number += 1
            yield None if number <= skip else _item(element)
            element.clear()
            while element.getprevious() is not None:
                del element.getparent()[0]
    except etree.XMLSyntaxError as error:
        raise SourceError(
            f"{source} is cut off or damaged after {number} pages ({error}): fetch it again"
        ) from None
    if number == 0:
        raise SourceError(f"{source} holds no page: a MediaWiki dump (pages-articles) is expected")


def _item(element: Any) -> Page | Redirect | None:
    title = element.findtext("{*}title") or ""
    if not title.strip() or (element.findtext("{*}ns") or "0") != "0":
        return None
    redirect = element.find("{*}redirect")
    if redirect is not None:
        target = redirect.get("title") or ""
        return Redirect(title, target) if target else None
    text = element.findtext("{*}revision/{*}text") or ""
    if _DISAMBIGUATION.search(text[:MAX_TEXT]):
        return None
    paragraphs = lead(text[:MAX_TEXT])
    return page(title, paragraphs) if paragraphs else None


_DISAMBIGUATION = re.compile(
    r"\{\{\s*(disambig|dab\b|hndis|geodis|surname|set index)", re.IGNORECASE
)
_HEADING = re.compile(r"^==.*$", re.MULTILINE)
_COMMENT = re.compile(r"<!--.*?(-->|\Z)", re.DOTALL)
_DROPPED = re.compile(
    r"<(ref|math|gallery|timeline|score|table|div)\b(?:[^<>]*/>|[^<>]*>.*?(</\1\s*>|\Z))",
    re.DOTALL | re.IGNORECASE,
)
_TAG = re.compile(r"</?[A-Za-z][^<>]{0,300}>")
_FILE = re.compile(r"\[\[\s*(?:file|image|category|media)\s*:", re.IGNORECASE)
_LINK = re.compile(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]")
_URL = re.compile(r"\[(?:https?:)?//[^\s\[\]]++\s*+([^\[\]]*+)\]")
_MARK = re.compile(r"\[\[|\]\]")
_QUOTES = re.compile(r"'{2,}")
_EMPTY = re.compile(r"\([;,:–—\s]*+\)")
_LEADING = re.compile(r"\(\s*[;,]\s*")
_SPACE = re.compile(r"[ \t\xa0]+")


def lead(markup: str) -> list[str]:
    """The paragraphs above the first heading, as plain text.

    >>> lead("{{Infobox|x={{y}}}}'''Ada''' ({{IPA|a}}; born [[1815]]) was a [[poet|writer]].")
    ['Ada (born 1815) was a writer.']
    """
    text = _COMMENT.sub("", markup)
    text = _without_nested(text, "{{", "}}")
    text = _HEADING.split(text, maxsplit=1)[0]
    text = _without_nested(text, "{|", "|}")
    text = _DROPPED.sub("", text)
    text = _without_files(text)
    text = _LINK.sub(r"\1", text)
    text = _URL.sub(r"\1", text)
    text = unescape(_TAG.sub("", _QUOTES.sub("", text)))
    text = _LEADING.sub("(", _EMPTY.sub("", text))
    lines = (_SPACE.sub(" ", line).strip() for line in text.split("\n"))
    return [line.replace(" ,", ",").replace(" .", ".") for line in lines if _is_prose(line)]


def _is_prose(line: str) -> bool:
    return len(line) > 1 and line[0] not in "*#:;|!{}[]=_"


def _without_nested(text: str, opening: str, closing: str) -> str:
    """The text without anything between these marks, which may be nested. Linear in its length."""
    parts, depth, begin = [], 0, 0
    for match in re.finditer(f"{re.escape(opening)}|{re.escape(closing)}", text):
        if match.group() == opening:
            if depth == 0:
                parts.append(text[begin : match.start()])
            depth += 1
        elif depth:
            depth -= 1
            begin = match.end()
    if depth == 0:
        parts.append(text[begin:])
    return "".join(parts)


def _without_files(text: str) -> str:
    """The text without pictures, whose captions may contain links, and categories."""
    parts, begin = [], 0
    for match in _FILE.finditer(text):
        if match.start() < begin:
            continue
        parts.append(text[begin : match.start()])
        depth, begin = 0, len(text)
        for mark in _MARK.finditer(text, match.start()):
            depth += 1 if mark.group() == "[[" else -1
            if depth == 0:
                begin = mark.end()
                break
    return "".join([*parts, text[begin:]])
