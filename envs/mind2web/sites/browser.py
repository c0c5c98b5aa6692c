"""A minimal browser: follows links, fills forms, submits them to a bundled site.

The recorder plays gold steps through it; `snapshot` converts a page to the benchmark's format.
It supports what the bundled pages use: links, buttons, text fields, checkboxes and selects.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from lxml import etree
from lxml import html as lxml_html

from stepagent.envs.mind2web.prune import ATTRIBUTES, NODE_ID
from stepagent.envs.mind2web.sites.base import Move, Site, SiteState

_ACTIVE = frozenset({"a", "button", "input", "select", "textarea"})
_LEFT_OUT = frozenset({"head", "script", "style"})


class Browser:
    """A visit to a site. `page` is the current page's tree, with the visitor's changes."""

    def __init__(self, site: Site):
        self.site, self.state = site, SiteState()
        self.go("/")

    def go(self, path: str) -> None:
        parts = urlsplit(path)
        query = dict(parse_qsl(parts.query))
        self.page = lxml_html.document_fromstring(self.site.page(parts.path, query, self.state))

    def find(self, element: str) -> Any:
        """The element of an HTML id. Raises LookupError if the page has none."""
        node = self.page.get_element_by_id(element, None)
        if node is None:
            raise LookupError(f"{self.site.name}: the page has no element {element!r}")
        return node

    def do(self, move: Move) -> None:
        """Carries out one move. Raises LookupError if the page does not allow it."""
        element = self.find(move.element)
        if move.op == "TYPE":
            element.set("value", move.value)
        elif move.op == "SELECT":
            options = {option.text: option for option in element.iter("option")}
            if move.value not in options:
                raise LookupError(f"{move.element!r} has no option {move.value!r}")
            for option in options.values():
                option.attrib.pop("selected", None)
            options[move.value].set("selected", "selected")
        elif element.tag == "a":
            self.go(element.get("href"))
        elif element.get("type") == "checkbox":
            if element.attrib.pop("checked", None) is None:
                element.set("checked", "checked")
        elif element.tag == "button":
            self._submit(next(element.iterancestors("form")))

    def _submit(self, form: Any) -> None:
        fields = {}
        for control in form.iter("input", "select"):
            if control.tag == "select":
                options = list(control.iter("option"))
                chosen = [o for o in options if o.get("selected") is not None] or options[:1]
                fields[control.get("name")] = chosen[0].text
            elif control.get("type") != "checkbox":
                fields[control.get("name")] = control.get("value", "")
            elif control.get("checked") is not None:
                fields[control.get("name")] = "on"
        if form.get("method") == "get":
            parts = urlsplit(form.get("action"))
            self.page = lxml_html.document_fromstring(
                self.site.page(parts.path, fields, self.state)
            )
        else:
            self.go(self.site.submit(form.get("action"), fields, self.state))


def snapshot(page: Any) -> tuple[str, str, list[dict[str, str]], dict[str, str]]:
    """A page in the benchmark's format.

    Returns (raw HTML, cleaned HTML, candidates, HTML id → node id). Elements get node ids in the
    order of the page, unless they carry `backend_node_id` already; the page is marked with them.
    """
    for number, element in enumerate(page.iter("*"), 1):
        if element.get(NODE_ID) is None:
            element.set(NODE_ID, str(number))
    counter = [10_000]
    cleaned = _clean(page, counter)
    candidates, ids = [], {}
    for element in page.iter("*"):
        if element.get("id"):
            ids[element.get("id")] = element.get(NODE_ID)
        if element.tag in _ACTIVE and element.get("type") != "hidden":
            attributes = {**_shown(element), NODE_ID: element.get(NODE_ID)}
            candidates.append(
                {
                    "tag": element.tag,
                    "attributes": json.dumps(attributes, ensure_ascii=False),
                    NODE_ID: element.get(NODE_ID),
                }
            )
    raw = "<!DOCTYPE html>\n" + etree.tostring(page, encoding="unicode", method="html")
    return raw, etree.tostring(cleaned, encoding="unicode"), candidates, ids


def _clean(element: Any, counter: list[int]) -> Any:
    """A copy with the attributes that the benchmark keeps, and texts as elements of their own."""
    copy = etree.Element(element.tag, {**_shown(element), NODE_ID: element.get(NODE_ID)})
    _text(copy, element.text, counter)
    for child in element:
        if isinstance(child.tag, str):
            if child.tag not in _LEFT_OUT:
                copy.append(_clean(child, counter))
            _text(copy, child.tail, counter)
    return copy


def _text(parent: Any, text: str | None, counter: list[int]) -> None:
    if text and text.strip():
        counter[0] += 1
        node = etree.SubElement(parent, "text", {NODE_ID: str(counter[0])})
        node.text = text.strip()


def _shown(element: Any) -> dict[str, str]:
    """The element's attributes under the names that the benchmark gives them."""
    attributes = {}
    for name, value in element.attrib.items():
        name = name.replace("-", "_")
        if element.tag == "input" and name == "value":
            name = "input_value"
        elif name == "checked":
            name, value = "input_checked", "true"
        elif name == "selected":
            name, value = "option_selected", "true"
        elif name in ("type", "name") and element.tag in ("button", "select"):
            continue  # adds nothing to the tag and the label
        elif name == "name":
            continue
        if name in ATTRIBUTES and value:
            attributes[name] = value
    return attributes
