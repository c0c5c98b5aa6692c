"""The page, from its own files and those that it shares with the report."""

from __future__ import annotations

from pathlib import Path

from stepagent.eval import view
from stepagent.eval.view.page import PageFiles

_HERE, _REPORT = Path(__file__).parent, Path(view.__file__).parent
FILES = PageFiles(
    body=_HERE / "page.html",
    styles=[_REPORT / "style.css", _HERE / "style.css"],
    scripts=[
        *(_REPORT / name for name in ("dom.js", "turns.js", "theme.js")),
        *(_HERE / name for name in ("server.js", "play.js", "watch.js", "main.js")),
    ],
    connects=True,
)


def render() -> tuple[str, str]:
    """The page, and its content security policy."""
    page, policy = FILES.assemble("StepAgent: play and watch")
    return page, f"{policy}; frame-ancestors 'none'"
