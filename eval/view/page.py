"""Assembles the page: template, style, scripts, and the report's data, compressed.

The content security policy allows the one style and the one script by their SHA-256 and forbids
everything else: connections, images, forms, other scripts. The data is in blocks of base64, in
which nothing can end an element.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
from pathlib import Path

from stepagent.eval.tables import plain
from stepagent.eval.view.data import Report, to_json
from stepagent.files import write_text

_HERE = Path(__file__).parent
SCRIPTS = ("data.js", "dom.js", "charts.js", "overview.js", "list.js", "episode.js", "main.js")
"""In the order in which they are concatenated."""


def write(report: Report, out: Path) -> int:
    """Writes the page atomically; returns its size in bytes. Raises OSError that names the file."""
    text = render(report)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, f"cannot write {out}: {error.strerror}") from error
    write_text(out, text)
    return len(text.encode("utf-8"))


def render(report: Report) -> str:
    """The page as text."""
    style = (_HERE / "style.css").read_text(encoding="utf-8")
    script = '"use strict";\n(() => {\n' + "\n".join(
        (_HERE / name).read_text(encoding="utf-8") for name in SCRIPTS
    )
    script += "})();\n"
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src '{_hash(script)}'",
            f"style-src '{_hash(style)}'",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    )
    parts = {
        "POLICY": html.escape(policy),
        "TITLE": html.escape(plain(f"{report.title} – StepAgent")),
        "STYLE": style,
        "SCRIPT": script,
        "DATA": "\n".join(
            f'<script type="text/plain" id="{name}">{_packed(value)}</script>'
            for name, value in [
                ("index", report.index),
                *((f"chunk-{i}", chunk) for i, chunk in enumerate(report.chunks)),
            ]
        ),
    }
    page = (_HERE / "page.html").read_text(encoding="utf-8")
    pieces = page.split("@@")  # text, name, text, name, …; inserted parts are not searched again
    return "".join(parts[p] if i % 2 else p for i, p in enumerate(pieces))


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()


def _packed(value: object) -> str:
    """The same data gives the same text (without a time stamp)."""
    return base64.b64encode(gzip.compress(to_json(value), 6, mtime=0)).decode("ascii")
