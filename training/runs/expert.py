"""The expert's trajectories of a run, what is checked before they are played, and everything that
disqualifies them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console

from stepagent import envs
from stepagent.agents.models import load_tokenizer
from stepagent.agents.tool_template import codec_of
from stepagent.envs import wording
from stepagent.envs.react import Prompt, PromptStyle
from stepagent.envs.trajectory import Trajectory, read
from stepagent.files import is_file
from stepagent.training import collect
from stepagent.training.config import Config
from stepagent.training.data import draw, select
from stepagent.training.runs.directory import RunDirectory, WrongOptions
from stepagent.training.tiny import build_tokenizer


def check_inputs(config: Config, prompt: Prompt) -> None:
    """Raises ValueError (ModelError, WrongOptions) for a chat template that cannot be used as
    configured, and for a split to be scored or read that has no tasks."""
    policy = config.policy
    if policy.model == "tiny":
        tokenizer: Any = build_tokenizer([""], policy.tiny.vocabulary, policy.tiny.context)
    else:
        tokenizer = load_tokenizer(policy.model)
    codec_of(tokenizer, policy.template, prompt.tools if config.prompt.format == "tools" else ())
    evaluation = config.evaluation
    splits = {} if evaluation.env else {evaluation.split: "evaluation.split"}
    if config.sft.select == "dev":
        splits["dev"] = "sft.select: dev"
    if evaluation.agreement:
        splits["dev"] = "evaluation.agreement"
    for split, option in splits.items():
        try:
            env = envs.make(config.env, **{**config.env_args, "split": split})
            len(env.tasks)  # raises where there is none
            env.close()
        except ValueError as error:
            raise WrongOptions(f"{option} needs the split {split!r}: {error}") from None


def load_expert(
    config: Config, directory: RunDirectory, prompt: Prompt, console: Console
) -> list[Trajectory]:
    """The trajectories of the file that the configuration names, or else the run's own, which are
    collected where they are not there yet.

    Raises WrongOptions for trajectories of the split that is scored, of another environment, or
    made under another prompt; ValueError where none scored enough.
    """
    expert = config.expert
    path = trajectories_file(config, directory.path)
    seed = config.seed if expert.draw == "seed" else None
    if not expert.trajectories and not is_file(path):
        collect.collect(
            collect.Config(
                env=config.env,
                out=path.parent,
                env_args=config.env_args,
                limit=expert.limit or None,
                task_ids=None if seed is None else _tasks(config, seed),
                min_reward=expert.min_reward,
                workers=expert.workers,
                seed=config.seed,
            ),
            console,
        )
    trajectories = read(path)
    if not trajectories:
        raise WrongOptions(f"{path} holds no trajectory")
    check_trajectories(path, trajectories, config, prompt)
    return in_words(config, select(trajectories, expert.limit, expert.min_reward, seed))


def trajectories_file(config: Config, folder: Path) -> Path:
    """What the run in `folder` learns from: the file that it names, or its own."""
    own = folder / "expert" / collect.KEPT
    return Path(config.expert.trajectories) if config.expert.trajectories else own


def _tasks(config: Config, seed: int) -> list[str]:
    """The training tasks whose trajectories the run collects, drawn by the seed."""
    env = envs.make(config.env, **{**config.env_args, "split": "train"})
    try:
        return draw([*dict.fromkeys(env.tasks)], config.expert.limit, seed)
    finally:
        env.close()


def in_words(config: Config, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """The trajectories with the expert's thoughts as `expert.wording` has them. Raises UsageError
    where the environment has one wording only."""
    if config.expert.wording == "fixed":
        return list(trajectories)
    file = wordings(config)
    return [wording.reword(file, trajectory, config.seed) for trajectory in trajectories]


def wordings(config: Config) -> Path:
    """The file with other words for the thoughts of the run's expert (raises UsageError)."""
    return _wordings(config.env, json.dumps(config.env_args, default=str))


@cache
def _wordings(env_id: str, arguments: str) -> Path:
    env = envs.make(env_id, split="train", **json.loads(arguments))
    try:
        return wording.file_of(env)
    finally:
        env.close()


def check_trajectories(
    path: Path, trajectories: Sequence[Trajectory], config: Config, prompt: Prompt
) -> None:
    """Raises WrongOptions for trajectories of the split that is scored, of another environment, or
    made under another prompt."""
    _check_split(path, trajectories, config)
    foreign = {t.env for t in trajectories} - {config.env}
    if foreign:
        raise WrongOptions(
            f"{path} holds trajectories of {', '.join(sorted(foreign))}, but this run "
            f"trains on {config.env}"
        )
    _check_prompt(path, trajectories, config.env, prompt)


def _check_split(path: Path, trajectories: Sequence[Trajectory], config: Config) -> None:
    """Raises WrongOptions for trajectories of the tasks that the policy is to be scored on."""
    evaluation = config.evaluation
    if evaluation.split == "train" or (evaluation.env or config.env) != config.env:
        return
    scored = sum(t.split == evaluation.split for t in trajectories)
    if scored:
        raise WrongOptions(
            f"{path} holds {scored} trajectories of the split {evaluation.split!r}, on which the "
            "policy is to be scored (evaluation.split): train on another split"
        )


def _check_prompt(path: Path, trajectories: Sequence[Trajectory], env: str, prompt: Prompt) -> None:
    """Raises WrongOptions for trajectories that were made under another prompt of the environment.

    Which parts of the prompt a conversation shows is the configuration's choice, so any of them
    will do. Trajectories without a fingerprint of it (converted ones) are accepted.
    """
    parts = itertools.product((True, False), repeat=3)
    plain = [
        PromptStyle(instruction, example, thoughts) for instruction, example, thoughts in parts
    ]
    styles = [*plain, *(replace(style, format="tools") for style in plain)]
    known = {prompt.checksum(style) for style in styles}
    foreign = [t for t in trajectories if t.fingerprint.get("prompt", min(known)) not in known]
    if foreign:
        raise WrongOptions(
            f"{path} holds {len(foreign)} trajectories made under another prompt than "
            f"{env} has now (the first: task {foreign[0].task_id}, prompt "
            f"{foreign[0].fingerprint['prompt']}): collect them again with stepagent collect"
        )
