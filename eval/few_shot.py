"""Few-shot prompts: an environment's own example, and further ones by its expert.

The further examples are training tasks, played by the environment's expert: the shortest of a few,
of as many task types as possible, and the same ones every time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from stepagent import envs
from stepagent.envs.core import TextEnv, checksum
from stepagent.envs.react import Prompt

Example = tuple[tuple[str, str, str], ...]
"""Turns of observation, thought and action."""
_TRIES = 4
"""Training tasks that are played per example."""


def few_shot_prompt(
    env_id: str, shots: int, env_args: Mapping[str, Any] | None = None
) -> Prompt | None:
    """The environment's prompt with `shots` worked examples in total, its own one first.

    None below 2, where the environment's own prompt serves (for 0, the agent's style leaves out the
    example). Raises ValueError below 0, and if the expert does not solve enough of the training
    tasks tried.
    """
    if shots < 0:
        raise ValueError(f"shots is {shots}: it must be at least 0")
    if shots < 2:
        return None
    env = envs.make(env_id, **{**(env_args or {}), "split": "train"})
    try:
        prompt, examples = env.prompt, _examples(env, shots - 1)
    finally:
        env.close()
    if len(examples) < shots - 1:
        raise ValueError(
            f"{env_id}: its expert solved {len(examples)} of the training tasks tried, and {shots} "
            f"shots need {shots - 1}: ask for {len(examples) + 1} at most"
        )
    return replace(prompt, more=tuple(examples))


def _examples(env: TextEnv, count: int) -> list[Example]:
    """The shortest solved tasks, of different types as far as possible."""
    solved: list[tuple[int, str, Example]] = []
    for task in sorted(env.tasks, key=checksum)[: _TRIES * count]:
        if example := _play(env, task):
            size = sum(len(text) for turn in example for text in turn)
            solved.append((size, env.task_type, example))
    chosen: list[tuple[int, str, Example]] = []
    for entry in sorted(solved):
        if entry[1] not in {kind for _, kind, _ in chosen}:
            chosen.append(entry)
    chosen += [entry for entry in sorted(solved) if entry not in chosen]
    return [example for _, _, example in chosen[:count]]


def _play(env: TextEnv, task: str) -> Example | None:
    """The expert's episode; None if it does not succeed."""
    observation, info = env.reset(seed=0, options={"task_id": task})
    turns = []
    for thought, action in env.expert_plan():
        turns.append((observation, thought, action))
        observation, _, done, truncated, info = env.step(action)
        if done or truncated:
            break
    return tuple(turns) if info["success"] else None
