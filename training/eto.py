"""ETO: exploration-based trajectory optimisation (Song et al., 2024).

In each iteration the agent explores the expert's tasks, and trajectories are compared by their
final reward:

    agent's lower than the expert's     the expert's is chosen; the rejected one is cut to the
                                        expert's number of steps and `extra_rounds` (5) more
    agent's higher                      the agent's is chosen
    equal                               skipped

then DPO's loss over the pairs, with the policy entering the iteration as reference; β 0.1 and
learning rate 1e-6 in the first iteration, 0.5 and 5e-7 in the later ones, 3 iterations.
"""

from __future__ import annotations

import functools
from dataclasses import replace

from stepagent.agents.chat import Encoded
from stepagent.training import preference, rollouts, sft
from stepagent.training.dataset import Sample
from stepagent.training.preference import Pair
from stepagent.training.session import Session


def learn(session: Session) -> None:
    """SFT, then iterations of exploration and preference."""
    sft.learn(session)
    session.iterate(session.config.preference.iterations, functools.partial(_iterate, session))


def _iterate(session: Session, number: int, name: str) -> dict[str, float]:
    config = session.config.preference
    pairs, ties, left_out = [], 0, 0
    played = rollouts.play(session, name, session.samples)
    for expert, row in zip(session.samples, played, strict=True):
        usable, lost = rollouts.encode(session, row)
        left_out += lost
        for agent in usable:
            made = pair(expert, agent, config.extra_rounds)
            ties += made is None
            pairs += [made] if made else []
    experts = {id(expert) for expert in session.samples}
    swapped = sum(id(p.chosen) not in experts for p in pairs)
    found = {
        "ties": float(ties),
        "agent_was_better": float(swapped),
        "episodes_left_out": float(left_out),
    }
    return found | preference.stage(session, name, pairs, preference.iteration(config, number))


def pair(expert: Sample, agent: Sample, extra_rounds: int) -> Pair | None:
    """Which of the two is preferred, by reward; None where they are equal."""
    difference = agent.trajectory.reward - expert.trajectory.reward
    if abs(difference) < 1e-9:
        return None
    if difference > 0:
        return Pair(chosen=agent, rejected=cut(expert, len(agent.encoded.replies) + extra_rounds))
    return Pair(chosen=expert, rejected=cut(agent, len(expert.encoded.replies) + extra_rounds))


def cut(sample: Sample, steps: int) -> Sample:
    """The sample's first `steps` steps, up to the end of the last reply."""
    replies = sample.encoded.replies[:steps]
    encoded = Encoded(sample.encoded.ids[: replies[-1][1]], replies)
    shorter = replace(sample.trajectory, steps=sample.trajectory.steps[:steps])
    return Sample(shorter, encoded)
