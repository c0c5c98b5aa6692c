"""Step pairs of a training run: the expert's action and the agent's in the same state.

A run of `implicit` or `inverse` writes what its agent practised (`training.methods.practice`); here
it becomes text again. Rows are TRL's: `prompt` is the conversation up to the state, `chosen` the
expert's reply, `rejected` the agent's. `weight` counts how often the agent drew it, and after
`inverse` both have their rewards by the discriminator. Replies equal to the expert's are no pair.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stepagent import command_line, envs
from stepagent.envs import Trajectory
from stepagent.envs.react import Message
from stepagent.envs.trajectory import read
from stepagent.eval.recorded_env import check_id, safe_arguments
from stepagent.files import is_file, parse_json, read_text

Row = dict[str, Any]
_REWARDS = "-rewards"


def step_pairs(folder: Path) -> Iterator[Row]:
    """The pairs of all iterations of the run in `folder`.

    Raises ValueError where the folder is no run with practice, or its trajectories have changed.
    """
    from stepagent.agents.models import load_tokenizer
    from stepagent.training.config import Config
    from stepagent.training.runs.directory import BASE
    from stepagent.training.runs.expert import trajectories_file

    if not is_file(folder / "config.yaml") or not (folder / "practice").is_dir():
        raise ValueError(
            f"{folder} is no run of implicit or inverse: it needs config.yaml and practice/"
        )
    options = ["--config", str(folder / "config.yaml")]
    config = command_line.parse(Config, options, prog="python -m training.run")
    if config.reflection.states != "expert":
        raise ValueError(
            f"{folder} practised in states of its own (reflection.states "
            f"{config.reflection.states!r}): step pairs can be read from runs in the expert's"
        )
    path = trajectories_file(config, folder)
    trajectories: dict[tuple[str, int], list[Trajectory]] = {}
    for trajectory in read(path):
        trajectories.setdefault((trajectory.task_id, trajectory.seed), []).append(trajectory)
    is_tiny = config.policy.model == "tiny"
    tokenizer = load_tokenizer(folder / BASE if is_tiny else config.policy.model)
    check_id(config.env, str(folder))
    env = envs.make(config.env, split="train", **safe_arguments(config.env_args, str(folder), {}))
    prompt = env.prompt
    env.close()
    for number, (stage, line) in enumerate(_practice(folder / "practice"), 1):
        candidates = trajectories.get((line["task_id"], line["seed"]), [])
        same = [t for t in candidates if len(t.steps) == len(line["replies"])]
        if not same:
            raise ValueError(
                f"{path} no longer holds the trajectory of {line['task_id']!r} that record "
                f"{number} of {folder / 'practice'} is about"
            )
        about = {"env": config.env, "task_id": line["task_id"], "stage": stage}
        messages = same[0].messages(prompt, config.prompt)
        for row in _pairs(messages, line, tokenizer):
            yield {**row, **about}


def _pairs(messages: list[Message], line: dict[str, Any], tokenizer: Any) -> Iterator[Row]:
    states = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    rewards = line.get("rewards", {})
    for step, (state, replies) in enumerate(zip(states, line["replies"], strict=True)):
        expert = messages[state]
        for ids, weight in Counter(map(tuple, replies)).items():
            text = tokenizer.decode(list(ids), skip_special_tokens=True).strip()
            if text == expert["content"].strip():
                continue
            reply: Message = {"role": "assistant", "content": text}
            yield {
                "prompt": messages[:state],
                "chosen": [expert],
                "rejected": [reply],
                "weight": float(weight),
                "step": step,
                "chosen_reward": rewards.get((step, None)),
                "rejected_reward": rewards.get((step, ids)),
            }


def _practice(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(stage, record) in order; where a stage has rewards, records hold them by (step, reply).

    The expert's own is at (step, None). Several processes wrote files of their own.
    """
    for file in sorted(folder.glob("*.jsonl"), key=_order):
        stage = file.name.split(".")[0]
        if stage.endswith(_REWARDS):
            continue
        rewards = _rewards(folder / f"{stage}{_REWARDS}.jsonl")
        for number, text in enumerate(read_text(file).splitlines(), 1):
            try:
                line = parse_json(text)
                key = line["task_id"], line["seed"]
            except (ValueError, KeyError, TypeError):
                raise ValueError(
                    f"{file}:{number} is no record of practice with its task (is the run still "
                    "going, or of an earlier version?)"
                ) from None
            yield stage, {**line, "rewards": rewards.get(key, {})}


def _order(file: Path) -> tuple[int, str]:
    number = file.name.removeprefix("iteration-").split(".")[0]
    return (int(number) if number.isdigit() else 0), file.name


def _rewards(path: Path) -> Mapping[tuple[str, int], dict[tuple[int, Any], float]]:
    """(task id, seed) → (step, reply) → reward."""
    if not is_file(path):
        return {}
    rewards: dict[tuple[str, int], dict[tuple[int, Any], float]] = {}
    for text in read_text(path).splitlines():
        line = parse_json(text)
        known = rewards.setdefault((line["task_id"], line["seed"]), {})
        known |= {(step, None): reward for step, reward in enumerate(line["expert"])}
        known |= {(b["step"], tuple(b["ids"])): b["reward"] for b in line["agent"]}
    return rewards
