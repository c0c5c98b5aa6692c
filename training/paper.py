"""What the paper reports (tables 2 and 3), to be shown beside ours and marked as its own.

Percent: mean reward of WebShop and ScienceWorld, success rate of ALFWorld, macro element accuracy
of Mind2Web, exact match of the rest, on backbones of 7 and 8 billion parameters and each
benchmark's own test set. Ours, on small models and part of the tasks, compare in order, not in
height.
"""

from __future__ import annotations

COLUMNS = (
    "stepagent/WebShop-v0",
    "stepagent/Mind2Web-v0",
    "stepagent/ScienceWorld-v0",
    "stepagent/ALFWorld-v0",
    "stepagent/HotpotQA-v0",
    "stepagent/2WikiMultihopQA-v0",
    "stepagent/MuSiQue-v0",
)
"""Environment id of each figure in a row below."""

TABLE2: dict[str, dict[str, tuple[float, ...]]] = {
    "Mistral-7B": {
        "base": (2.7, 17.8, 4.2, 0.0, 4.2, 10.6, 1.4),
        "sft": (60.1, 48.7, 52.0, 68.5, 24.8, 40.4, 22.9),
        "ppo": (60.8, 49.5, 53.3, 69.1, 25.4, 41.5, 23.2),
        "dpo": (62.4, 50.9, 54.1, 70.6, 26.9, 42.7, 24.9),
        "rft": (61.5, 49.8, 53.2, 69.8, 26.0, 42.2, 23.5),
        "spin": (63.6, 51.7, 55.0, 71.4, 27.6, 43.1, 25.0),
        "nat": (61.3, 50.4, 52.9, 69.3, 26.1, 41.9, 24.1),
        "eto": (64.1, 52.4, 56.5, 72.8, 28.2, 43.8, 25.4),
        "implicit": (66.2, 53.3, 59.6, 74.2, 31.0, 46.8, 27.7),
        "inverse": (66.5, 53.6, 59.7, 74.9, 30.8, 46.6, 27.5),
    },
    "Llama-3-8B": {
        "base": (7.2, 23.6, 32.3, 0.0, 15.6, 13.8, 9.0),
        "sft": (62.6, 50.3, 54.5, 67.8, 33.0, 47.8, 30.6),
        "ppo": (63.2, 51.0, 55.0, 67.9, 33.2, 47.6, 30.4),
        "dpo": (64.0, 52.6, 56.9, 70.3, 35.1, 48.5, 31.6),
        "rft": (63.6, 50.8, 54.7, 68.0, 33.5, 47.9, 30.8),
        "spin": (65.4, 53.9, 60.3, 71.9, 34.8, 48.9, 31.9),
        "nat": (63.2, 50.9, 55.6, 68.3, 33.4, 48.0, 31.0),
        "eto": (65.7, 54.0, 62.5, 73.4, 35.2, 49.4, 32.3),
        "implicit": (67.2, 55.8, 63.6, 75.5, 38.1, 51.3, 34.4),
        "inverse": (67.6, 55.9, 64.1, 76.1, 37.8, 52.0, 34.1),
    },
}
"""Backbone → method → figures in the order of `COLUMNS`."""

TABLE3: dict[str, tuple[float, ...]] = {
    "final": (65.7, 54.0, 62.5, 73.4, 35.2, 49.4, 32.3),
    "step": (67.6, 55.9, 64.1, 76.1, 37.8, 52.0, 34.1),
    "both": (68.0, 56.4, 64.8, 76.2, 38.9, 52.0, 34.8),
}
"""Reward type → figures of StepAgent-Inverse on Llama-3-8B. (Its row "final" repeats ETO's.)"""

BEST_ITERATION = {"implicit": 3, "inverse": 7}
"""Figure 4(a), WebShop: where each method peaks, as the text says."""
BEST_PRACTICE = 3
"""Figure 4(b): the practice number with the best result, as the text says."""


def table2(method: str, env: str) -> dict[str, float]:
    """Backbone → the paper's figure in percent; empty where it has none."""
    if env not in COLUMNS:
        return {}
    place = COLUMNS.index(env)
    return {b: rows[method][place] for b, rows in TABLE2.items() if method in rows}


def table3(reward: str, env: str) -> float | None:
    """The paper's figure in percent; None where it has none."""
    if env not in COLUMNS or reward not in TABLE3:
        return None
    return TABLE3[reward][COLUMNS.index(env)]
