"""Draws the picture of the README and the home page: `python docs/picture.py`.

The way of the data, with the figures of `make demo` (seed 0, docs/pages/start.md): one SVG for
light pages and one for dark ones. Texts are in the reader's own sans-serif font.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

FOLDER = Path(__file__).with_name("pages") / "images"
WIDTH, HEIGHT = 960, 400
THEMES = {
    "light": {
        "ink": "#1f2933", "dim": "#5b6875", "line": "#9aa7b4", "box": "#ffffff", "edge": "#c9d2db",
        "expert": "#0b7a53", "agent": "#c2410c", "policy": "#3949ab", "back": "#f6f8fa",
    },
    "dark": {
        "ink": "#e6edf3", "dim": "#9fb0c0", "line": "#6b7a89", "box": "#1c242d", "edge": "#3a4653",
        "expert": "#3fc48f", "agent": "#ff9357", "policy": "#93a4ff", "back": "#11171d",
    },
}  # fmt: skip
SCORES = [("random", 0.1267), ("SFT", 0.8455), ("1", 0.9462), ("2", 0.9948), ("SFT", 0.8802)]
"""Stage → mean score on the 96 unseen tasks; the last is the control, SFT on as many tokens."""


class Drawing:
    """Shapes in one theme."""

    def __init__(self, theme: str):
        self.colours = THEMES[theme]
        self.parts: list[str] = []

    def text(
        self, x: float, y: float, text: str, colour: str = "ink", size: float = 14,
        anchor: str = "middle", bold: bool = False, mono: bool = False,
    ) -> None:  # fmt: skip
        family = "ui-monospace, Menlo, Consolas, monospace" if mono else "inherit"
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(
            f'<text x="{x}" y="{y}" fill="{self.colours[colour]}" font-size="{size}" '
            f'text-anchor="{anchor}" font-family="{family}"{weight}>{escape(text)}</text>'
        )

    def box(self, x: float, y: float, width: float, height: float, edge: str = "edge") -> None:
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="9" '
            f'fill="{self.colours["box"]}" stroke="{self.colours[edge]}" stroke-width="1.5"/>'
        )

    def line(self, points: str, colour: str = "line", width: float = 2, arrow: bool = True) -> None:
        marker = f' marker-end="url(#{colour})"' if arrow else ""
        self.parts.append(
            f'<path d="{points}" fill="none" stroke="{self.colours[colour]}" '
            f'stroke-width="{width}" stroke-linejoin="round"{marker}/>'
        )

    def dot(self, x: float, y: float, colour: str, radius: float = 6) -> None:
        self.parts.append(f'<circle cx="{x}" cy="{y}" r="{radius}" fill="{self.colours[colour]}"/>')

    def svg(self) -> str:
        heads = "".join(
            f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            f'markerHeight="7" orient="auto-start-reverse"><path d="M0 0L8 4L0 8z" '
            f'fill="{self.colours[name]}"/></marker>'
            for name in ("line", "policy")
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            f'font-family="system-ui, -apple-system, Segoe UI, Roboto, sans-serif">'
            f"<defs>{heads}</defs>"
            f'<rect width="{WIDTH}" height="{HEIGHT}" rx="14" fill="{self.colours["back"]}"/>'
            + "".join(self.parts)
            + "</svg>\n"
        )


def draw(theme: str) -> str:
    drawing = Drawing(theme)
    _collect(drawing)
    _step_tree(drawing)
    _scores(drawing)
    return drawing.svg()


def _collect(d: Drawing) -> None:
    """Top row: expert, trajectories, SFT, policy."""
    for x, title, lines, edge in (
        (24, "Expert", ("solves the tasks of", "7 text environments"), "expert"),
        (276, "Trajectories", ("40 that solve the task,", "134 states in all"), "edge"),
        (508, "SFT", ("the policy imitates", "the expert's actions"), "policy"),
        (740, "Policy", ("nano: 4.2 M weights,", "pre-trained on their texts"), "policy"),
    ):
        d.box(x, 24, 196, 82, edge)
        d.text(x + 98, 51, title, size=16, bold=True)
        for i, line in enumerate(lines):
            d.text(x + 98, 73 + 19 * i, line, "dim")
    for start, end in ((220, 274), (472, 506), (704, 738)):
        d.line(f"M{start} 65H{end}")


def _step_tree(d: Drawing) -> None:
    """Bottom left: a success as a trunk, practice actions as branches."""
    d.box(24, 146, 548, 230)
    d.text(44, 174, "Practice in the states of its successes, as one step tree", size=16,
           anchor="start", bold=True)  # fmt: skip
    y, xs = 222, (84, 212, 340, 468)
    d.line(f"M{xs[0]} {y}H{xs[-1]}", "expert", 3, arrow=False)
    for i, x in enumerate(xs):
        d.dot(x, y, "expert", 8)
        d.text(x, y - 16, f"state {i + 1}" if i < 3 else "solved", "dim", 13)
    for x in xs[:-1]:
        for dx in (18, 48, 78):
            d.line(f"M{x} {y}C{x + 4} {y + 36} {x + dx} {y + 24} {x + dx} {y + 52}", "agent", 1.8,
                   arrow=False)  # fmt: skip
            d.dot(x + dx, y + 56, "agent", 5)
    d.dot(54, 314, "expert")
    d.text(68, 319, "the action that succeeded, or the expert's: preferred",
           "ink", 13.5, "start")  # fmt: skip
    d.dot(54, 338, "agent", 5)
    d.text(68, 343, "the agent's own actions, 3 per state: compared where they differ", "ink",
           13.5, "start")  # fmt: skip
    d.text(44, 365, "One forward pass for all of them, in place of one for each pair",
           "dim", 13.5, "start")  # fmt: skip


def _scores(d: Drawing) -> None:
    """Bottom right: the score after each stage, on tasks never seen; and the way back."""
    d.box(608, 146, 328, 230)
    d.text(628, 174, "Score on 96 unseen tasks", size=16, anchor="start", bold=True)
    bottom, top, left, gap = 338, 200, 640, 60
    last = len(SCORES) - 1
    d.line(f"M{left} {top}H{left + last * gap + 34}", "expert", 1.5, arrow=False)
    d.text(left + last * gap + 36, top - 5, "expert 1.0", "expert", 12.5, "end")
    for i, (name, score) in enumerate(SCORES):
        height = (bottom - top) * score
        x = left + i * gap
        colour = "line" if i in (0, last) else "policy"
        d.parts.append(
            f'<rect x="{x}" y="{bottom - height:.1f}" width="34" height="{height:.1f}" rx="3" '
            f'fill="{d.colours[colour]}" opacity="{0.55 if i == 1 else 1}"/>'
        )
        inside = i > 0
        d.text(x + 17, bottom - height + (15 if inside else -6), f"{score:.2f}"[1:],
               "box" if inside else "ink", 12.5, bold=True)  # fmt: skip
        d.text(x + 17, 355, name, "dim", 12.5)
    d.text(left + 2 * gap - 10, 370, "practice", "dim", 12.5, "start")
    d.text(left + last * gap + 36, 370, "as many tokens", "dim", 12.5, "end")
    d.line("M790 106V126H298V144", "policy")
    d.text(544, 122, "tries 146 other tasks", "policy", 13, bold=True)
    d.line("M572 261H606", "policy")
    d.line("M886 146V108", "policy")
    d.text(893, 130, "again", "policy", 13, "start", bold=True)


if __name__ == "__main__":
    for name in THEMES:
        (FOLDER / f"overview-{name}.svg").write_text(draw(name), encoding="utf-8")
