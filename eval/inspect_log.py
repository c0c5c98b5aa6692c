"""Our results for Inspect's log viewer: `stepagent inspect-log DIR --out logs/run.eval`.

Then `inspect view --log-dir logs`. It needs Inspect (`pip install 'stepagent[inspect]'`), whose own
classes write the file.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from stepagent.command_line import Command
from stepagent.envs import trajectory as files
from stepagent.envs.core import checksum
from stepagent.envs.react import Prompt, PromptStyle
from stepagent.envs.trajectory import BadLine, Trajectory
from stepagent.eval.results import Identity
from stepagent.eval.tables import tell

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalSample, EvalScore

_NO_PROMPT = PromptStyle(instruction=False, example=False)


@dataclass
class Config:
    """Writes the results of an evaluation as a log for Inspect's viewer."""

    results: Path
    """Folder of the evaluation, or a file of trajectories."""
    out: Path | None = None
    """Log to write, a file that ends in .eval or .json. null: beside the results, ending in
    .eval."""


def export(results: Path, out: Path | None = None, bad: list[BadLine] | None = None) -> Path:
    """Writes the log of a results folder or file; returns where it is.

    Lines that cannot be read are appended to `bad`. Raises ValueError if there is nothing to
    write or the trajectories are of several runs, and ImportError without Inspect.
    """
    from inspect_ai.log import write_eval_log

    path = results / "results.jsonl" if results.is_dir() else results
    trajectories = files.read(path, bad)
    out = out or path.with_suffix(".eval")
    if out.suffix not in (".eval", ".json"):
        raise ValueError(f"{out}: a log's name ends in .eval or .json")
    out.parent.mkdir(parents=True, exist_ok=True)
    finished_at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    write_eval_log(to_log(trajectories, finished_at), str(out))
    return out


def to_log(trajectories: Sequence[Trajectory], finished_at: datetime) -> EvalLog:
    """The trajectories of one run as a log; the last one of each task counts."""
    from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalResults, EvalSpec, EvalStats

    if not trajectories:
        raise ValueError("there are no results to export")
    last = {trajectory.task_id: trajectory for trajectory in trajectories}
    first, *others = last.values()
    for other in others:
        if different := Identity.of(first).differences(Identity.of(other)):
            raise ValueError(f"the trajectories are of several runs: {'; '.join(different)}")
    finished = [trajectory for trajectory in last.values() if not trajectory.error]
    run_id, at = checksum(*(t.to_json() for t in last.values())), finished_at.isoformat()
    return EvalLog(
        status="success",
        eval=EvalSpec(
            created=at,
            eval_id=run_id,
            run_id=run_id,
            task=first.env,
            task_id=f"{first.env} {first.split}",
            task_args={"split": first.split, "seed": first.seed},
            dataset=EvalDataset(
                name=f"{first.env} {first.split}", samples=len(last), sample_ids=[*last]
            ),
            model=first.agent,
            config=EvalConfig(),
            packages={"stepagent": first.fingerprint.get("stepagent", "")},
            metadata={"fingerprint": first.fingerprint},
        ),
        results=EvalResults(
            total_samples=len(last),
            completed_samples=len(finished),
            scores=[
                _summary("episode_score", "mean", [t.reward for t in finished]),
                _summary("episode_success", "accuracy", [float(t.success) for t in finished]),
            ],
        ),
        stats=EvalStats(started_at=at, completed_at=at),
        samples=[_sample(trajectory) for trajectory in last.values()],
    )


def _summary(name: str, center: str, values: Sequence[float]) -> EvalScore:
    from inspect_ai.log import EvalMetric, EvalScore

    mean = statistics.fmean(values) if values else 0.0
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return EvalScore(
        name=name,
        scorer=name,
        scored_samples=len(values),
        metrics={
            center: EvalMetric(name=center, value=mean),
            "stderr": EvalMetric(name="stderr", value=error),
        },
    )


def _sample(trajectory: Trajectory) -> EvalSample:
    from inspect_ai.log import EvalError, EvalSample
    from inspect_ai.model import ModelOutput
    from inspect_ai.scorer import CORRECT, INCORRECT, Score

    from stepagent.eval.inspect_tasks import chat_message

    messages = trajectory.messages(Prompt("", ()), _NO_PROMPT)
    if trajectory.steps:
        messages.append({"role": "user", "content": trajectory.final_observation})
    replies = [message["content"] for message in messages if message["role"] == "assistant"]
    error = trajectory.error
    return EvalSample(
        id=trajectory.task_id,
        epoch=1,
        input=messages[0]["content"],
        target="",
        messages=[chat_message(message) for message in messages],
        output=ModelOutput.from_content(trajectory.agent, replies[-1] if replies else ""),
        scores={
            "episode_score": Score(value=trajectory.reward, metadata=dict(trajectory.metrics)),
            "episode_success": Score(value=CORRECT if trajectory.success else INCORRECT),
        },
        metadata={
            "seed": trajectory.seed,
            "truncated": trajectory.truncated,
            "step_rewards": [step.reward for step in trajectory.steps],
            "valid": [step.valid for step in trajectory.steps],
        },
        total_time=trajectory.seconds,
        error=EvalError(message=error, traceback=error, traceback_ansi=error) if error else None,
    )


def write(config: Config) -> int:
    bad = list[BadLine]()
    out = export(config.results, config.out, bad)
    for line in bad:
        tell(Console(stderr=True), f"note: {line}")
    tell(Console(), f"wrote {out}: inspect view --log-dir {out.parent}")
    return 0


main = Command("inspect-log", Config, write, positional="results")


if __name__ == "__main__":
    sys.exit(main())
