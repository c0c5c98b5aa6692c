"""Benchmark of practice in the agent's own states: against the expert's, same states, same K.

Both sides draw K replies in every state of one trajectory and run eq. 6 forward and backward over
them. In the expert's the chosen action is part of the trunk; in the agent's own it is one more
branch in every state. Ours is the latter, so a ratio of 2/3 is 1.5 times the time.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace

from stepagent.agents.chat import Encoded
from stepagent.eval.benches import Options, Row, measure, settings
from stepagent.training.benchmarks.step_trees import (
    Setting,
    long_trajectories,
    shared_practice,
    trees_pass,
)
from stepagent.training.trees.sampling import Replies, Sampling
from stepagent.training.trees.tree import Branch, StepTree


def bench(options: Options) -> Iterator[Row]:
    """With the sampling, and forward and backward alone."""
    sizes = settings(options, steps=20, practice=3, max_new_tokens=32)
    setting = Setting(options, "float32")
    [trajectory] = long_trajectories(1, sizes["steps"])
    expert = setting.encode(trajectory)
    own = replace(expert, experts=[expert.expert(step) for step in range(sizes["steps"])])
    sampling = setting.sampling(sizes["practice"], 1.0, sizes["max_new_tokens"])
    seconds = measure(
        functools.partial(practise, setting, own, sampling),
        functools.partial(practise, setting, expert, sampling),
        options.repeats,
    )
    name = f"practice in {sizes['steps']} states of its own, K = {sizes['practice']}"
    yield Row.less_is_better(f"{name}, sampling and update", *seconds, "s")
    replies = shared_practice(setting, expert, sampling)
    seconds = measure(
        functools.partial(update, setting, own, replies),
        functools.partial(update, setting, expert, replies),
        options.repeats,
    )
    yield Row.less_is_better(f"{name}, update alone", *seconds, "s forward and backward")


def practise(setting: Setting, states: Encoded, sampling: Sampling) -> None:
    """Draws the replies and learns from them."""
    update(setting, states, shared_practice(setting, states, sampling))


def update(setting: Setting, states: Encoded, replies: Replies) -> None:
    """Eq. 6, forward and backward."""
    branches = [Branch(i, tuple(ids)) for i, drawn in enumerate(replies) for ids in drawn]
    trees_pass(setting.model, [StepTree.of(states, branches)])
    setting.model.zero_grad()
