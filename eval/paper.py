"""The paper's table 2, to show beside our figures, marked as the paper's own.

Percent: mean reward of WebShop and ScienceWorld, success rate of ALFWorld, macro element accuracy
of Mind2Web, exact match of the rest, each on the benchmark's own test set; GPT-3.5 and GPT-4 are
only prompted, the rest are trained backbones of 7 and 8 billion parameters. Our figures, on small
models and part of the tasks, can match the paper's in order, not in magnitude.
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
    "GPT-3.5": {"base": (40.2, 2.0, 19.9, 2.2, 13.0, 17.6, 4.6)},
    "GPT-4": {"base": (58.0, 26.7, 53.6, 36.6, 39.4, 64.8, 28.2)},
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

LABELS = {
    "base": "base",
    **{name: name.upper() for name in ("sft", "ppo", "dpo", "rft", "spin", "nat", "eto")},
    "implicit": "StepAgent-Implicit",
    "inverse": "StepAgent-Inverse",
    "grpo": "GRPO",
    "gigpo": "GiGPO",
}
"""Names of the rows, and of methods that the paper does not have."""


def table2(method: str, env: str) -> dict[str, float]:
    """Backbone → the paper's figure in percent; empty if it has none."""
    if env not in COLUMNS:
        return {}
    place = COLUMNS.index(env)
    return {b: rows[method][place] for b, rows in TABLE2.items() if method in rows}


def references(env: str) -> list[tuple[str, float]]:
    """All of the paper's rows for an environment, as (name, percent); empty if it has none.

    >>> references("stepagent/MuSiQue-v0")[-1]
    ('Llama-3-8B, StepAgent-Inverse', 34.1)
    """
    if env not in COLUMNS:
        return []
    place = COLUMNS.index(env)
    return [
        (f"{backbone}, {LABELS[method]}", figures[place])
        for backbone, rows in TABLE2.items()
        for method, figures in rows.items()
    ]
