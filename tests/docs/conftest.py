"""The scripts of the documentation site are no package: they are found as the site finds them."""

import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
sys.path.insert(0, str(DOCS))


@pytest.fixture
def pages():
    """Path below `docs/pages` → text."""
    folder = DOCS / "pages"
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*.md"))}
