"""The page `/docs`: the routes of `/openapi.json` as HTML, without a script or anything fetched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from typing import Any

HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
_STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }
body { max-width: 54rem; margin: 2rem auto; padding: 0 1rem }
h2 { margin-top: 2.5rem } h3 { margin: 1.8rem 0 .2rem; font-weight: 600 }
code, pre { font: 13px/1.45 ui-monospace, monospace; overflow-wrap: anywhere }
pre { border: 1px solid #8884; border-radius: 6px; padding: .6rem .8rem; white-space: pre-wrap }
b { display: inline-block; min-width: 4rem } p { margin: .2rem 0 }
"""


def page(schema: dict[str, Any]) -> str:
    """The page for an OpenAPI schema."""
    info = schema["info"]
    by_tag: dict[str, list[str]] = {}
    for path, methods in schema["paths"].items():
        for method, route in methods.items():
            section = "".join(_route(method.upper(), path, route))
            by_tag.setdefault((route.get("tags") or ["others"])[0], []).append(section)
    title = f"{info['title']} {info['version']}"
    main = "".join(f"<h2>{escape(tag)}</h2>{''.join(routes)}" for tag, routes in by_tag.items())
    return (
        f"<!DOCTYPE html><html lang=en><meta charset=utf-8>"
        f"<meta name=viewport content='width=device-width'><title>{escape(title)}</title>"
        f"<style>{_STYLE}</style><h1>{escape(title)}</h1>"
        f"<p>The schema: <a href=openapi.json>openapi.json</a></p>{main}</html>"
    )


def _route(method: str, path: str, route: dict[str, Any]) -> Iterator[str]:
    yield f"<h3><b>{method}</b><code>{escape(path)}</code></h3>"
    yield f"<p>{escape(route.get('summary', ''))}</p>"
    for parameter in route.get("parameters", []):
        kind = parameter.get("schema", {}).get("type", "")
        yield f"<p><code>{escape(parameter['name'])}</code> {escape(parameter['in'])} {kind}</p>"
    examples = [("body", route.get("requestBody", {}))]
    examples += [(status, answer) for status, answer in route.get("responses", {}).items()]
    for name, part in examples:
        content = part.get("content", {}).get("application/json", {})
        if "example" in content:
            text = json.dumps(content["example"], indent=2, ensure_ascii=False)
            yield f"<p>{name}</p><pre>{escape(text)}</pre>"
