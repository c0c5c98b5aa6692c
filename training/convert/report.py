"""What became of the records of a conversion: counted, listed, shown."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from stepagent.envs.layouts import LAYOUTS
from stepagent.eval.replay import Difference
from stepagent.eval.tables import tell

_LISTED = 10_000
"""Entries of each list in the report; all are counted."""
_SHOWN = 5


@dataclass
class Report:
    """What became of the records."""

    records: int = 0
    converted: int = 0
    rows: int = 0
    layouts: Counter[str] = field(default_factory=Counter)
    envs: Counter[str] = field(default_factory=Counter)
    tasks_unknown: int = 0
    rewards_assumed: Counter[str] = field(default_factory=Counter)
    """Score → records that were given it, because neither they nor a replay say theirs."""
    replays: Counter[str] = field(default_factory=Counter)
    """equal, differing, over_limit, and reasons why others were not replayed."""
    differing_steps: Counter[str] = field(default_factory=Counter)
    not_understood: Counter[str] = field(default_factory=Counter)
    """Reason → records."""
    problems: list[dict[str, str]] = field(default_factory=list)
    differences: list[dict[str, Any]] = field(default_factory=list)

    def problem(self, path: Path, place: str, reason: str) -> None:
        self.not_understood[reason] += 1
        if len(self.problems) < _LISTED:
            self.problems.append({"file": str(path), "record": place, "reason": reason})

    def difference(self, path: Path, place: str, difference: Difference) -> None:
        self.differing_steps[f"{difference.what}, step {difference.step}"] += 1
        if len(self.differences) < _LISTED:
            texts = {
                "recorded": str(difference.recorded)[:300],
                "replayed": str(difference.replayed)[:300],
            }
            about = {**asdict(difference), **texts}
            self.differences.append({"file": str(path), "record": place, **about})


def show(report: Report, out: Path, console: Console) -> None:
    layouts = ", ".join(f"{n} of {LAYOUTS[name]}" for name, n in report.layouts.items())
    if report.records:
        tell(console, f"{report.converted} of {report.records} records converted ({layouts})")
    for env, count in report.envs.items():
        tell(console, f"  {env}: {count}")
    if report.tasks_unknown:
        tell(console, f"the environment has no task for {report.tasks_unknown}: kept, not replayed")
    for reason, count in report.replays.items():
        if reason not in ("over_limit", "differing", "equal"):
            tell(console, f"{count} {reason}")
    if compared := report.replays["equal"] + report.replays["differing"]:
        tell(console, f"{report.replays['equal']} of {compared} replay equal")
    if report.replays["over_limit"]:
        tell(console, f"{report.replays['over_limit']} are longer than the environment allows")
    for score, count in report.rewards_assumed.items():
        tell(console, f"{count} say no score: taken as {score} (--reward changes that)")
    for where, count in report.differing_steps.most_common(_SHOWN):
        tell(console, f"  {count} differ first in: {where}")
    for entry in report.differences[:1]:
        tell(console, str(Difference(**{k: entry[k] for k in Difference.__dataclass_fields__})))
    for entry in report.problems[:_SHOWN]:
        tell(console, f"{entry['file']}, {entry['record']}: {entry['reason']}")
    if (more := sum(report.not_understood.values()) - _SHOWN) > 0:
        tell(console, f"… and {more} more records that cannot be read")
    tell(console, f"{report.rows} rows in {out}; details in its report")
