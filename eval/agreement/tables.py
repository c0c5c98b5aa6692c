"""Agreement as tables, for the terminal and `eval.compare`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stepagent.eval.agreement.measures import MEASURES, Agreement, Measure
from stepagent.eval.paired import Paired
from stepagent.eval.tables import MISSING, Table, p_value

NOTE = (
    "Agreement with the expert on held-out trajectories, read once: loss in nats per action, step "
    "match (greedy reply = the expert's) and trajectory match (all steps) in percent; intervals: "
    "95 %, bootstrap over trajectories. p: sign flips of trajectories."
)


def figures_table(title: str, summaries: Mapping[str, Agreement]) -> Table:
    """A row per policy."""
    head = ["policy", "trajectories", "loss [95 %]", "step match [95 %]", "trajectory match [95 %]"]
    table = Table(title, head)
    for name, s in summaries.items():
        out = f" ({s.left_out} left out)" if s.left_out else ""
        cells = [figure(m, getattr(s, m), getattr(s, f"{m}_ci95")) for m in MEASURES]
        table.rows.append([name, f"{s.trajectories}{out}", *cells])
    return table


def differences_table(gains: Mapping[str, Mapping[Measure, Paired]]) -> Table:
    """A row per pair of policies, with a p-value for the step match."""
    head = ["compared", "trajectories", "loss", "step match", "trajectory match", "p (step match)"]
    table = Table("Paired differences of the agreement, match in percentage points", head)
    for name, of in gains.items():
        cells = [figure(m, d.mean, (d.low, d.high), "+") for m, d in of.items()]
        common_to = [str(d.tasks) for d in of.values()][:1]
        p = [p_value(of["step_match"].p)] if of else []
        table.rows.append(
            [name, *common_to, *cells, *p] if of else [name, "none in common", *[MISSING] * 4]
        )
    return table


def figure(measure: Measure, mean: float, bounds: Sequence[float], sign: str = "") -> str:
    """A mean with its interval: the loss in nats, the others in percent.

    >>> figure("step_match", 0.5, (0.4, 0.6)), figure("loss", 0.5, (0.4, 0.6), "+")
    ('50.0 [40.0, 60.0]', '+0.500 [+0.400, +0.600]')
    """
    scale, digits = (1, 3) if measure == "loss" else (100, 1)
    low, high = (f"{scale * bound:{sign}.{digits}f}" for bound in bounds)
    return f"{scale * mean:{sign}.{digits}f} [{low}, {high}]"
