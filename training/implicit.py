"""StepAgent-Implicit: reflection by step-wise DPO (section 4.2.1, eq. 6).

    L = -E[ log σ( β log π_θ(â_i|ŝ_i) / π_ref(â_i|ŝ_i) - β log π_θ(a_i|ŝ_i) / π_ref(a_i|ŝ_i) ) ]

In each iteration the agent practises in every expert state (`training.inspection`), then the policy
moves from its own actions a_i towards the expert's â_i. The reference is the policy that entered
the iteration. All pairs of a trajectory share one forward and backward pass (`training.tree`).

By config (`reflection.sft_weight`, 0 as the paper has it) the expert's action is also made likelier
as such: eq. 6 only widens a gap, and in small models may do so by making both actions unlikely.

    L' = L - sft_weight E[ log π_θ(â_i|ŝ_i) ]          (Pang et al., 2024, without their 1/|â|)

Deviations: an update takes the pairs of whole trajectories, not pairs drawn one by one, because
that is what makes them share a pass; it stops taking at `batch_size` pairs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from stepagent.training import sft
from stepagent.training.checks import check_step_trees
from stepagent.training.config import OptimiserConfig
from stepagent.training.dataset import Sample
from stepagent.training.inspection import Inspected, inspect
from stepagent.training.loop import batches, optimise
from stepagent.training.losses import step_dpo_loss
from stepagent.training.session import Session
from stepagent.training.tree import pack, score_trees


def learn(session: Session) -> None:
    """SFT, then `iterations` times inspection and reflection, each a stage of the run.

    Raises ValueError before any training where the model cannot run the step trees.
    """
    check_step_trees("implicit", session.policy, session.samples, session.config.reflection)
    sft.learn(session)
    session.iterate(session.config.reflection.iterations, functools.partial(_iterate, session))


def _iterate(session: Session, iteration: int, name: str) -> dict[str, float]:
    """One iteration: practise in the expert's states, then learn from it."""
    config, seed = session.config.reflection, session.config.seed + 1000 * iteration
    samples = draw(session.samples, config.trajectories, seed)
    path = session.rundir.path / "inspection" / f"{name}.jsonl"
    with session.progress(f"{name}: inspection", len(samples), "trajectories") as move:
        inspected, found = inspect(
            session.policy, samples, config, path, seed, lambda done: move(done, {})
        )
    session.note(
        f"{name}: {found['practised']:.0f} actions practised, {found['same_as_expert']:.0%} the "
        f"expert's own (dropped), {found['distinct_pairs']:.0f} distinct pairs"
    )
    if not inspected:
        session.note(f"{name}: the agent acts as the expert everywhere; nothing to learn")
        return found
    updates = plan(inspected, config, seed)
    with session.progress(f"{name}: reflection", len(updates), "updates") as move:
        learned = optimise(
            session.policy.model,
            updates,
            loss(config.beta, config.sft_weight),
            lambda item: item.pairs,
            config,
            session.rundir,
            name,
            checkpoint_seconds=session.config.checkpoint_seconds,
            on_update=move,
        )
    return found | learned


def draw(samples: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """`count` of the samples, without repetition, by the seed; 0: all. In their own order."""
    if not count or count >= len(samples):
        return list(samples)
    chosen = np.random.default_rng([seed, 2]).permutation(len(samples))[:count]
    return [samples[i] for i in sorted(chosen)]


class _Pairs(Protocol):
    @property
    def pairs(self) -> float: ...


Item = TypeVar("Item", bound=_Pairs)


def plan(inspected: Sequence[Item], config: OptimiserConfig, seed: int) -> list[list[Item]]:
    """The iteration's updates: whole trees in random order, each epoch anew."""
    updates = []
    for epoch in range(config.epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(inspected))
        updates += batches([inspected[i] for i in order], config.batch_size, lambda i: i.pairs)
    return updates


def loss(
    beta: float, sft_weight: float = 0.0
) -> Callable[[Any, Inspected], tuple[torch.Tensor, dict[str, float]]]:
    """Eq. 6 summed over the pairs of one tree, with health figures (sums over pairs)."""

    def of_tree(model: Any, item: Inspected) -> tuple[torch.Tensor, dict[str, float]]:
        device = next(model.parameters()).device
        scores = score_trees(model, pack([item.tree], device))
        weights = torch.tensor(item.weights, dtype=torch.float32, device=device)
        out = step_dpo_loss(
            scores.chosen,
            scores.rejected,
            torch.tensor(item.reference_chosen, device=device),
            torch.tensor(item.reference_rejected, device=device),
            beta=beta,
            weights=weights,
        )
        anchor = -sft_weight * (weights * scores.chosen.float()).sum()
        return out.loss * weights.sum() + anchor, {k: v * item.pairs for k, v in out.health.items()}

    return of_tree
