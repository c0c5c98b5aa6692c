"""The looks of the bundled sites: HTML pieces, and the frame around every page.

A site's skin (order of the navigation, way of labelling fields, colours, footer, a newsletter box
or a search box that no task needs) is drawn once from the site's own seed, so that sites differ
and one site is the same on every page and in every process.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

LABELLING = ("label", "placeholder", "aria-label")
_COLOURS = ("#14532d", "#1e3a8a", "#7c2d12", "#581c87", "#134e4a", "#7f1d1d")
_FOOTER = ("Imprint", "Privacy policy", "Terms", "Careers", "Press", "Site map")


def slug(text: str) -> str:
    """A text as part of a path or an id.

    >>> slug("Fern and Fox")
    'fern-and-fox'
    """
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def link(name: str, href: str, text: str) -> str:
    return f'<a id="{name}" href="{escape(href)}">{escape(text)}</a>'


def button(name: str, text: str) -> str:
    return f'<button id="{name}" type="submit">{escape(text)}</button>'


def form(action: str, *parts: str, method: str = "post") -> str:
    return f'<form action="{escape(action)}" method="{method}">{"".join(parts)}</form>'


@dataclass(frozen=True)
class Skin:
    """The looks of one site."""

    brand: str
    labelling: str
    nav_first: bool
    extra: str
    footer: tuple[str, ...]
    colour: str
    order: tuple[float, ...]

    @staticmethod
    def draw(brand: str, rng: np.random.Generator) -> Skin:
        return Skin(
            brand,
            str(rng.choice(LABELLING)),
            bool(rng.integers(2)),
            str(rng.choice(["newsletter", "search", "none"])),
            tuple(str(x) for x in rng.choice(_FOOTER, size=1)),
            str(rng.choice(_COLOURS)),
            tuple(float(x) for x in rng.random(12)),
        )

    def shuffled(self, items: Iterable[Any]) -> list[Any]:
        """The items in this site's own order."""
        every = list(items)
        return [every[i] for i in sorted(range(len(every)), key=lambda i: self.order[i % 12])]

    def _labelled(self, name: str, label: str) -> tuple[str, str]:
        """(markup before the control, attribute of the control)."""
        if self.labelling == "label":
            return f'<label for="{name}">{escape(label)}</label>', ""
        return "", f' aria-label="{escape(label)}"'

    def text(self, name: str, label: str, value: str = "") -> str:
        """A text field; `name` is its id and its name in the form."""
        before, attribute = self._labelled(name, label)
        if self.labelling == "placeholder":
            attribute = f' placeholder="{escape(label)}"'
        filled = f' value="{escape(value)}"' if value else ""
        return f'{before}<input id="{name}" name="{name}" type="text"{attribute}{filled}>'

    def select(self, name: str, label: str, options: Sequence[str], chosen: str = "") -> str:
        before, attribute = self._labelled(name, label)
        options_html = "".join(
            f"<option{' selected' if option == chosen else ''}>{escape(option)}</option>"
            for option in options
        )
        return f'{before}<select id="{name}" name="{name}"{attribute}>{options_html}</select>'

    def check(self, name: str, label: str, checked: bool = False) -> str:
        ticked = " checked" if checked else ""
        text = f'<label for="{name}">{escape(label)}</label>'
        return f'{text}<input id="{name}" name="{name}" type="checkbox"{ticked}>'

    def frame(self, title: str, nav: Sequence[tuple[str, str, str]], main: str) -> str:
        """A complete page; `nav` lists (id, path, text) of its links."""
        links = "".join(link(*entry) for entry in self.shuffled(nav))
        home = link("home", "/", self.brand)
        head = f"<nav>{links}</nav>{home}" if self.nav_first else f"{home}<nav>{links}</nav>"
        footer = "".join(link(f"f-{slug(x)}", f"/info/{slug(x)}", x) for x in self.footer)
        return (
            f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            f"<title>{escape(title)} | {escape(self.brand)}</title>"
            f"<style>{_STYLE.replace('COLOUR', self.colour)}</style></head><body>"
            f"<header>{head}</header><main><h1>{escape(title)}</h1>{main}</main>{self._extra()}"
            f"<footer>{footer}</footer></body></html>"
        )

    def _extra(self) -> str:
        """A box next to the page that no task needs."""
        if self.extra == "newsletter":
            field = '<input id="x-mail" name="x-mail" type="text" placeholder="Newsletter">'
            return f"<aside>{form('/info/newsletter', field, button('x-join', 'Join'))}</aside>"
        if self.extra == "search":
            field = '<input id="x-q" name="x-q" type="text" placeholder="Search this site">'
            return f"<aside>{form('/info/search', field, button('x-go', 'Go'))}</aside>"
        return ""


_STYLE = (
    "body{font:16px/1.5 sans-serif;margin:0;color:#222;background:#f6f6f4}"
    "header,footer{background:COLOUR;padding:12px 24px;display:flex;gap:24px;align-items:center}"
    "header a,footer a{color:#fff;text-decoration:none}#home{font-weight:bold;font-size:20px}"
    "nav{display:flex;gap:16px;flex:1}main{max-width:640px;margin:24px auto;background:#fff;"
    "padding:24px;border-radius:8px}main a{display:block;color:COLOUR;padding:4px 0}"
    "form{display:flex;flex-direction:column;gap:8px;max-width:360px}"
    "form input[type=checkbox]{align-self:flex-start;width:20px;height:20px}"
    "input,select,button{font:inherit;padding:8px}button{background:COLOUR;color:#fff;border:0}"
    "aside{max-width:640px;margin:0 auto 24px;padding:0 24px}"
    "table{border-collapse:collapse}td{border:1px solid #ddd;padding:8px}"
)
