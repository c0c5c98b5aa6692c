"""Converted trajectories checked by playing their actions again (`eval.replay` compares)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from stepagent.envs import Step, TextEnv, Trajectory
from stepagent.eval.replay import Difference, compare

_OBSERVATIONS = ("observation", "last observation")


@dataclass(frozen=True)
class Replay:
    """What replaying a trajectory gave."""

    trajectory: Trajectory
    """With the environment's observations, rewards, score and end; without the actions that came
    after the end."""
    difference: Difference | None
    """The first observation or end that is not the file's."""
    over_limit: bool
    """It has more actions than the environment allows an agent."""


def replay(trajectory: Trajectory, env: TextEnv) -> Replay:
    """Plays the trajectory's actions. Only texts and the end are compared: what the environment
    scores, files of other projects seldom hold.

    An episode longer than the environment's limit is played to its last action. Raises what the
    environment raises (ValueError for a task that it does not have, say).
    """
    limit, n = env.max_steps, len(trajectory.steps)
    allowed = limit or env.step_limit(trajectory.task_id)
    env.max_steps = max(n, allowed)
    steps = list(trajectory.steps)
    outcome: dict[str, Any] = {"score": trajectory.reward}
    replayed: Any
    difference: Difference | None = None
    texts: list[str] = []
    try:
        for number, what, recorded, replayed in compare(trajectory, env):
            if what in _OBSERVATIONS:
                texts.append(str(replayed))
                differs = not _same(str(recorded), str(replayed), first=number == 0)
            elif what == "reward":
                steps[number - 1] = replace(steps[number - 1], reward=replayed)
            elif what == "validity":
                steps[number - 1] = replace(steps[number - 1], valid=replayed)
            elif what == "end of the episode":
                differs = bool(replayed) and number < n
                if differs:
                    steps = steps[:number]
            else:
                outcome[what] = replayed
            if what in (*_OBSERVATIONS, "end of the episode") and differs and not difference:
                difference = Difference(
                    trajectory.task_id, trajectory.seed, number, what, recorded, replayed
                )
            if len(steps) < n:
                break
    finally:
        env.max_steps = limit
    return Replay(_replayed(trajectory, steps, texts, outcome), difference, n > allowed)


def _replayed(
    trajectory: Trajectory, steps: Sequence[Step], texts: Sequence[str], outcome: dict[str, Any]
) -> Trajectory:
    """The trajectory with what the environment answered."""
    ended_early = len(steps) < len(trajectory.steps)
    return replace(
        trajectory,
        steps=tuple(replace(s, observation=t) for s, t in zip(steps, texts, strict=False)),
        final_observation=texts[-1],
        reward=sum(step.reward for step in steps) if ended_early else outcome["score"],
        success=outcome.get("success", trajectory.success),
        truncated=outcome.get("truncation", False),
        metrics=outcome.get("metrics", {}),
    )


def _same(recorded: str, replayed: str, *, first: bool) -> bool:
    """Whether two observations are the same but for blanks at line ends and both ends.

    Files put the instruction in or before the first observation: there, one may hold the other. A
    last observation may be missing in the file.
    """
    one, other = _lines(recorded), _lines(replayed)
    if first:
        return bool(one) and (one in other or other in one)
    return one == other or not one


def _lines(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().splitlines())
