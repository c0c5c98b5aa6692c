"""Tables for the terminal, Markdown and LaTeX, from one description."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table as RichTable

MISSING = "–"


@dataclass
class Table:
    """Rows of cells; the first `left` columns are text, the others figures."""

    title: str
    head: Sequence[str]
    left: int = 1
    rows: list[Sequence[str]] = field(default_factory=list)
    rules: set[int] = field(default_factory=set)
    """Rows with a line above them"""


def plain(text: str) -> str:
    """The text without anything that could move a terminal's cursor, change the direction of text
    or fail to be encoded: control characters, invisible ones and lone surrogates become `�`.
    """
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in text)


_FORMULA = re.compile(r"(?:^|(?<=[;\n]))(?= *[=+\-@＝＋－＠])")
"""Where a formula may begin: in some countries a semicolon separates cells, and signs are wide."""


def cell(text: str) -> str:
    """The text as a cell of a CSV file that a spreadsheet shows and never runs as a formula.

    >>> cell("=HYPERLINK(1)"), cell(" @x"), cell("a;＝1"), cell("hf:model")
    ("'=HYPERLINK(1)", "' @x", "a;'＝1", 'hf:model')
    """
    return _FORMULA.sub("'", plain(text))


def p_value(value: float) -> str:
    """A p-value in three digits.

    >>> p_value(0.0123), p_value(0.0)
    ('0.012', '< 0.001')
    """
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def tell(console: Console, text: str) -> None:
    """Prints a line as it is: without markup, cursor movements or line breaks."""
    console.print(plain(text), markup=False, highlight=False, soft_wrap=True)


def terminal(tables: Sequence[Table], notes: Sequence[str], console: Console | None = None) -> str:
    """Prints to the console, or returns the text if there is none.

    No figure is ever truncated: in a narrow terminal names fold to 18 characters, and beyond that
    lines become longer than the terminal; without a terminal they are as long as needed.
    """
    console = console or Console(file=io.StringIO())
    shown = [_rich(table) for table in tables]
    endless = console.options.update(width=10_000)
    needed = [Measurement.get(console, endless, table) for table in shown]
    for table, space in zip(shown, needed, strict=True):
        console.width = max(space.minimum, console.width) if console.is_terminal else space.maximum
        console.print(table)
    for note in notes:
        console.print(plain(note), markup=False, highlight=False, soft_wrap=not console.is_terminal)
    return console.file.getvalue() if isinstance(console.file, io.StringIO) else ""


def _rich(table: Table) -> RichTable:
    shown = RichTable(title=escape(plain(table.title)), title_justify="left", box=box.SIMPLE)
    for place, name in enumerate(table.head):
        if place < table.left:
            width = max(len(row[place]) for row in [table.head, *table.rows])
            shown.add_column(escape(plain(name)), min_width=min(18, width), overflow="fold")
        else:
            shown.add_column(escape(plain(name)), justify="right", no_wrap=True)
    for number, row in enumerate(table.rows):
        if number in table.rules:
            shown.add_section()
        shown.add_row(*(escape(plain(cell)) for cell in row))
    return shown


def markdown(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """GitHub's Markdown; the content of a cell cannot end the cell or become HTML."""
    parts = []
    for table in tables:
        sides = ["---"] * table.left + ["---:"] * (len(table.head) - table.left)
        rows = [table.head, sides, *table.rows]
        lines = [
            "| " + " | ".join(c if row is sides else _markdown_cell(c) for c in row) + " |"
            for row in rows
        ]
        parts.append(f"### {_markdown_cell(table.title)}\n\n" + "\n".join(lines))
    listed = "\n".join(f"- {_markdown_cell(note)}" for note in notes)
    return "\n\n".join([*parts, *([listed] if listed else [])]) + "\n"


def _markdown_cell(text: str) -> str:
    escaped = re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(plain(text).split()))
    return escaped.replace("&", "&amp;")


def latex(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """One `table` each, with the rules of the package booktabs."""
    parts = [r"% \usepackage{booktabs}"]
    for table in tables:
        lines = [" & ".join(map(_tex, row)) + r" \\" for row in table.rows]
        for number in sorted(table.rules, reverse=True):
            lines.insert(number, r"\midrule")
        columns = "l" * table.left + "r" * (len(table.head) - table.left)
        parts += [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{_tex(table.title)}}}",
            rf"  \begin{{tabular}}{{{columns}}}",
            r"    \toprule",
            "    " + " & ".join(map(_tex, table.head)) + r" \\",
            r"    \midrule",
            *(f"    {line}" for line in lines),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
        ]
    return "\n".join([*parts, *(f"% {' '.join(plain(note).split())}" for note in notes)]) + "\n"


_TEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "[": "{[}",  # after the end of a row it would be read as an option
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "–": "--",
    "−": "$-$",
    "≥": r"$\geq$",
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in " ".join(plain(text).split()))
