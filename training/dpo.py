"""DPO between whole trajectories (Rafailov et al., 2023): the expert's against the agent's own.

    L = -E[ log σ( β log π_θ(τ_expert) / π_ref(τ_expert) - β log π_θ(τ_agent) / π_ref(τ_agent) ) ]

After SFT the agent plays every task of the expert's trajectories once (or `rollouts.samples` times)
and the expert's trajectory is preferred to the agent's, whatever the latter scored. One iteration;
the reference is the SFT policy. The loss is TRL's (`training.preference`).
"""

from __future__ import annotations

from stepagent.training import preference, rollouts, sft
from stepagent.training.preference import Pair
from stepagent.training.session import Session

NAME = "dpo"


def learn(session: Session) -> None:
    """SFT, episodes of the agent, then the preference for the expert."""
    sft.learn(session)
    session.stage(NAME, lambda: _stage(session))
    if session.config.evaluation.every_iteration:
        session.score(NAME)


def _stage(session: Session) -> dict[str, float]:
    pairs, found = against_expert(session, NAME)
    return found | preference.stage(session, NAME, pairs, session.config.preference)


def against_expert(session: Session, name: str) -> tuple[list[Pair], dict[str, float]]:
    """The expert's trajectories against episodes that the policy, as it stands, plays on them."""
    pairs, left_out = [], 0
    for expert, row in zip(
        session.samples, rollouts.play(session, name, session.samples), strict=True
    ):
        usable, lost = rollouts.encode(session, row)
        pairs += [Pair(expert, agent) for agent in usable]
        left_out += lost
    rewards = [pair.rejected.trajectory.reward for pair in pairs]
    return pairs, {
        "episodes_left_out": float(left_out),
        "agent_reward": sum(rewards) / max(1, len(rewards)),
    }
