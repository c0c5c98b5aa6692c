"""How our docstrings are laid out, and how the API reference shows them.

A docstring is prose in Markdown. Parameters are listed under `Parameters` (underlined) or `Args:`,
as `name: meaning`, long ones indented on the next lines. After a full stop another one may follow
on the same line.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import griffe

_HEAD = re.compile(r"^(?:(Parameters|Returns)\n-{3,}|(Args|Raises|Returns):)[ ]*\n", re.MULTILINE)
_NEXT = re.compile(r"(?<=\.) ([a-z_]+): ")
_ITEM = re.compile(r"^( {0,4})(\w+(?:, \w+)*): ", re.MULTILINE)


def parameters(doc: str) -> list[tuple[str, str]]:
    """(name, meaning) of each parameter that a docstring describes.

    >>> parameters("A door.\\n\\nParameters\\n----------\\nwidth: in metres.\\nheight: the same.")
    [('width', 'in metres.'), ('height', 'the same.')]
    """
    _, block, _ = _split(doc)
    return [(name.strip(), text) for names, text in _items(block) for name in names.split(",")]


def as_markdown(doc: str) -> str:
    """The docstring with its lists as Markdown lists."""
    text = inspect.cleandoc(doc)
    while _HEAD.search(text):
        before, block, after = _split(text)
        title = next(group for group in _HEAD.search(text).groups() if group)  # type: ignore[union-attr]
        lines = "\n".join(f"- **`{names}`**: {meaning}" for names, meaning in _items(block))
        text = f"{before}**{title}**\n\n{lines or block}\n\n{after}"
    return text


def _split(doc: str) -> tuple[str, str, str]:
    """What stands before a list, the list, and what stands behind it."""
    text = inspect.cleandoc(doc)
    head = _HEAD.search(text)
    if not head:
        return text, "", ""
    block, _, after = text[head.end() :].partition("\n\n")
    return text[: head.start()], block, after


def _items(block: str) -> list[tuple[str, str]]:
    starts = list(_ITEM.finditer(block))
    if not starts:
        return []
    indent = min(len(m.group(1)) for m in starts)
    starts = [m for m in starts if len(m.group(1)) == indent]
    ends = [m.start() for m in starts[1:]] + [len(block)]
    items: list[tuple[str, str]] = []
    for start, end in zip(starts, ends, strict=True):
        first, *others = _NEXT.split(" ".join(block[start.end() : end].split()))
        items += [(start.group(2), first), *zip(others[::2], others[1::2], strict=True)]
    return items


class Docstrings(griffe.Extension):
    """Hands the docstrings to the API reference as Markdown."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)
