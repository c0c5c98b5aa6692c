"""Agreement with the expert: `stepagent agreement POLICY … --env ID`."""

from stepagent.eval.agreement.measures import (
    MEASURES,
    ROWS,
    SUMMARY,
    Agreement,
    Measure,
    TrajectoryAgreement,
    common,
    differences,
    load,
    measure,
    read_replies,
    save,
    summarise,
    totals,
    weights,
)

__all__ = [
    "MEASURES",
    "ROWS",
    "SUMMARY",
    "Agreement",
    "Measure",
    "TrajectoryAgreement",
    "common",
    "differences",
    "load",
    "measure",
    "read_replies",
    "save",
    "summarise",
    "totals",
    "weights",
]
