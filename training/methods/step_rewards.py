"""Rewards of practice actions by what comes of them, for `inverse` (`inverse.judge`).

    valid    1 for an action that the environment understands and allows, 0 for any other
    return   mean return of `reflection.value_rollouts` episodes that take the action behind the
             expert's steps and follow the policy entering the iteration (`methods.step_values`)

The actions practised in a state are a group for step-level GRPO. Only states in which the agent
took an action other than the expert's are played: elsewhere nothing can be compared. A state is
left out where one of its actions has no reward, since all of its episodes failed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from stepagent.training.methods.branching import Branching, Case
from stepagent.training.methods.practice import Practice, action_of
from stepagent.training.methods.step_values import known, mean_returns, pairs_of

Played = Literal["valid", "return"]


def played_rewards(
    world: Branching, rows: Sequence[Sequence[Practice]], judge: Played
) -> tuple[list[Practice], list[Tensor]]:
    """The practice of the trajectories that can be replayed, and the rewards of its actions,
    float32 [A] each. rows[s] is the practice in the states of the world's s-th trajectory; figures
    go to the stage."""
    practices = [(s, p) for s, row in enumerate(rows) for p in row if world.replayable[s]]
    of_actions = validity_cases if judge == "valid" else return_cases
    cases = [of_actions(world, s, practice) for s, practice in practices]
    distinct = list(dict.fromkeys(case for row in cases for case in row.values()))
    values = (validity if judge == "valid" else returns)(world, distinct)
    rewarded = [
        with_rewards(practice, {action: values.get(case) for action, case in row.items()})
        for (_, practice), row in zip(practices, cases, strict=True)
    ]
    branches = sum(len(practice.tree.branches) for _, practice in practices)
    left = sum(len(practice.tree.branches) for practice, _ in rewarded)
    world.stage.figures["actions_without_reward"] = float(branches - left)
    return [practice for practice, _ in rewarded], [reward for _, reward in rewarded]


def validity_cases(world: Branching, sample: int, practice: Practice) -> dict[int, Case]:
    """Action number → the episode that shows whether it is valid; the same for equal actions."""
    steps, codec, cases = len(practice.tree.replies), world.run.policy.codec, dict[int, Case]()
    by_action: dict[tuple[int, str], Case] = {}
    for i, branch in enumerate(practice.tree.branches):
        step = practice.first_step + branch.step
        case = Case(sample, step, world.text(branch.ids))
        cases[branch.step] = Case(sample, step + 1)
        cases[steps + i] = by_action.setdefault((step, action_of(codec, branch.ids)), case)
    return cases


def return_cases(world: Branching, sample: int, practice: Practice) -> dict[int, Case]:
    """Action number → the episodes behind it."""
    cases: dict[int, Case] = {}
    pairs = zip(practice.tree.branches, pairs_of(world, sample, practice), strict=True)
    for number, (branch, pair) in enumerate(pairs, len(practice.tree.replies)):
        cases[branch.step], cases[number] = pair
    return cases


def validity(world: Branching, cases: Sequence[Case]) -> dict[Case, float]:
    """1 or 0 of each case; an expert's action has what was recorded."""
    values = {}
    for case in cases:
        if case.reply is None:
            step = world.samples[case.sample].trajectory.steps[case.steps - 1]
            values[case] = float(step.valid)
    played = [case for case in cases if case.reply is not None]
    for case, outcome in zip(played, world.play("validity", played), strict=True):
        if outcome.replayed and not outcome.error:
            values[case] = float(outcome.valid)
    return values


def returns(world: Branching, cases: Sequence[Case]) -> dict[Case, float]:
    """The mean return behind each case."""
    values = {case: value for case in cases if (value := known(world, case)) is not None}
    return values | mean_returns(world, [case for case in cases if case not in values])


def with_rewards(practice: Practice, values: Mapping[int, float | None]) -> tuple[Practice, Tensor]:
    """The practice in the states whose actions all have a value (by action number), and their
    rewards, float32 [A]."""
    tree, steps = practice.tree, len(practice.tree.replies)
    state = tree.action_steps
    lost = {state[action] for action, value in values.items() if value is None}
    states = {state[action] for action in values} - lost
    branches = [i for i, branch in enumerate(tree.branches) if branch.step in states]
    rest = replace(
        practice,
        tree=replace(tree, branches=tuple(tree.branches[i] for i in branches)),
        agent=(
            *(practice.agent[i] if i in states else 0.0 for i in range(steps)),
            *(practice.agent[steps + i] for i in branches),
        ),
        expert=(*practice.expert[:steps], *[0.0] * len(branches)),
    )
    numbers = [*range(steps), *(steps + i for i in branches)]
    return rest, torch.tensor([values.get(i) or 0.0 for i in numbers])
