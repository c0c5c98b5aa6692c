"""How far a policy agrees with the expert, read off expert trajectories that it was not trained on.

    loss              mean negative log-likelihood of the expert's action given its state, in nats
    step_match        share of states in which the policy's greedy reply is the expert's
    trajectory_match  share of trajectories in which that holds for every step

One forward pass reads a whole trajectory: a reply's tokens are all the most likely ones given those
before exactly when greedy decoding would write that reply. So the measure costs a small part of
playing the tasks, and has a value per step instead of one per episode. It says nothing about states
that the expert never visits.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from stepagent.envs.react import Prompt, PromptStyle
from stepagent.envs.trajectory import Trajectory
from stepagent.eval.paired import Paired, sign_flip
from stepagent.eval.results import ResultsError
from stepagent.eval.summary import resamples
from stepagent.files import is_file, parse_json, read_text, write_text

if TYPE_CHECKING:
    from stepagent.agents.chat import ChatCodec

Measure = Literal["loss", "step_match", "trajectory_match"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
SUMMARY, ROWS = "agreement.json", "agreement.jsonl"
"""Files beside an evaluation's results: the figures, and a line per trajectory."""


@dataclass(frozen=True)
class TrajectoryAgreement:
    """One expert trajectory under a policy."""

    task_id: str
    losses: tuple[float, ...]
    """Negative log-likelihood of each of the expert's replies, end of turn included, in nats."""
    matches: tuple[bool, ...]
    """Whether greedy decoding writes each reply."""

    @staticmethod
    def of(row: Mapping[str, Any]) -> TrajectoryAgreement:
        """The inverse of `asdict`. Raises ValueError, KeyError or TypeError for any other row."""
        losses, matches = tuple(map(float, row["losses"])), tuple(map(bool, row["matches"]))
        if not losses or len(losses) != len(matches):
            raise ValueError("not one loss and one match per step")
        return TrajectoryAgreement(str(row["task_id"]), losses, matches)

    def total(self, measure: Measure) -> float:
        """What the trajectory adds to the sum of which the measure is the mean."""
        if measure == "loss":
            return sum(self.losses)
        return float(sum(self.matches) if measure == "step_match" else all(self.matches))

    def weight(self, measure: Measure) -> int:
        """For how many the trajectory counts in that mean: its steps, or itself."""
        return 1 if measure == "trajectory_match" else len(self.losses)


@dataclass(frozen=True)
class Agreement:
    """Agreement over a set of trajectories; intervals are 95 % bootstraps over trajectories."""

    loss: float
    """Nats per action."""
    loss_ci95: tuple[float, float]
    step_match: float
    step_match_ci95: tuple[float, float]
    trajectory_match: float
    trajectory_match_ci95: tuple[float, float]
    steps: int
    trajectories: int
    left_out: int
    """Trajectories that are longer than the model's context, or hold no step."""


def measure(
    model: Any,
    codec: ChatCodec,
    trajectories: Iterable[Trajectory],
    prompt: Prompt,
    style: PromptStyle,
    context: int,
) -> tuple[list[TrajectoryAgreement], int]:
    """Reads each trajectory once; returns what was read, and how many were left out.

    Parameters
    ----------
    model: a causal language model in evaluation mode.
    context: tokens that a trajectory may have.
    """
    rows, left_out = [], 0
    for trajectory in trajectories:
        encoded = codec.encode(trajectory.messages(prompt, style)) if trajectory.steps else None
        if encoded is None or trajectory.error or encoded.longest > context:
            left_out += 1
            continue
        # A template that rewrites history shows the model another text in every step.
        steps = range(len(encoded.replies)) if encoded.joins else ()
        alone = [encoded.alone(step) for step in steps] or [encoded]
        read = [read_replies(model, row.ids, row.replies) for row in alone]
        losses, matches = (sum(parts, ()) for parts in zip(*read, strict=True))
        rows.append(TrajectoryAgreement(trajectory.task_id, losses, matches))
    return rows, left_out


def read_replies(
    model: Any, ids: Sequence[int], replies: Sequence[tuple[int, int]]
) -> tuple[tuple[float, ...], tuple[bool, ...]]:
    """Negative log-likelihood (nats) of each reply, and whether it is the greedy one.

    `replies` are half-open spans [start, end) of `ids`, in order, none of which starts at 0.
    """
    import torch

    positions = [at - 1 for start, end in replies for at in range(start, end)]
    with torch.no_grad():
        device = model.get_input_embeddings().weight.device
        tokens = torch.tensor([list(ids)], device=device)
        at = torch.tensor(positions, device=device)
        # Only where a reply's token is predicted: a vocabulary is large, a trajectory long.
        logits = model(input_ids=tokens, use_cache=False, logits_to_keep=at).logits[0].float()
        targets = tokens[0, at + 1]
        log_probs = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0].cpu()
        greedy = (logits.argmax(-1) == targets).cpu()
    lengths = [end - start for start, end in replies]
    return (
        tuple(-float(part.sum()) for part in log_probs.split(lengths)),
        tuple(bool(part.all()) for part in greedy.split(lengths)),
    )


def summarise(rows: Sequence[TrajectoryAgreement], left_out: int = 0) -> Agreement:
    """Means over steps (or trajectories) with intervals. Raises ValueError without a trajectory.

    >>> rows = [TrajectoryAgreement("a", (1.0, 3.0), (True, False))] * 2
    >>> summary = summarise(rows)
    >>> summary.loss, summary.step_match, summary.trajectory_match, summary.step_match_ci95
    (2.0, 0.5, 0.0, (0.5, 0.5))
    """
    if not rows:
        raise ValueError(
            f"there is no trajectory to measure agreement on ({left_out} were left out: empty, "
            "failed, or longer than the model's context)"
        )
    means, intervals = [], []
    for measure in MEASURES:
        total, weight = totals(rows, measure), weights(rows, measure)
        means.append(float(total.sum() / weight.sum()))
        intervals.append(_interval(total, weight))
    return Agreement(
        means[0],
        intervals[0],
        means[1],
        intervals[1],
        means[2],
        intervals[2],
        steps=sum(len(row.losses) for row in rows),
        trajectories=len(rows),
        left_out=left_out,
    )


def deciding(wording: str) -> Literal["step_match", "loss"]:
    """The measure by which policies are chosen on dev, where the expert's thoughts are worded so
    (`expert.wording`): among many wordings, greedy decoding rarely writes the expert's."""
    return "step_match" if wording == "fixed" else "loss"


def order(measure: Measure, step_match: float, loss: float) -> tuple[float, float]:
    """Smaller for the better policy: that of the higher step match (unless the loss alone decides),
    then of the lower loss.

    >>> order("step_match", 0.9, 2.0) < order("step_match", 0.8, 1.0)
    True
    """
    return -step_match if measure == "step_match" else 0.0, loss


def totals(rows: Sequence[TrajectoryAgreement], measure: Measure) -> np.ndarray:
    """[trajectories]: each one's part of the sum of which the measure is the mean."""
    return np.array([row.total(measure) for row in rows])


def weights(rows: Sequence[TrajectoryAgreement], measure: Measure) -> np.ndarray:
    """[trajectories]: the number that each part is a sum over."""
    return np.array([row.weight(measure) for row in rows], dtype=float)


def _interval(totals: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Percentile interval of Σ totals / Σ weights, whole trajectories resampled."""
    ratios = [totals[i].sum(axis=1) / weights[i].sum(axis=1) for i in resamples(len(totals))]
    low, high = np.percentile(np.concatenate(ratios), [2.5, 97.5])
    return float(low), float(high)


def differences(
    first: Mapping[str, TrajectoryAgreement], second: Mapping[str, TrajectoryAgreement]
) -> dict[Measure, Paired]:
    """The measures of the second policy minus those of the first, on the trajectories (by task id)
    that both have read; {} where there is none. `better` counts trajectories.

    >>> one = {"a": TrajectoryAgreement("a", (1.0, 3.0), (True, False))}
    >>> two = {"a": TrajectoryAgreement("a", (1.0, 1.0), (True, True))}
    >>> {name: d.mean for name, d in differences(one, two).items()}
    {'loss': -1.0, 'step_match': 0.5, 'trajectory_match': 1.0}
    """
    tasks = common(first, second)
    if not tasks:
        return {}
    before, after = ([side[task] for task in tasks] for side in (first, second))
    result: dict[Measure, Paired] = {}
    for measure in MEASURES:
        gains, weight = totals(after, measure) - totals(before, measure), weights(after, measure)
        gains[np.abs(gains) < 1e-9] = 0.0
        up, down = int((gains > 0).sum()), int((gains < 0).sum())
        better, worse = (down, up) if measure == "loss" else (up, down)
        mean = float(gains.sum() / weight.sum())
        low, high = _interval(gains, weight)
        result[measure] = Paired(len(tasks), mean, low, high, sign_flip(gains), better, worse)
    return result


def common(*readings: Mapping[str, TrajectoryAgreement]) -> list[str]:
    """The tasks whose trajectory all have read, with as many steps."""
    tasks = set.intersection(*(set(reading) for reading in readings))
    lengths = {t: {len(reading[t].losses) for reading in readings} for t in tasks}
    return sorted(task for task, steps in lengths.items() if len(steps) == 1)


# Files --------------------------------------------------------------------------------------------


def save(folder: Path, rows: Sequence[TrajectoryAgreement], left_out: int = 0) -> Agreement:
    """Writes the trajectories' figures and, after them, their summary; returns the summary."""
    summary = summarise(rows, left_out)
    write_text(folder / ROWS, "".join(json.dumps(asdict(row)) + "\n" for row in rows))
    write_text(folder / SUMMARY, json.dumps(asdict(summary), indent=1))
    return summary


def load(folder: Path) -> dict[str, TrajectoryAgreement]:
    """Task id → what `save` wrote of its trajectory; {} where there is nothing.

    Raises ResultsError for a file that is damaged.
    """
    path, rows = folder / ROWS, {}
    if not is_file(path):
        return {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        try:
            read = TrajectoryAgreement.of(parse_json(line))
        except (ValueError, KeyError, TypeError) as error:
            raise ResultsError(f"{path}, line {number}, is no agreement: {error!r}") from None
        rows[read.task_id] = read
    return rows
