"""Inspection (section 4.1, eqs. 4 and 5): the agent practises in every state of the expert.

    a_i^θ ~ π_θ(· | ŝ_i),   i = 1 … n,   K times each

All K·n replies of a trajectory come from one reading of it (`training.sampling`), and their
log-probabilities under the policy as it now stands, the reference of eq. 6, from one more
(`training.tree`). Both are written down, a line a trajectory, so that a killed run goes on and the
reflection needs no second model.

Deviations: replies equal to the expert's carry no gradient in eq. 6 (both of its terms are the
same), so they are dropped, and counted. Equal replies in the same state become one with a weight.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from stepagent.agents.chat import Encoded
from stepagent.training import processes
from stepagent.training.config import ReflectionConfig
from stepagent.training.dataset import Sample
from stepagent.training.policy import Policy
from stepagent.training.sampling import practice
from stepagent.training.tree import Branch, StepTree, pack, score_trees, split_tree


@dataclass(frozen=True)
class Inspected:
    """One expert trajectory with what the agent did in its states. B branches, one tree."""

    tree: StepTree
    weights: tuple[int, ...]
    """[B] how often the branch was drawn."""
    reference_chosen: tuple[float, ...]
    """[B] log π_ref of the expert's reply in each branch's state."""
    reference_rejected: tuple[float, ...]
    """[B] log π_ref of each branch."""

    @property
    def pairs(self) -> int:
        """Pairs (expert's action, agent's action), repeated ones counted."""
        return sum(self.weights)


def trees(
    encoded: Encoded, replies: Sequence[Sequence[Sequence[int]]], max_tokens: int
) -> tuple[list[tuple[StepTree, tuple[int, ...]]], int]:
    """The step trees of one trajectory with their weights, and how many replies were the expert's.

    replies[i][k] are the token ids of the k-th reply in the i-th state.
    """
    weights: dict[Branch, int] = {}
    same = 0
    for step, drawn in enumerate(replies):
        start, end = encoded.replies[step]
        for ids, count in Counter(tuple(r) for r in drawn).items():
            if list(ids) == encoded.ids[start:end]:
                same += count
            else:
                weights[Branch(step, ids)] = count
    if not weights:
        return [], same
    whole = StepTree(tuple(encoded.ids), tuple(encoded.replies), tuple(weights))
    parts = split_tree(whole.trimmed(), max_tokens)
    return [(p, tuple(weights[b] for b in p.branches)) for p in parts], same


def inspect(
    policy: Policy,
    samples: Sequence[Sample],
    config: ReflectionConfig,
    path: Path,
    seed: int,
    on_trajectory: Callable[[int], None] | None = None,
) -> tuple[list[Inspected], dict[str, float]]:
    """Practice actions and reference log-probabilities for all samples.

    Lines that `path` already holds are kept (the policy is the same: an iteration's inspection is
    over before its first update). Returns the trees with at least one pair, and figures: replies
    drawn, the share equal to the expert's, the share cut at the length limit.
    """
    lines = resumed(
        path,
        len(samples),
        lambda i: _inspect_one(policy, samples[i].encoded, config, seed + i),
        on_trajectory,
    )
    found: list[Inspected] = []
    for sample, line in zip(samples, lines, strict=True):
        for part in line["trees"]:
            tree = StepTree(
                tuple(sample.encoded.ids),
                tuple(sample.encoded.replies),
                tuple(Branch(b["step"], tuple(b["ids"])) for b in part["branches"]),
            ).trimmed()
            found.append(
                Inspected(
                    tree, tuple(part["weights"]), tuple(part["chosen"]), tuple(part["rejected"])
                )
            )
    drawn = max(1, sum(line["drawn"] for line in lines))
    return found, {
        "practised": drawn,
        "same_as_expert": sum(line["same"] for line in lines) / drawn,
        "cut": sum(line["cut"] for line in lines) / drawn,
        "pairs": sum(i.pairs for i in found),
        "distinct_pairs": sum(len(i.weights) for i in found),
    }


def draw_replies(
    policy: Policy, encoded: Encoded, config: ReflectionConfig, seed: int
) -> list[list[list[int]]]:
    """`found[i][k]`: token ids of the k-th practice reply in the i-th state of the expert."""
    greedy = config.temperature == 0
    return practice(
        policy.model,
        encoded.ids,
        encoded.replies,
        k=1 if greedy else config.practice,
        temperature=config.temperature,
        top_p=config.top_p,
        max_new_tokens=policy.config.max_new_tokens,
        eos_ids=policy.eos_ids,
        seed=seed,
    )


def _inspect_one(policy: Policy, encoded: Encoded, config: ReflectionConfig, seed: int) -> dict:
    replies = draw_replies(policy, encoded, config, seed)
    parts, same = trees(encoded, replies, config.max_tree_tokens)
    line: dict = {
        "drawn": sum(len(r) for r in replies),
        "same": same,
        "cut": sum(ids[-1] not in policy.eos_ids for r in replies for ids in r),
        "trees": [],
    }
    for tree, weights in parts:
        with torch.no_grad():
            scores = score_trees(policy.model, pack([tree], policy.device))
        line["trees"].append(
            {
                "branches": [{"step": b.step, "ids": list(b.ids)} for b in tree.branches],
                "weights": weights,
                "chosen": scores.chosen.tolist(),
                "rejected": scores.rejected.tolist(),
            }
        )
    return line


def resumed(
    path: Path,
    count: int,
    make: Callable[[int], dict],
    on_line: Callable[[int], None] | None = None,
) -> list[dict]:
    """`make(0)` … `make(count - 1)`, written to `path` as they are made; what is there is kept.

    Several processes make a share each, in files of their own, and all return all lines.
    """
    mine = range(processes.rank(), count, processes.count())
    if processes.count() > 1:
        path = path.with_suffix(f".{processes.rank()}-of-{processes.count()}{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = _whole_lines(path)[: len(mine)]
    with path.open("a") as file:
        for i in mine[len(lines) :]:
            lines.append(make(i))
            file.write(json.dumps(lines[-1]) + "\n")
            file.flush()
            if on_line:
                on_line(i + 1)
    return processes.interleave(processes.gather(lines), count)


def _whole_lines(path: Path) -> list[dict]:
    """The lines of an earlier, killed inspection; a cut last one is removed from the file."""
    if not path.is_file():
        return []
    good, size = [], 0
    for raw in path.read_bytes().splitlines(keepends=True):
        try:
            good.append(json.loads(raw))
        except ValueError:
            break
        if not raw.endswith(b"\n"):
            good.pop()
            break
        size += len(raw)
    with path.open("r+b") as file:
        file.truncate(size)
    return good
