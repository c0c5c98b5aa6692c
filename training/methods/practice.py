"""Practice (section 4.1, eqs. 4 and 5): the agent's own actions in every state of the expert, or
of episodes of its own in which the expert was asked (`methods.own_states`).

    a_i^θ ~ π_θ(· | ŝ_i),   i = 1 … n,   K times each

All K·n replies of a trajectory come from one reading of it (`trees.sampling`). They are written
down, one line per trajectory, so that a killed run resumes. Equal replies in the same state become
one action that was drawn several times. By default (`reflection.equal`) a reply that takes the
expert's action counts as the expert's, whatever it thinks.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
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
from stepagent.training.runs.stage import Stage
from stepagent.training.trees.sampling import Sampling, practice
from stepagent.training.trees.tree import Branch, StepTree, split_tree


@dataclass(frozen=True)
class Practice:
    """What expert and agent did in the states of one expert trajectory. A actions, numbered as in
    `PackedTrees`: the expert's of every step, then the branches."""

    tree: StepTree
    agent: tuple[float, ...]
    """[A] how often the agent drew the action; the expert's own actions included"""
    expert: tuple[float, ...]
    """[A] weight of the action on the expert's side: per state as much as the agent has draws"""

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
        trunk = [hash(self.tree.ids[:start]) for start, _ in self.tree.replies]
        return trunk + [trunk[branch.step] for branch in self.tree.branches]


def differing(item: Practice) -> Practice:
    """The practice without the draws that equal the expert's action; in every state the expert's
    side weighs as much as the draws that are left."""
    steps = len(item.tree.replies)
    opposite = [0.0] * steps
    for branch, draws in zip(item.tree.branches, item.agent[steps:], strict=True):
        opposite[branch.step] += draws
    agent = (*[0.0] * steps, *item.agent[steps:])
    return replace(item, agent=agent, expert=(*opposite, *[0.0] * len(item.tree.branches)))


def practise(
    stage: Stage, policy: Policy, samples: Sequence[Sample], config: ReflectionConfig
) -> list[list[Practice]]:
    """The agent's practice in every state of each sample, as one or more trees per sample.

    Replies are written to `inspection/STAGE.jsonl` as they are drawn; a killed run resumes there.
    (The policy is the same: an iteration's practice ends before its first update.) Raises
    ValueError where a state with one action exceeds `config.max_tree_tokens`.
    """
    path = stage.directory.path / "inspection" / f"{stage.name}.jsonl"
    with stage.progress(len(samples), "trajectories practised") as move:
        lines = resumed(
            path,
            len(samples),
            lambda i: {
                "task_id": samples[i].trajectory.task_id,
                "seed": samples[i].trajectory.seed,
                "replies": draw_replies(policy, samples[i].encoded, config, stage.seed + i),
            },
            lambda done: move(done, {}),
        )
    trees = []
    for sample, line in zip(samples, lines, strict=True):
        replies = line["replies"]
        if config.equal == "action":
            replies = with_expert_tokens(sample.encoded, replies, policy.codec)
        trees.append(practice_trees(sample.encoded, replies, config.max_tree_tokens))
    return trees


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
    `inspection/STAGE-rewards.jsonl`: one line per step tree, for whoever reads the practice."""
    if not processes.is_main():
        return
    lines = []
    for (sample, item), reward in zip(practices, rewards, strict=True):
        tree, values = item.tree, reward.tolist()
        agent = [
            {"step": branch.step, "ids": list(branch.ids), "reward": value}
            for branch, value in zip(tree.branches, values[len(tree.replies) :], strict=True)
        ]
        line = {
            "task_id": sample.trajectory.task_id,
            "seed": sample.trajectory.seed,
            "expert": values[: len(tree.replies)],
            "agent": agent,
        }
        lines.append(json.dumps(line) + "\n")
    path = stage.directory.path / "inspection" / f"{stage.name}-rewards.jsonl"
    write_text(path, "".join(lines))


def draw_replies(
    policy: Policy, encoded: Encoded, config: ReflectionConfig, seed: int
) -> list[list[list[int]]]:
    """`replies[i][k]`: token ids of the k-th practice reply in the i-th state of the expert."""
    sampling = Sampling(
        k=1 if config.temperature == 0 else config.practice,
        decoding=Decoding(config.temperature, config.top_p, policy.config.max_new_tokens),
        eos_ids=policy.eos_ids,
        stopped=policy.codec.has_stop,  # as in acting: at an observation that it invents
    )
    return practice(policy.model, encoded.ids, encoded.replies, sampling, seed)


def practice_trees(
    encoded: Encoded, replies: Sequence[Sequence[Sequence[int]]], max_tokens: int
) -> list[Practice]:
    """One trajectory's practice as trees of at most `max_tokens`; replies[i][k] are token ids.

    An action of the expert that is on several trunks counts on the first. Raises ValueError where a
    trunk with one action exceeds the limit.
    """
    branches: dict[Branch, float] = {}
    same_as_expert = [0.0] * len(encoded.replies)
    for step, drawn in enumerate(replies):
        for ids, count in Counter(tuple(reply) for reply in drawn).items():
            if list(ids) == encoded.expert(step):
                same_as_expert[step] = float(count)
            else:
                branches[Branch(step, ids)] = float(count)
    experts = tuple(map(tuple, encoded.experts))
    full = StepTree(tuple(encoded.ids), tuple(encoded.replies), tuple(branches), experts)
    trees = split_tree(full, max_tokens)
    if len(trees[-1].replies) < len(full.replies):  # steps after the last branch
        trees += split_tree(replace(full, branches=()), max_tokens)
    practices, counted = [], 0
    for tree in trees:
        steps = range(len(tree.replies))
        agent = [same_as_expert[i] if i >= counted else 0.0 for i in steps]
        expert = [float(len(replies[i])) if i >= counted else 0.0 for i in steps]
        counted = max(counted, len(steps))
        agent += [branches[branch] for branch in tree.branches]
        expert += [0.0] * len(tree.branches)
        practices.append(Practice(tree, tuple(agent), tuple(expert)))
    return practices


def resumed(
    path: Path,
    count: int,
    make: Callable[[int], Any],
    on_line: Callable[[int], None] = lambda done: None,
) -> list[Any]:
    """`make(0)` … `make(count - 1)`, written to `path` as JSON lines; lines that exist are kept.

    Of several processes each makes a share, in a file of its own, and all return all lines.
    """
    mine = range(processes.rank(), count, processes.count())
    if processes.count() > 1:
        path = path.with_suffix(f".{processes.rank()}-of-{processes.count()}{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = _complete_lines(path)[: len(mine)]
    with path.open("a") as file:
        for i in mine[len(lines) :]:
            lines.append(make(i))
            file.write(json.dumps(lines[-1]) + "\n")
            file.flush()
            on_line(i + 1)
    return processes.interleave(processes.gather(lines), count)


def _complete_lines(path: Path) -> list[Any]:
    """The lines that a killed run left; a truncated last one is removed from the file."""
    if not path.is_file():
        return []
    lines, size = [], 0
    for raw in path.read_bytes().splitlines(keepends=True):
        try:
            lines.append(json.loads(raw))
        except ValueError:
            break
        if not raw.endswith(b"\n"):
            lines.pop()
            break
        size += len(raw)
    with path.open("r+b") as file:
        file.truncate(size)
    return lines
