"""Practice (section 4.1, eqs. 4 and 5): the agent's own actions in every state of the expert, or
of episodes of its own in which the expert was asked (`methods.own_states`).

    a_i^θ ~ π_θ(· | ŝ_i),   i = 1 … n,   K times each

All K·n replies of a trajectory come from one reading of it (`trees.sampling`), and those of several
short trajectories are decoded together. They are written down, one line per trajectory, so that a
killed run resumes. Equal replies in the same state become one action that was drawn several times.
By default (`reflection.equal`) a reply that takes the expert's action counts as the expert's,
whatever it thinks; by option also one that has its effect.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from stepagent.agents.chat import ChatCodec, Encoded
from stepagent.agents.generation import Decoding
from stepagent.envs import react
from stepagent.files import write_text
from stepagent.training.config import ReflectionConfig
from stepagent.training.data import Sample
from stepagent.training.policy import Policy
from stepagent.training.runs import processes
from stepagent.training.runs.checkpoints import DamagedState
from stepagent.training.runs.lines import (
    Background,
    Make,
    all_lines,
    resumed_in_bulk,
    written,
)
from stepagent.training.runs.stage import Stage
from stepagent.training.sampler.interface import Job
from stepagent.training.trees.sampling import Replies, Sampling, draw_seed
from stepagent.training.trees.tree import Branch, StepTree, split_tree

ByEffect = Callable[[list[Replies]], list[Replies]]
"""The replies of every trajectory → the same, with the expert's own in place of those that have its
effect."""


@dataclass(frozen=True)
class Practice:
    """What expert and agent did in the states of one expert trajectory. A actions, numbered as in
    `PackedTrees`: the expert's of every step, then the branches."""

    tree: StepTree
    agent: tuple[float, ...]
    """[A] how often the agent drew the action; the expert's own actions included"""
    expert: tuple[float, ...]
    """[A] weight of the action on the expert's side: per state as much as the agent has draws"""
    first_step: int = 0
    """Step of the trajectory that is the tree's step 0."""
    policy: str = ""
    """Stage whose policy drew the actions; "": the one that entered this iteration."""

    @property
    def draws(self) -> float:
        """Actions that the agent drew."""
        return sum(self.agent)

    @property
    def draws_of_expert(self) -> float:
        """Those among them that equal the expert's."""
        return sum(self.agent[: len(self.tree.replies)])

    @property
    def pairs(self) -> float:
        """Pairs (agent's action, expert's action), repeated ones counted."""
        return (sum(self.agent) + sum(self.expert)) / 2

    @property
    def states(self) -> list[int]:
        """[A]: a number of the state in which each action was taken, the same in every tree."""
        trunk = [hash(self.tree.state(step)) for step in range(len(self.tree.replies))]
        return [trunk[step] for step in self.tree.action_steps]


def differing(item: Practice) -> Practice:
    """The practice without the draws that equal the expert's action; in every state the expert's
    side weighs as much as the draws that are left."""
    steps = len(item.tree.replies)
    agent = (*[0.0] * steps, *item.agent[steps:])
    opposite = item.tree.per_step(agent)
    return replace(item, agent=agent, expert=(*opposite, *[0.0] * len(item.tree.branches)))


def practise(
    stage: Stage,
    policy: Policy,
    samples: Sequence[Sample],
    config: ReflectionConfig,
    by_effect: ByEffect | None = None,
) -> list[list[Practice]]:
    """The agent's practice in every state of each sample, as one or more trees per sample.

    Replies are written to `practice/STAGE.jsonl` as they are drawn; a killed run resumes there.
    (The policy is the same: an iteration's practice ends before its first update.) `by_effect`
    finds the actions that have the expert's effect (`methods.branching`), where `config.equal`
    says so. Raises ValueError where a state with one action exceeds `config.max_tree_tokens`, and
    without `by_effect` where it is needed; DamagedState for lines of other trajectories.
    """
    draw = _draw(stage, policy, samples, config)
    with _drawing(stage), stage.progress(len(samples), "trajectories practised") as move:

        def on_line(number: int, line: Mapping[str, Any]) -> None:
            _check(stage, samples[number], line)
            move(number + 1, {})

        lines = resumed_in_bulk(_file(stage), len(samples), draw, on_line)
    rows = [_replies(*row, policy, config) for row in zip(samples, lines, strict=True)]
    if config.equal == "effect":
        if by_effect is None:
            raise ValueError("reflection.equal is effect, but there is nothing to play actions in")
        rows = by_effect(rows)
    return [_trees(*row, config) for row in zip(samples, lines, rows, strict=True)]


def practise_each(
    stage: Stage, policy: Policy, samples: Sequence[Sample], config: ReflectionConfig
) -> Iterator[tuple[int, list[Practice]]]:
    """What `practise` will return of this process's samples, by number, as engines draw it: they go
    on while the caller works. Not for `config.equal` "effect", which is found for all at once."""
    items = written(_file(stage), len(samples), _draw(stage, policy, samples, config))
    with (
        closing(Background(items, _AHEAD)) as ready,
        stage.progress(len(samples), "trajectories practised") as move,
    ):
        while True:
            with _drawing(stage):
                item = next(ready, None)
            if item is None:
                return
            i, line = item
            _check(stage, samples[i], line)
            move(i + 1, {})
            yield i, _trees(samples[i], line, _replies(samples[i], line, policy, config), config)


@contextmanager
def practising(
    stage: Stage, policy: Policy, samples: Sequence[Sample], config: ReflectionConfig
) -> Iterator[None]:
    """Has the policy as it is now, that of `stage.before`, practise for a later stage while the
    body runs: `practise` finds it written then. The trainer, where it draws, does so before."""
    draw = _draw(stage, policy, samples, config, by=stage.before)
    items = written(_file(stage), len(samples), draw)
    if not stage.sampler.is_remote:
        with _drawing(stage):
            for _ in items:
                pass
        yield
        return
    with closing(Background(items, len(samples) + 1)) as ready:
        yield
        with _drawing(stage):
            for _ in ready:
                pass


def practised_ahead(stage: Stage) -> bool:
    """Whether an earlier policy has practised for the stage."""
    return any(line.get("policy") for line in all_lines(_file(stage)))


_AHEAD = 64
"""Trajectories whose practice may wait to be scored."""


def _file(stage: Stage) -> Path:
    return stage.directory.path / "practice" / f"{stage.name}.jsonl"


def _check(stage: Stage, sample: Sample, line: Mapping[str, Any]) -> None:
    check_line(_file(stage), sample, line, len(line.get("replies", ())))


def check_line(path: Path, sample: Sample, line: Mapping[str, Any], states: int) -> None:
    """Raises DamagedState where a line, which is about so many states, is not of this sample's
    trajectory."""
    trajectory = sample.trajectory
    found = (line.get("task_id"), line.get("seed"), states)
    expected = (trajectory.task_id, trajectory.seed, len(sample.encoded.replies))
    if found != expected:
        raise DamagedState(
            f"{path} was written for other trajectories: task, seed and number of states are "
            f"{found}, expected {expected}. If the trajectories were collected again, choose "
            "another `output`"
        )


def _drawing(stage: Stage) -> AbstractContextManager[None]:
    """Measures the body, which draws practice, or waits for engines that do."""
    return stage.times.of("waiting" if stage.sampler.is_remote else "practice")


def _draw(
    stage: Stage, policy: Policy, samples: Sequence[Sample], config: ReflectionConfig, by: str = ""
) -> Make:
    """Draws the lines of practice of some samples, by their numbers; `by` names the policy in them,
    where it is not the one that enters the stage."""

    def line(sample: Sample, replies: Replies) -> dict[str, Any]:
        trajectory = sample.trajectory
        drawn = {"task_id": trajectory.task_id, "seed": trajectory.seed, "replies": replies}
        return drawn | ({"policy": by} if by else {})

    def draw(numbers: Sequence[int]) -> Iterable[dict[str, Any]]:
        if not numbers:
            return ()
        stage.sampler.publish(policy)  # here: `draw` is called by the thread that trains
        missing = set(numbers)
        mine = processes.mine(len(samples))
        jobs = [
            Job(samples[i].encoded, draw_seed(stage.seed, i), done=i not in missing) for i in mine
        ]
        replies = _draw_replies(stage, policy, jobs, config)
        return map(line, [samples[i] for i in numbers], replies)

    return draw


def _replies(
    sample: Sample, line: Mapping[str, Any], policy: Policy, config: ReflectionConfig
) -> Replies:
    """The replies in a line of practice, the expert's own in place of those that equal it."""
    if config.equal == "tokens":
        return line["replies"]
    return with_expert_tokens(sample.encoded, line["replies"], policy.codec)


def _trees(
    sample: Sample, line: Mapping[str, Any], replies: Replies, config: ReflectionConfig
) -> list[Practice]:
    trees = practice_trees(sample.encoded, replies, config.max_tree_tokens)
    return [replace(tree, policy=line.get("policy", "")) for tree in trees]


def with_expert_tokens(
    encoded: Encoded, replies: Sequence[Sequence[Sequence[int]]], codec: ChatCodec
) -> list[list[list[int]]]:
    """The replies with the expert's own tokens in place of those that take the expert's action.

    Under another thought, or in other tokens, the right action is not one to learn away from.
    """
    same = []
    for step, drawn in enumerate(replies):
        expert = encoded.expert(step)
        action = action_of(codec, expert)
        is_same = [list(ids) == expert or action_of(codec, ids) == action for ids in drawn]
        same.append([expert if yes else list(ids) for yes, ids in zip(is_same, drawn, strict=True)])
    return same


def action_of(codec: ChatCodec, ids: Sequence[int]) -> str:
    """The action that a reply takes, as an environment reads it; "" where it takes none."""
    return react.parse(codec.decode(ids)).action


def record_rewards(
    stage: Stage, practices: Sequence[tuple[Sample, Practice]], rewards: Sequence[Tensor]
) -> None:
    """Writes what a discriminator gave the actions, rewards[i] float32 [A] of the i-th practice, to
    `practice/STAGE-rewards.jsonl`: one line per step tree, for whoever reads the practice."""
    if not processes.is_main():
        return
    lines = []
    for (sample, item), reward in zip(practices, rewards, strict=True):
        tree, values = item.tree, reward.tolist()
        agent = [
            {"step": item.first_step + branch.step, "ids": list(branch.ids), "reward": value}
            for branch, value in zip(tree.branches, values[len(tree.replies) :], strict=True)
        ]
        line = {
            "task_id": sample.trajectory.task_id,
            "seed": sample.trajectory.seed,
            "expert": values[: len(tree.replies)],
            "agent": agent,
        }
        lines.append(json.dumps(line) + "\n")
    path = stage.directory.path / "practice" / f"{stage.name}-rewards.jsonl"
    write_text(path, "".join(lines))


def _draw_replies(
    stage: Stage, policy: Policy, jobs: Sequence[Job], config: ReflectionConfig
) -> Iterator[Replies]:
    """The published policy's practice replies of each job that is not done, as far as their actions
    go (`ChatCodec.used`)."""
    sampling = Sampling(
        k=1 if config.temperature == 0 else config.practice,
        decoding=Decoding(config.temperature, config.top_p, policy.config.max_new_tokens),
        eos_ids=policy.eos_ids,
        stopped=policy.codec.has_stop,  # as in acting: at an observation that it invents
        stops=policy.codec.stops,
    )
    for replies in stage.sampler.draw(jobs, sampling):
        yield [[policy.codec.used(ids) for ids in drawn] for drawn in replies]


def practice_trees(
    encoded: Encoded, replies: Sequence[Sequence[Sequence[int]]], max_tokens: int
) -> list[Practice]:
    """One trajectory's practice as trees of at most `max_tokens`; replies[i][k] are token ids.

    An action of the expert that is on several trunks counts on the first. Raises ValueError where a
    trunk with one action exceeds the limit.
    """
    practices = []
    for first, part in encoded.parts():
        drawn = replies[first : first + len(part.replies)]
        trees = _part_trees(part, drawn, max_tokens)
        practices += [replace(item, first_step=first) for item in trees]
    return practices


def unpractised(encoded: Encoded, max_tokens: int) -> list[Practice]:
    """`practice_trees` of an agent that takes the expert's action once in every state."""
    replies = [[encoded.expert(step)] for step in range(len(encoded.replies))]
    return practice_trees(encoded, replies, max_tokens)


def _part_trees(
    encoded: Encoded, replies: Sequence[Sequence[Sequence[int]]], max_tokens: int
) -> list[Practice]:
    """`practice_trees` of steps whose states share their beginning."""
    branches: dict[Branch, float] = {}
    same_as_expert = [0.0] * len(encoded.replies)
    for step, drawn in enumerate(replies):
        for ids, count in Counter(tuple(reply) for reply in drawn).items():
            if list(ids) == encoded.expert(step):
                same_as_expert[step] = float(count)
            else:
                branches[Branch(step, ids)] = float(count)
    return trees_of(encoded, branches, same_as_expert, max_tokens)


def trees_of(
    encoded: Encoded,
    branches: Mapping[Branch, float],
    same_as_expert: Sequence[float],
    max_tokens: int,
) -> list[Practice]:
    """`practice_trees`, with how often each other action was drawn, and per step the expert's."""
    full = StepTree.of(encoded, tuple(branches))
    draws = list(same_as_expert)
    for branch, count in branches.items():
        draws[branch.step] += count
    trees = split_tree(full, max_tokens)
    if len(trees[-1].replies) < len(full.replies):  # steps after the last branch
        trees += split_tree(replace(full, branches=()), max_tokens)
    practices, counted = [], 0
    for tree in trees:
        steps = range(len(tree.replies))
        agent = [same_as_expert[i] if i >= counted else 0.0 for i in steps]
        expert = [draws[i] if i >= counted else 0.0 for i in steps]
        counted = max(counted, len(steps))
        agent += [branches[branch] for branch in tree.branches]
        expert += [0.0] * len(tree.branches)
        practices.append(Practice(tree, tuple(agent), tuple(expert)))
    return practices
