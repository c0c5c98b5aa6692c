"""Assembles a page from its body, style, scripts, and the report's data, compressed.

The content security policy allows the one style and the one script by their SHA-256 and forbids
everything else: connections, images, forms, other scripts. The data is in blocks of base64, in
which nothing can end an element.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stepagent.eval.tables import plain
from stepagent.eval.view.data import Report, to_json
from stepagent.files import read_text, write_text

_HERE = Path(__file__).parent
SCRIPTS = (
    *("data.js", "dom.js", "turns.js", "theme.js", "charts.js"),
    *("overview.js", "list.js", "episode.js", "main.js"),
)


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
    data = "\n".join(
        f'<script type="text/plain" id="{name}">{_packed(value)}</script>'
        for name, value in [
            ("index", report.index),
            *((f"chunk-{i}", chunk) for i, chunk in enumerate(report.chunks)),
        ]
    )
    title = html.escape(plain(f"{report.title} – StepAgent"))
    files = PageFiles(
        body=_HERE / "page.html",
        styles=[_HERE / "style.css"],
        scripts=[_HERE / name for name in SCRIPTS],
    )
    return files.assemble(title, data)[0]


@dataclass(frozen=True)
class PageFiles:
    """What is put into `frame.html`, which has `@@NAME@@` in place of its parts."""

    body: Path
    styles: Sequence[Path]
    scripts: Sequence[Path]
    """In the order in which they are concatenated."""
    connects: bool = False
    """Whether the scripts may ask the page's own server."""

    def assemble(self, title: str, data: str = "") -> tuple[str, str]:
        """The page, and its content security policy. `title` and `data` are HTML."""
        style = "".join(read_text(file) for file in self.styles)
        script = "\n".join(read_text(file) for file in self.scripts)
        script = '"use strict";\n(() => {\n' + script + "})();\n"
        policy = "; ".join(
            [
                "default-src 'none'",
                f"script-src '{_hash(script)}'",
                f"style-src '{_hash(style)}'",
                *(["connect-src 'self'"] if self.connects else []),
                "base-uri 'none'",
                "form-action 'none'",
                "require-trusted-types-for 'script'",
                "trusted-types 'none'",
            ]
        )
        parts = {
            "POLICY": html.escape(policy),
            "TITLE": title,
            "STYLE": style,
            "BODY": read_text(self.body),
            "DATA": data,
            "SCRIPT": script,
        }
        frame = read_text(_HERE / "frame.html")
        pieces = frame.split("@@")  # text, name, text, name, …; insertions are not searched again
        return "".join(parts[p] if i % 2 else p for i, p in enumerate(pieces)), policy


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()


def _packed(value: object) -> str:
    """The same data gives the same text (without a time stamp)."""
    return base64.b64encode(gzip.compress(to_json(value), 6, mtime=0)).decode("ascii")
