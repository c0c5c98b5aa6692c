"""The documentation in a browser: narrow, dark, and for those who do not see it."""

import re
from pathlib import Path

import pytest

from tests.browser import serious_findings

SITE = Path(__file__).parents[2] / "docs" / "site"
PAGES = (
    *("index.html", "start.html", "evaluation.html", "integrations.html"),
    *("methods/implicit.html", "environments/webshop.html", "reference/commands.html"),
)

pytestmark = pytest.mark.skipif(
    not (SITE / "index.html").is_file(), reason="the documentation is not built: make docs"
)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_are_accessible_and_fit_a_phone(chromium, scheme):
    page = chromium.new_page(color_scheme=scheme, viewport={"width": 360, "height": 700})
    wide, findings = {}, {}
    for name in PAGES:
        page.goto((SITE / name).as_uri(), timeout=120_000)
        if width := max(0, page.evaluate("document.documentElement.scrollWidth") - 360):
            wide[name] = width
        if problems := serious_findings(page):
            findings[name] = problems
    page.close()
    assert wide == {}
    assert findings == {}


def test_a_page_can_be_read_with_the_keyboard(chromium):
    page = chromium.new_page()
    page.goto((SITE / "start.html").as_uri(), timeout=120_000)
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.getAttribute('href') || ''"))
    page.close()
    assert any(re.search(r"evaluation\.html$", target) for target in reached)
    assert any(target.startswith("#") for target in reached), "past the navigation"
