"""What converts to what, as a Markdown table: `python -m training.convert.table`."""

from __future__ import annotations

from stepagent.envs.layouts import CONVERTIBLE, LAYOUTS
from stepagent.training.convert.exports import EXPORTS

_STEP_PAIRS = "TRL's preference pairs of single steps, from a run of `implicit` or `inverse`"


def table() -> str:
    """A row for each layout, from what the code reads and writes."""
    rows = ["| `--format` / `--to` | What it is | Read | Written |", "|---|---|---|---|"]
    for name, what in LAYOUTS.items():
        read = "yes" if name in CONVERTIBLE else "no: named, with what to do"
        written = "JSON lines, parquet" if name in EXPORTS else "no"
        if name == "trajectories":
            written = "JSON lines"
        if name == "preference":
            read = "no: pairs, not episodes"
        rows.append(f"| `{name}` | {what} | {read} | {written} |")
    rows.append(f"| `step-pairs` | {_STEP_PAIRS} | no | JSON lines, parquet |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
