"""From trajectories to `summary.json`: means with intervals, by task type, with failures counted.

So that no agent can gain by crashing, an episode that failed (`error` is set: an environment or an
agent broke) counts as reward 0, no success and 0 in every metric, and `failed` says how many these
are. Steps and truncation are means over the episodes that did not fail; `valid_rate` is the share
of all steps that the environment understood and allowed.

The 95 % interval of the mean reward is a percentile bootstrap over episodes (10,000 resamples,
seeded, so the same results give the same interval): scores in [0, 1] pile up at both ends, where a
normal or t-interval would leave the range. The interval of the success rate is Wilson's. Both are
about unseen tasks of the same kind; with fewer than about ten episodes they are too narrow to rely
on.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stepagent.envs.trajectory import Trajectory
from stepagent.files import write_text

RESAMPLES = 10_000
_Z = 1.959964
"""97.5 % quantile of the normal distribution."""


def summarise(trajectories: Sequence[Trajectory], *, seconds: float = 0.0) -> dict[str, Any]:
    """The summary of one agent on one environment and split.

    `seconds` is the wall-clock time of the entire run. Raises ValueError if there is no trajectory,
    or if they are of several environments, agents or splits.
    """
    if not trajectories:
        raise ValueError("there is no episode to summarise")
    for name in ("env", "agent", "split"):
        if len(values := sorted({getattr(t, name) for t in trajectories})) > 1:
            raise ValueError(f"one summary cannot mix several values of {name}: {values}")
    trajectories = sorted(
        trajectories, key=lambda t: (t.task_id, t.seed)
    )  # whatever order they ended in
    rewards = [score(t) for t in trajectories]
    first = trajectories[0]
    return {
        "env": first.env,
        "agent": first.agent,
        "split": first.split,
        "episodes": len(trajectories),
        "failed": sum(bool(t.error) for t in trajectories),
        "reward_mean": float(np.mean(rewards)),
        "reward_ci95": list(bootstrap(rewards)),
        **_means(trajectories),
        "success_ci95": list(wilson(sum(map(_success, trajectories)), len(trajectories))),
        "metrics": _metrics(trajectories),
        "endings": _endings(trajectories),
        "notes": explain_endings(trajectories, first.fingerprint),
        "by_type": _by_type(trajectories),
        "data_notes": data_notes(trajectories),
        "seeds": sorted({t.seed for t in trajectories}),
        "seconds": round(seconds, 3),
        "fingerprint": first.fingerprint,
    }


def data_notes(trajectories: Iterable[Trajectory]) -> dict[str, int]:
    """What of the episodes' data was missing, replaced or cut: reason → how often."""
    counts: Counter[str] = Counter()
    for trajectory in trajectories:
        counts.update(trajectory.data_notes)
    return dict(sorted(counts.items()))


def bootstrap(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Percentile interval [2.5 %, 97.5 %] of the mean of `values` (at least one).

    >>> bootstrap([0.5] * 20)
    (0.5, 0.5)
    """
    data = np.asarray(values, dtype=float)
    means = [data[drawn].mean(axis=1) for drawn in resamples(len(data), seed)]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


def resamples(n: int, seed: int = 0) -> Iterator[np.ndarray]:
    """`RESAMPLES` bootstrap samples of n items: indices [block, n], at most 16 MB at a time."""
    rng, block = np.random.default_rng(seed), max(1, 2_000_000 // n)
    for done in range(0, RESAMPLES, block):
        yield rng.integers(n, size=(min(block, RESAMPLES - done), n))


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate (Wilson, 1927).

    >>> [round(bound, 3) for bound in wilson(8, 10)]
    [0.49, 0.943]
    >>> wilson(20, 20)[1], wilson(0, 20)[0]
    (1.0, 0.0)
    """
    rate, z2 = successes / n, _Z * _Z
    centre, width = rate + z2 / (2 * n), _Z * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n))
    low, high = (centre - width) / (1 + z2 / n), (centre + width) / (1 + z2 / n)
    return low if successes else 0.0, high if successes < n else 1.0  # exactly, by the formula


def score(trajectory: Trajectory) -> float:
    """The score of an episode, in [0, 1]: its reward, or 0 if it failed."""
    return 0.0 if trajectory.error else float(trajectory.reward)


def _success(trajectory: Trajectory) -> bool:
    return trajectory.success and not trajectory.error


def _means(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Success, validity, truncation and length; 0 if nothing was played."""
    played = [t for t in trajectories if not t.error]
    valid = [step.valid for t in trajectories for step in t.steps]
    return {
        "success_rate": _mean([_success(t) for t in trajectories]),
        "valid_rate": _mean(valid),
        "truncated_rate": _mean([t.truncated for t in played]),
        "steps_mean": _mean([len(t.steps) for t in played]),
    }


def _endings(trajectories: Sequence[Trajectory]) -> dict[str, int]:
    """How many replies did not end by themselves, by how they ended (`agents.core.ModelReply`)."""
    counts = Counter(step.ending for t in trajectories for step in t.steps if step.ending)
    return dict(sorted(counts.items()))


def explain_endings(
    trajectories: Sequence[Trajectory], fingerprint: Mapping[str, str]
) -> list[str]:
    """What people should know of the replies that did not end by themselves, and can do."""
    limit = re.search(r"max_new_tokens\W+(\d+)", fingerprint.get("agent.decoding", ""))
    at = f"at {limit[1]} tokens" if limit else "at their limit"
    what = {
        "length": f"were cut {at}: raise --max-new-tokens",
        "refusal": "were refusals",
        "filter": "were stopped by a content filter",
        "empty": "were empty",
    }
    total = sum(len(t.steps) for t in trajectories)
    return [
        f"{count} of {total} replies {what.get(ending, f'ended with {ending}')}"
        for ending, count in _endings(trajectories).items()
    ]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0


def _metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Mean of each of the benchmark's own metrics."""
    names = sorted({name for t in trajectories for name in t.metrics})
    return {
        name: _mean([0.0 if t.error else t.metrics.get(name, 0.0) for t in trajectories])
        for name in names
    }


def _by_type(trajectories: Sequence[Trajectory]) -> dict[str, dict[str, Any]]:
    """The same by task type (none: no types)."""
    return {
        name: {
            "episodes": len(group),
            "failed": sum(bool(t.error) for t in group),
            "reward_mean": _mean([score(t) for t in group]),
            "reward_ci95": list(bootstrap([score(t) for t in group])),
            **_means(group),
            "success_ci95": list(wilson(sum(map(_success, group)), len(group))),
        }
        for name, group in sorted(by_type(trajectories).items())
    }


def by_type(trajectories: Sequence[Trajectory]) -> dict[str, list[Trajectory]]:
    """The episodes of each task type; those without a type are left out."""
    groups: dict[str, list[Trajectory]] = defaultdict(list)
    for trajectory in trajectories:
        if trajectory.task_type:
            groups[trajectory.task_type].append(trajectory)
    return groups


def save(summary: dict[str, Any], path: Path) -> None:
    """Writes `summary.json` atomically."""
    write_text(path, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
