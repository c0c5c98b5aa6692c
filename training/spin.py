"""SPIN: self-play against the policy's own earlier iterates (Chen et al., 2024).

    L = -E[ log σ( λ log π_θ(τ_expert) / π_t(τ_expert) - λ log π_θ(τ_agent) / π_t(τ_agent) ) ]

In iteration t the agent π_t (at first: SFT) plays the expert's tasks, and learns to be told apart
from itself in the expert's favour: the logistic loss of DPO, with π_t as the opponent of every pair
and as the reference. From the second iteration on the pairs of the iteration before are learned
from again, as the original does; their opponent too is the newest π_t in the loss.

Deviations: SPIN's λ is `preference.beta` throughout (it has no `later_beta`).
"""

from __future__ import annotations

import functools
from dataclasses import replace

from stepagent.training import preference, sft
from stepagent.training.dpo import against_expert
from stepagent.training.session import Session


def learn(session: Session) -> None:
    """SFT, then iterations of play and preference."""
    sft.learn(session)
    session.iterate(session.config.preference.iterations, functools.partial(_iterate, session))


def _iterate(session: Session, number: int, name: str) -> dict[str, float]:
    config = session.config.preference
    pairs, found = against_expert(session, name)
    if number > 1:  # these episodes are on file: nothing is played anew
        pairs = against_expert(session, f"iteration-{number - 1}")[0] + pairs
    settings = replace(preference.iteration(config, number), beta=config.beta)
    return found | preference.stage(session, name, pairs, settings)
