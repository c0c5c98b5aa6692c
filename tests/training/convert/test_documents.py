"""The documented table of layouts is the code's."""

import re
from pathlib import Path

from stepagent.training.convert.table import table

DOCUMENT = Path(__file__).parents[3] / "docs" / "pages" / "trajectories.md"


def test_the_documented_table_is_current():
    text = DOCUMENT.read_text(encoding="utf-8")
    (documented,) = re.findall(
        r"<!-- generated: python -m training\.convert\.table -->\n(.*?)\n<!-- end -->", text, re.S
    )
    assert documented == table()
