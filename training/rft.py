"""RFT: rejection sampling fine-tuning (Yuan et al., 2023).

After SFT the agent plays every task of the expert's trajectories `rollouts.samples` (k) times.
Episodes that scored at least `expert.min_reward` are kept, one for each sequence of actions and
none that repeats the expert's, and the untrained model is fine-tuned on the expert's trajectories
and those kept (eq. 3 with more data; settings of `sft`).
"""

from __future__ import annotations

from collections.abc import Sequence

from stepagent.envs.trajectory import Trajectory
from stepagent.training import rollouts, sft
from stepagent.training.config import Config
from stepagent.training.dataset import Sample
from stepagent.training.session import Session

NAME = "rft"


def learn(session: Session) -> None:
    """SFT, episodes of the agent, then SFT from the untrained model on more trajectories."""
    sft.learn(session)
    session.stage(NAME, lambda: _stage(session))
    if session.config.evaluation.every_iteration:
        session.score(NAME)


def check(config: Config) -> None:
    """Raises ValueError where there is no SFT to explore with."""
    if not config.sft.epochs:
        raise ValueError(
            f"method {config.method} fine-tunes: sft.epochs must be at least 1, it is 0"
        )


def _stage(session: Session) -> dict[str, float]:
    kept, found = [], {"episodes": 0.0, "successes": 0.0, "kept": 0.0}
    played = rollouts.play(session, NAME, session.samples)
    for expert, row in zip(session.samples, played, strict=True):
        usable, _ = rollouts.encode(session, row)
        good = [s for s in usable if is_success(s.trajectory, session.config.expert.min_reward)]
        new = distinct(good, expert)
        found["episodes"] += len(row)
        found["successes"] += len(good)
        found["kept"] += len(new)
        kept += new
    session.note(
        f"{NAME}: {found['episodes']:.0f} episodes, {found['successes']:.0f} successes, "
        f"{found['kept']:.0f} of them new"
    )
    session.restart()
    sft.stage(session, NAME, [*session.samples, *kept])
    return found


def is_success(trajectory: Trajectory, min_reward: float) -> bool:
    return trajectory.reward >= min_reward - 1e-9


def distinct(samples: Sequence[Sample], expert: Sample) -> list[Sample]:
    """The first sample of each sequence of actions, without those that act as the expert did."""
    seen, found = {_actions(expert)}, []
    for sample in samples:
        if _actions(sample) not in seen:
            seen.add(_actions(sample))
            found.append(sample)
    return found


def _actions(sample: Sample) -> tuple[str, ...]:
    return tuple(step.action for step in sample.trajectory.steps)
