"""StepAgent-Implicit: reflection by step-wise DPO (section 4.2.1, eq. 6).

    L = -E[ log σ( β log π_θ(â_i|ŝ_i) / π_ref(â_i|ŝ_i) - β log π_θ(a_i|ŝ_i) / π_ref(a_i|ŝ_i) ) ]

In each iteration the agent practises in every expert state (`methods.practice`), or in states of
its own (`methods.own_states`), then the policy moves from its own actions a_i towards the expert's
â_i. The reference is the policy that entered the iteration; its log-probabilities are written down,
so that no second model is needed. All pairs of a trajectory share one forward and backward pass
(`trees`).

Optionally (`reflection.sft_weight`, 0 in the paper) the expert's action is made likelier by itself:
eq. 6 only widens a gap, and in small models may do so by making both actions unlikely.

    L' = L - sft_weight E[ log π_θ(â_i|ŝ_i) ]          (Pang et al., 2024, without their 1/|â|)

Both expectations are over the pairs, states in which the agent errs. Where these are few it forgets
what it does right elsewhere; with `reflection.anchor` "states" the second is over all states in
which it practised.

Deviations: an update takes the pairs of complete trajectories, not pairs drawn one by one, because
that is what makes them share a pass; it stops taking at `batch_size` pairs. Practice actions equal
to the expert's carry no gradient (both terms of eq. 6 are the same), so they are dropped, and
counted; by default so are right actions under another thought (`reflection.equal`), which eq. 6
would reject. With `reflection.weights` "value" a pair's loss is multiplied by how much worse the
agent's action ends than the expert's (`methods.step_values`); the anchor is not, so that the
expert's action is still learned in those states. `reflection.preference` chooses among variants of
eq. 6; `preference_weight` 0 leaves the expert's likelihood alone, in the same states (the control
`anchor-only`). With `reflection.anchor` "states" that does not depend on what the agent does there,
so nothing is practised, unless `reflection.weights` has to know which trajectories can be replayed.

Where engines draw the practice (`sampler.urls`), the trainer scores what has come back while they
draw the rest; by option they also practise for the next iteration meanwhile (`methods.off_policy`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch

from stepagent.training.config import Config, ReflectionConfig
from stepagent.training.data import Sample
from stepagent.training.methods import Method, off_policy, sft
from stepagent.training.methods.branching import Branching
from stepagent.training.methods.losses import HEALTH, step_preference_loss
from stepagent.training.methods.off_policy import practising_ahead, weighted
from stepagent.training.methods.own_states import practice_samples
from stepagent.training.methods.practice import (
    Practice,
    practise,
    practise_each,
    practised_ahead,
    unpractised,
)
from stepagent.training.methods.step_pair_files import check_files, practice_of_files
from stepagent.training.methods.step_values import (
    check_value_rollouts,
    weighed,
    without_worthless,
)
from stepagent.training.policy import Policy
from stepagent.training.runs import processes
from stepagent.training.runs.checkpoints import DamagedState
from stepagent.training.runs.lines import resumed
from stepagent.training.runs.optimise import optimise
from stepagent.training.runs.schedule import packed, shuffled
from stepagent.training.runs.stage import Stage
from stepagent.training.runs.training_run import TrainingRun
from stepagent.training.runs.validation import check_step_trees
from stepagent.training.trees.packing import PackedTrees, pack
from stepagent.training.trees.scoring import score_tree, score_trees
from stepagent.training.trees.tree import StepTree


def learn(run: TrainingRun) -> None:
    """SFT, then `reflection.iterations` times practice and reflection.

    The first iteration takes the pairs of `preference.trajectories` where there are such files.
    Raises ValueError before any training where the model cannot run the step trees, and what
    `practice_of_files` raises.
    """
    config = run.config.reflection
    check_step_trees(run.config.method, run.policy, run.samples, config)
    files = run.config.preference.trajectories
    of_files = practice_of_files(run, files) if files else None
    sft.learn(run)
    for iteration in range(1, config.iterations + 1):
        seed = run.config.seed + 1000 * iteration
        with run.stage(f"iteration-{iteration}", seed) as stage:
            if stage.done:
                continue
            scored: Scored = {}
            if of_files and iteration == 1:
                practices, values = of_files
                stage.figures |= figures(practices, run.policy.eos_ids)
                stage.note(f"{stage.figures['distinct_pairs']:.0f} distinct pairs of files")
            else:
                practices, values, scored = practised_pairs(run, stage)
            if values is not None and not config.sft_weight:
                # With an anchor the expert's action is learned in those states too.
                practices, values = without_worthless(practices, values)
            of_pairs = config.anchor == "pairs"
            if not practices or (of_pairs and not any(p.tree.branches for p in practices)):
                stage.note(f"{why_nothing(stage, practices)}; nothing to learn")
                continue
            with practising_ahead(run, stage, iteration):
                pairs = with_reference(stage, run.policy, practices, values, scored)
                if not of_pairs:
                    pairs = anchored(pairs, practices)
                shuffle = shuffled(pairs, TreePairs.count, config, seed)
                schedule = packed(shuffle, lambda item: item.tree.length, config.pack_tokens)
                schedule = replace(schedule, per=dict.fromkeys(HEALTH, PAIRS))
                stage.figures |= optimise(stage, run.policy.model, schedule, loss(config), config)


def why_nothing(stage: Stage, practices: Sequence[Practice]) -> str:
    """Why no pair is left."""
    if not stage.figures["pairs"]:
        return "the agent acts as the expert everywhere"
    if not practices:
        return "no trajectory of the expert can be replayed"
    return "the agent takes no action that is worse than the expert's"


PAIRS = "weighed_pairs"
"""The figure that counts what `HEALTH` is of, which is fewer than all where `anchor` is states."""
Scored = dict[StepTree, list[list[float]]]
"""Trees with log π_ref of the expert's reply in each branch's state, and of each branch."""


def practised_pairs(
    run: TrainingRun, stage: Stage
) -> tuple[list[Practice], list[tuple[float, ...]] | None, Scored]:
    """The agent's practice, what each of its pairs weighs (None: all the same), and which trees
    were scored meanwhile. Figures go to the stage."""
    config = run.config.reflection
    samples = practice_samples(run, stage)
    if (config.preference_weight, config.anchor, config.weights) == (0, "states", "none"):
        stage.note("reflection.preference_weight is 0: the states are learned without practice")
        stage.figures |= {"practised": 0.0, "pairs": 0.0}
        trees = (unpractised(sample.encoded, config.max_tree_tokens) for sample in samples)
        return [practice for row in trees for practice in row], None, {}
    world = Branching(run, stage, samples)
    scored = scored_meanwhile(stage, run.policy, samples, config)
    rows = practise(stage, run.policy, samples, config, world.with_expert_tokens)
    practices = [practice for row in rows for practice in row]
    stage.figures |= figures(practices, run.policy.eos_ids)
    stage.note(
        f"{stage.figures['practised']:.0f} actions practised, "
        f"{stage.figures['same_as_expert']:.0%} the expert's own (dropped), "
        f"{stage.figures['distinct_pairs']:.0f} distinct pairs"
    )
    if not stage.figures["pairs"]:
        return practices, None, scored
    rows, log_probs = weighted(run, stage, rows)
    scored |= {tree.trimmed(): _of_branches(tree, row.tolist()) for tree, row in log_probs.items()}
    if config.weights == "none":
        return [practice for row in rows for practice in row], None, scored
    return *weighed(world, rows), scored


def _of_branches(tree: StepTree, log_probs: list[float]) -> list[list[float]]:
    """`reference` of a tree, from log π of all of its actions."""
    return [[log_probs[b.step] for b in tree.branches], log_probs[len(tree.replies) :]]


def scored_meanwhile(
    stage: Stage, policy: Policy, samples: Sequence[Sample], config: ReflectionConfig
) -> Scored:
    """Has engines practise, and scores what they have drawn while they draw the rest. Nothing where
    the trainer draws, where effects have to be played first, or where it has been done before."""
    if not stage.sampler.is_remote or config.equal == "effect":
        return {}
    if any(stage.artifacts.glob("reference*.jsonl")) or practised_ahead(stage):
        return {}
    scored: Scored = {}
    for _, practices in practise_each(stage, policy, samples, config):
        with stage.times.of("scoring"):
            trees = [p.tree.trimmed() for p in practices if p.tree.branches]
            scored |= {tree: reference(policy, tree) for tree in trees}
    return {tree: scores for part in processes.gather(scored) for tree, scores in part.items()}


def reference(policy: Policy, tree: StepTree) -> list[list[float]]:
    """log π of the expert's reply in each branch's state, and of each branch."""
    scores = score_tree(policy.model, tree, policy.device)
    return [scores.chosen.tolist(), scores.rejected.tolist()]


def figures(practices: Sequence[Practice], eos_ids: Collection[int]) -> dict[str, float]:
    """Replies drawn, the shares equal to the expert's and cut at the length limit, pairs."""
    draws = max(1.0, sum(p.draws for p in practices))
    branches = [(b, w) for p in practices for b, w in zip(p.tree.branches, weights(p), strict=True)]
    return {
        "practised": draws,
        "same_as_expert": sum(p.draws_of_expert for p in practices) / draws,
        "cut": sum(weight for branch, weight in branches if branch.ids[-1] not in eos_ids) / draws,
        "pairs": sum(weight for _, weight in branches),
        "distinct_pairs": float(len(branches)),
    }


def weights(practice: Practice) -> tuple[float, ...]:
    """[branches]: how often the agent drew each branch."""
    return practice.agent[len(practice.tree.replies) :]


@dataclass(frozen=True)
class TreePairs:
    """A tree ready for eq. 6: B branches, each paired with the expert's reply in its state."""

    tree: StepTree
    weights: tuple[float, ...]
    """[B] how often the branch was drawn; with `anchor` as a share of its state's draws"""
    reference_chosen: tuple[float, ...]
    """[B] log π_ref of the expert's reply in each branch's state"""
    reference_rejected: tuple[float, ...]
    """[B] log π_ref of each branch"""
    values: tuple[float, ...] | None = None
    """[B] what the loss of each pair is multiplied by; None: 1"""
    anchor: tuple[float, ...] | None = None
    """[steps] how often the expert's reply is learned by itself: this tree's share of the draws in
    its state, those equal to it among them; None: as often as it has pairs (`reflection.anchor`)"""

    def count(self) -> float:
        """Pairs, repeated ones counted; with `anchor` states."""
        return sum(self.weights if self.anchor is None else self.anchor)


def with_reference(
    stage: Stage,
    policy: Policy,
    practices: Sequence[Practice],
    values: Sequence[tuple[float, ...]] | None = None,
    scored: Mapping[StepTree, list[list[float]]] = MappingProxyType({}),
) -> list[TreePairs]:
    """The pairs of each practice that has any, with their log-probabilities under the policy as it
    is now, which are written down: a killed run reads them again. values[i] are those of
    practices[i]; `scored` has trees whose log-probabilities are known.

    Raises DamagedState where an earlier start has written them for other numbers of pairs."""
    of_trees = [None] * len(practices) if values is None else values
    rows = [(p, row) for p, row in zip(practices, of_trees, strict=True) if p.tree.branches]
    trees = [practice.tree.trimmed() for practice, _ in rows]

    def score(i: int) -> list[list[float]]:
        return scored.get(trees[i]) or reference(policy, trees[i])

    path = stage.artifacts / "reference.jsonl"
    with stage.times.of("scoring"):
        references = resumed(path, len(trees), score)
    for tree, columns in zip(trees, references, strict=True):
        if [len(column) for column in columns] != [len(tree.branches)] * 2:
            raise DamagedState(
                f"{path} holds log-probabilities for other numbers of pairs than were practised, "
                "perhaps written by another version: delete reference*.jsonl there and start again"
            )
    return [
        TreePairs(tree, weights(practice), tuple(chosen), tuple(rejected), row)
        for tree, (practice, row), (chosen, rejected) in zip(trees, rows, references, strict=True)
    ]


def anchored(pairs: Sequence[TreePairs], practices: Sequence[Practice]) -> list[TreePairs]:
    """All practices, with their pairs (those that have any, in order) and an anchor in all of their
    states. A state counts once, however many trees its actions are on."""
    states = [practice.states for practice in practices]
    draws: dict[int, float] = defaultdict(float)
    for practice, of_actions in zip(practices, states, strict=True):
        for state, count in zip(of_actions, practice.agent, strict=True):
            draws[state] += count
    rows, with_pairs = [], iter(pairs)
    for practice, of_actions in zip(practices, states, strict=True):
        tree = practice.tree
        item = next(with_pairs) if tree.branches else TreePairs(tree, (), (), ())
        shares = [
            count / draws[state] if count else 0.0
            for state, count in zip(of_actions, practice.agent, strict=True)
        ]
        anchor = tuple(tree.per_step(shares))
        if any(anchor):
            branches = tuple(shares[len(tree.replies) :])
            rows.append(replace(item, tree=tree, weights=branches, anchor=anchor))
    return rows


def loss(
    config: ReflectionConfig,
) -> Callable[[Any, Sequence[TreePairs]], tuple[torch.Tensor, dict[str, float]]]:
    """Eq. 6, or its variant, summed over the pairs of some trees, with health figures (sums over
    pairs)."""

    def of_trees(model: Any, items: Sequence[TreePairs]) -> tuple[torch.Tensor, dict[str, float]]:
        device = next(model.parameters()).device
        trees = pack([item.tree for item in items], device)
        scores = score_trees(model, trees)
        weights, chosen, rejected = (
            torch.tensor([value for item in items for value in getattr(item, name)], device=device)
            for name in ("weights", "reference_chosen", "reference_rejected")
        )
        values = None
        if any(item.values is not None for item in items):
            every = [v for item in items for v in item.values or (1.0,) * len(item.weights)]
            values = torch.tensor(every, device=device)
        anchor = -config.sft_weight * (anchors(items, trees) * scores.log_probs.float()).sum()
        if not len(weights):
            return anchor, dict.fromkeys((*HEALTH, PAIRS), 0.0)
        lengths = torch.bincount(trees.action, minlength=trees.n_actions)
        out = step_preference_loss(
            config.preference,
            scores.chosen,
            scores.rejected,
            chosen,
            rejected,
            beta=config.beta,
            weights=weights,
            lengths=(lengths[trees.chosen], lengths[trees.rejected]),
            penalty=config.positive_penalty,
            values=values,
        )
        pairs = float(weights.sum())
        health = {name: value * pairs for name, value in out.health.items()} | {PAIRS: pairs}
        return config.preference_weight * out.loss * pairs + anchor, health

    return of_trees


def anchors(items: Sequence[TreePairs], packed: PackedTrees) -> torch.Tensor:
    """[A]: how often each action of the packed trees is learned by itself."""
    rows: list[float] = []
    for item in items:
        of_expert: Sequence[float] | None = item.anchor
        if of_expert is None:
            of_expert = item.tree.per_step([*[0.0] * len(item.tree.replies), *item.weights])
        rows += [*of_expert, *[0.0] * len(item.tree.branches)]
    return torch.tensor(rows, device=packed.first.device)


def check(config: Config) -> None:
    """Raises ValueError where both parts of the loss are switched off, or where several rollouts
    per action would be the same."""
    off_policy.check(config)
    if config.reflection.weights == "value":
        check_value_rollouts(config, METHOD.temperature(config))
    if not config.reflection.preference_weight and not config.reflection.sft_weight:
        raise ValueError(
            "reflection.preference_weight and reflection.sft_weight are both 0: nothing is learned"
        )
    if config.reflection.anchor == "states" and not config.reflection.sft_weight:
        raise ValueError(
            "reflection.anchor is states, but reflection.sft_weight is 0: give it one, such as 1.0"
        )
    if config.reflection.anchor == "states" and config.reflection.off_policy_iterations:
        raise ValueError(
            "reflection.anchor is states, which counts each state once: draws of an earlier policy "
            "(reflection.off_policy_iterations) weigh less or more than that"
        )


METHOD = Method(
    learn,
    check,
    check_files,
    stages=lambda config: config.reflection.iterations,
    takes_files=True,
    practises_ahead=True,
)
