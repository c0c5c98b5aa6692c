"""The paper's table 3 and figure 4 (its table 2 is in `eval.paper`).

Shown beside ours and marked as the paper's own; in percent, as table 2.
"""

from __future__ import annotations

from stepagent.eval.paper import COLUMNS, TABLE2, table2

__all__ = [
    "BEST_ITERATION",
    "BEST_PRACTICE",
    "COLUMNS",
    "TABLE2",
    "TABLE3",
    "has",
    "table2",
    "table3",
]

TABLE3: dict[str, tuple[float, ...]] = {
    "final": (65.7, 54.0, 62.5, 73.4, 35.2, 49.4, 32.3),
    "step": (67.6, 55.9, 64.1, 76.1, 37.8, 52.0, 34.1),
    "both": (68.0, 56.4, 64.8, 76.2, 38.9, 52.0, 34.8),
}
"""Reward type → figures of StepAgent-Inverse on Llama-3-8B. (Its row "final" repeats ETO's.)"""

BEST_ITERATION = {"implicit": 3, "inverse": 7}
"""Figure 4(a), WebShop: where each method peaks, as the text says."""
BEST_PRACTICE = {"implicit": 3, "inverse": 3}
"""Figure 4(b): the practice number with the best result, as the text says."""


def has(name: str, method: str) -> bool:
    """Whether the paper has a sweep's row of this name and method: it has no variants of ours.

    >>> has("implicit", "implicit"), has("inverse-paper", "inverse"), has("eto-own", "eto")
    (True, True, False)
    """
    return name in (method, f"{method}-paper")


def table3(reward: str, env: str) -> float | None:
    """The paper's figure in percent; None where it has none."""
    if env not in COLUMNS or reward not in TABLE3:
        return None
    return TABLE3[reward][COLUMNS.index(env)]
