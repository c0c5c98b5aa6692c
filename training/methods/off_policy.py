"""Practice one iteration ahead (`reflection.off_policy_iterations`), and what it counts.

While an iteration makes its updates, the engines practise for the next one. Those actions are
drawn by π_b, the policy before the updates, not by π, which enters the next iteration. So each draw
counts

    ρ = min(c, π(a|s) / π_b(a|s)),    c = `reflection.off_policy_limit`

times (truncated importance sampling; Ionides, 2008) wherever draws are counted: as pairs of eq. 6,
on both sides of D in eq. 11, in PPO's expectation. PPO's own ratio stays that to π, and so do its
clip and its KL, which bound an iteration's step; together they are

    ρ · π_θ / π = π_θ / π_b,    as far as ρ is not truncated      (Hilton et al., 2022)

Both log-probabilities are the trainer's own, at temperature 1, of the entire reply. An action that
counts as the expert's under other words is weighed as the expert's reply. Greedy practice is no
draw: its weights stay 1.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from stepagent.training.config import Config
from stepagent.training.methods.own_states import practice_samples
from stepagent.training.methods.practice import Practice, practising
from stepagent.training.runs import processes
from stepagent.training.runs.stage import Stage
from stepagent.training.runs.training_run import TrainingRun
from stepagent.training.trees.scoring import score_tree
from stepagent.training.trees.tree import StepTree


@contextmanager
def practising_ahead(run: TrainingRun, stage: Stage, iteration: int) -> Iterator[None]:
    """While the body runs, the practice of the next iteration is drawn, where there is one and the
    configuration says so. The policy must still be the one that entered this iteration."""
    config = run.config.reflection
    if not config.off_policy_iterations or iteration == config.iterations:
        yield
        return
    seed = run.config.seed + 1000 * (iteration + 1)
    upcoming = replace(stage, name=f"iteration-{iteration + 1}", seed=seed, figures={})
    samples = practice_samples(run, upcoming)
    with practising(upcoming, run.policy, samples, config):
        yield


def weighted(
    run: TrainingRun, stage: Stage, rows: Sequence[Sequence[Practice]]
) -> tuple[list[list[Practice]], dict[StepTree, Tensor]]:
    """The practice with weights for draws of an earlier policy, and log π of all actions of their
    trees under the present one, float32 [A] each. rows[s] are the trees of the s-th trajectory.
    Figures go to the stage, where there are such draws."""
    config, items = run.config.reflection, [item for row in rows for item in row]
    names = {item.policy for item in items} - {""}
    if config.temperature == 0 or not names:
        return [list(row) for row in rows], {}
    now: dict[StepTree, Tensor] = {}
    then: dict[StepTree, Tensor] = {}
    with stage.times.of("scoring"):
        for name in sorted(names):
            trees = [item.tree for item in items if item.policy == name]
            now |= _log_probs(run, trees, "")
            then |= _log_probs(run, trees, name)
    ratios = [
        (now[item.tree] - then[item.tree]).exp() if item.policy else torch.ones(len(item.agent))
        for item in items
    ]
    draws = torch.tensor([n for item in items for n in item.agent])
    every = torch.cat(ratios)
    limit, total = config.off_policy_limit, float(draws.sum())
    stage.figures |= {
        "off_policy_weight": float((draws * every.clamp(max=limit)).sum()) / total,
        "off_policy_truncated": float(draws[every > limit].sum()) / total,
    }
    of_row = iter(ratios)
    return [reweighted(row, [next(of_row) for _ in row], limit) for row in rows], now


def reweighted(row: Sequence[Practice], ratios: Sequence[Tensor], limit: float) -> list[Practice]:
    """The trees of one trajectory with min(limit, ratio) of each draw in its place; ratios[i] are
    float [A] of the i-th tree. In every state the expert's side weighs as much as the draws."""
    agent = [
        [n * min(limit, float(ratio)) for n, ratio in zip(item.agent, own, strict=True)]
        for item, own in zip(row, ratios, strict=True)
    ]
    totals: defaultdict[int, float] = defaultdict(float)
    for item, weights in zip(row, agent, strict=True):
        for step, weight in zip(item.tree.action_steps, weights, strict=True):
            totals[item.first_step + step] += weight
    return [
        replace(
            item,
            agent=tuple(weights),
            expert=tuple(
                totals[item.first_step + step] if weight else 0.0
                for step, weight in zip(item.tree.action_steps, item.expert, strict=True)
            ),
        )
        for item, weights in zip(row, agent, strict=True)
    ]


def _log_probs(run: TrainingRun, trees: Sequence[StepTree], name: str) -> dict[StepTree, Tensor]:
    """log π of all actions, float32 [A] each, under the policy of a stage; "": the present one."""
    policy = run.policy

    def of_tree(tree: StepTree) -> Tensor:
        return score_tree(policy.model, tree, policy.device).log_probs.cpu()

    with policy.as_in(run.directory.policy(name)) if name else nullcontext():
        return dict(zip(trees, processes.share(trees, of_tree), strict=True))


def check(config: Config) -> None:
    """Raises ValueError where the next iteration's practice depends on this one's updates, or the
    policy that draws it is kept by no stage."""
    reflection = config.reflection
    if reflection.off_policy_iterations and not config.sft.epochs:
        raise ValueError(
            "reflection.off_policy_iterations is 1 with sft.epochs 0: the policy that practises "
            "for the second iteration must be that of a stage"
        )
    if reflection.off_policy_iterations and reflection.states != "expert":
        raise ValueError(
            f"reflection.off_policy_iterations is {reflection.off_policy_iterations} with "
            f"reflection.states {reflection.states}: only in the expert's states can the agent "
            "practise ahead"
        )
