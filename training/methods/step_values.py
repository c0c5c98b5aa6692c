"""Monte-Carlo values of practice actions (IPR; Xiong et al., "Watch Every Step!", 2024).

    Q(s_i, a) = mean return of `reflection.value_rollouts` episodes that replay the expert's first i
                steps, take a, and follow the policy entering the iteration
    weight    = max(0, Q(s_i, â_i) - Q(s_i, a_i))

The weight multiplies the loss of the pair (â_i, a_i): of two actions that end equally well, none is
rejected. In the k-th episode of every action of a task the policy draws with the same random
numbers, so that luck cancels in part.

Deviations from IPR: it keeps the pairs whose difference is above a threshold, all with weight 1,
prefers the remaining trajectory and not the action alone, and lets the policy after SFT play in all
iterations.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from stepagent.training.config import Config
from stepagent.training.methods.branching import Branching, Case
from stepagent.training.methods.practice import Practice


def weighed(
    world: Branching, rows: Sequence[Sequence[Practice]]
) -> tuple[list[Practice], list[tuple[float, ...]]]:
    """The practice of the trajectories that can be replayed, and for each branch what its pair
    weighs; 0 where one of its actions has no value, since all of its episodes failed.

    rows[s] is the practice in the states of the world's s-th trajectory. Figures go to the stage.
    """
    started = time.monotonic()
    practices = [(s, p) for s, row in enumerate(rows) for p in row if world.replayable[s]]
    pairs = [pairs_of(world, s, practice) for s, practice in practices]
    cases = {case: None for row in pairs for pair in row for case in pair}
    values = {case: value for case in cases if (value := known(world, case)) is not None}
    values |= mean_returns(world, [case for case in cases if case not in values])
    weights = [tuple(weight(values, *pair) for pair in row) for row in pairs]
    _report(world, [p for _, p in practices], weights, time.monotonic() - started)
    return [p for _, p in practices], weights


def check_value_rollouts(config: Config, temperature: float) -> None:
    """Raises ValueError where several rollouts per action would be the same."""
    rollouts = config.reflection.value_rollouts
    if rollouts > 1 and temperature == 0:
        raise ValueError(
            f"reflection.value_rollouts is {rollouts} with rollouts.temperature 0, where it must "
            "be 1: all greedy episodes are the same"
        )


def pairs_of(world: Branching, sample: int, practice: Practice) -> list[tuple[Case, Case]]:
    """For each branch the episodes behind the expert's action and behind its own."""
    pairs = []
    for branch in practice.tree.branches:
        step = practice.first_step + branch.step
        agent = Case(sample, step, world.text(branch.ids), play_on=True)
        pairs.append((Case(sample, step + 1, play_on=True), agent))
    return pairs


def weight(values: Mapping[Case, float], expert: Case, agent: Case) -> float:
    if expert not in values or agent not in values:
        return 0.0
    return max(0.0, values[expert] - values[agent])


def known(world: Branching, case: Case) -> float | None:
    """A value that needs no episode: of an expert's action that ends its trajectory, or of any
    where the configuration takes the expert's own return."""
    expert = world.samples[case.sample].trajectory
    if case.reply is not None:
        return None
    is_own = world.run.config.reflection.expert_value == "return"
    return expert.reward if is_own or case.steps == len(expert.steps) else None


def mean_returns(world: Branching, cases: Sequence[Case]) -> dict[Case, float]:
    """The mean over the episodes of each case; none for a case whose episodes all failed."""
    returns: dict[Case, list[float]] = {}
    episodes = steps = 0
    times = world.run.config.reflection.value_rollouts
    for outcomes in world.play_often("values", cases, times):
        for case, outcome in zip(cases, outcomes, strict=True):
            episodes, steps = episodes + 1, steps + outcome.drawn
            if outcome.replayed and not outcome.error:
                returns.setdefault(case, []).append(outcome.score)
    world.stage.figures |= {"value_episodes": float(episodes), "value_steps": float(steps)}
    return {case: sum(scores) / len(scores) for case, scores in returns.items()}


def without_worthless(
    practices: Sequence[Practice], weights: Sequence[tuple[float, ...]]
) -> tuple[list[Practice], list[tuple[float, ...]]]:
    """The practice without the branches whose pairs weigh nothing."""
    rest, positive = [], []
    for practice, row in zip(practices, weights, strict=True):
        keep, steps = [b for b, w in enumerate(row) if w > 0], len(practice.tree.replies)
        tree = replace(practice.tree, branches=tuple(practice.tree.branches[b] for b in keep))
        agent = (*practice.agent[:steps], *(practice.agent[steps + b] for b in keep))
        expert = (*practice.expert[:steps], *[0.0] * len(keep))
        rest.append(Practice(tree, agent, expert))
        positive.append(tuple(row[b] for b in keep))
    return rest, positive


def _report(
    world: Branching,
    practices: Sequence[Practice],
    weights: Sequence[tuple[float, ...]],
    seconds: float,
) -> None:
    draws = [n for p in practices for n in p.agent[len(p.tree.replies) :]]
    columns = list(zip(draws, [w for row in weights for w in row], strict=True))
    worthless = sum(n for n, w in columns if not w)
    mean = sum(n * w for n, w in columns) / max(1.0, sum(draws))
    figures = world.stage.figures
    figures |= {"pairs_without_value": worthless, "value_gap": mean, "value_seconds": seconds}
    world.stage.note(
        f"{figures['value_episodes']:.0f} episodes ({figures['value_steps']:.0f} steps of the "
        f"policy, {seconds:.0f} s) for the values; {worthless:.0f} of {sum(draws):.0f} pairs weigh "
        f"nothing, the mean weight is {mean:.3f}"
    )
