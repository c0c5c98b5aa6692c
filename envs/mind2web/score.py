"""Scores of Mind2Web (Deng et al., 2023, section 4) as pure functions.

| metric           | of a step                                                                   |
|------------------|-----------------------------------------------------------------------------|
| element accuracy | the element chosen is one of the positives                                  |
| operation F1     | F1 between the sets of words of the two texts "OP value"                    |
| step success     | both are 1                                                                  |
| task success     | (of a task) every step succeeded                                            |

A step none of whose positives is among the ranked candidates scores 0 in all of them: the right
choice was impossible. *Macro* is the mean over tasks of each task's mean (the paper reports macro
element accuracy); *micro* is the mean over all steps, whatever their task. An episode's metrics
are means over its task's steps, so their means over episodes, as `eval` reports them, are macro;
`micro` here weights episodes by their steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

STEP_METRICS = ("element_accuracy", "operation_f1", "step_success")


@dataclass(frozen=True)
class StepScore:
    """One step's figures, each in [0, 1]."""

    element_accuracy: float = 0.0
    operation_f1: float = 0.0

    @property
    def step_success(self) -> float:
        return float(self.element_accuracy == 1 and self.operation_f1 == 1)


def operation_f1(answered: str, gold: str) -> float:
    """F1 between two sets of words; texts are an operation and its value, such as `TYPE new york`.

    As upstream: words are split at blanks, upper and lower case differ, repetitions do not count.

    >>> round(operation_f1("TYPE new york", "TYPE york"), 3)
    0.8
    >>> operation_f1("CLICK", "CLICK"), operation_f1("SELECT", "CLICK"), operation_f1("", "")
    (1.0, 0.0, 1.0)
    """
    answer_words, gold_words = set(answered.split()), set(gold.split())
    if not answer_words or not gold_words:
        return float(answer_words == gold_words)
    return 2 * len(answer_words & gold_words) / (len(answer_words) + len(gold_words))


def operation_text(op: str, value: str) -> str:
    """An operation and its value as one text.

    >>> operation_text("SELECT", "2 guests "), operation_text("CLICK", "")
    ('SELECT 2 guests', 'CLICK')
    """
    return f"{op} {value}".strip()


def score_step(
    node: str | None, operation: str, positives: Iterable[str], gold: str, shown: Iterable[str]
) -> StepScore:
    """Scores an answer.

    Parameters
    ----------
    node: id of the element chosen; None if no element was.
    operation, gold: operation texts of the answer ("" if there was none) and of the record.
    positives: ids of all elements that count as right.
    shown: ids of the ranked candidates (the best 50, as a rule).
    """
    reachable = set(positives) & set(shown)
    if not reachable or not operation:
        return StepScore()
    return StepScore(float(node in reachable), operation_f1(operation, gold))


def task_metrics(scores: Sequence[StepScore], steps: int) -> dict[str, float]:
    """An episode's metrics: means over all of the task's steps, those not reached counting as 0.

    `steps` is the task's number of steps (at least 1); it is one of the metrics, `task_steps`.
    """
    metrics = {name: sum(getattr(s, name) for s in scores) / steps for name in STEP_METRICS}
    done = len(scores) == steps and all(s.step_success for s in scores)
    return {**metrics, "task_success": float(done), "task_steps": float(steps)}


class _Episode(Protocol):
    @property
    def metrics(self) -> dict[str, float]: ...

    @property
    def error(self) -> str: ...


def macro(trajectories: Sequence[_Episode]) -> dict[str, float]:
    """Means over tasks. Failed episodes count as 0. Raises ValueError if there is none."""
    return _weighed(trajectories, [1.0] * len(trajectories))


def micro(trajectories: Sequence[_Episode]) -> dict[str, float]:
    """Means over the steps of all tasks (task success stays a mean over tasks).

    `trajectories` are `envs.Trajectory`s of this environment. Failed episodes count as 0, with the
    mean number of steps if theirs is unknown. Raises ValueError if there is none, or
    where they are of another environment.
    """
    known = [t.metrics["task_steps"] for t in trajectories if "task_steps" in t.metrics]
    typical = fmean(known) if known else 1.0
    return _weighed(trajectories, [t.metrics.get("task_steps", typical) for t in trajectories])


def _weighed(trajectories: Sequence[_Episode], weights: Sequence[float]) -> dict[str, float]:
    if not trajectories:
        raise ValueError("there is no trajectory to score")
    rows = [{} if t.error else t.metrics for t in trajectories]
    strange = [t for t in trajectories if not t.error and "task_steps" not in t.metrics]
    if strange:
        raise ValueError(
            f"{len(strange)} trajectories lack the metric 'task_steps': they are not from Mind2Web"
        )
    means = {name: fmean([row.get(name, 0.0) for row in rows], weights) for name in STEP_METRICS}
    return {**means, "task_success": fmean([row.get("task_success", 0.0) for row in rows])}
