"""Trains a policy with TRL's GRPOTrainer on an environment on a server.

    stepagent serve --env stepagent/ScienceWorld-v0 --port 8001 &
    python examples/grpo_trl.py --url http://127.0.0.1:8001 --model Qwen/Qwen3-0.6B

TRL opens one environment per rollout of a batch (`environment_factory`), offers its public methods
to the model as tools, and plays: here there is one tool, `act`, which the model calls once per turn
to get the next observation; observations are masked out of the loss. The episode's score is the
reward. `--url` may name several servers, separated by commas.

`--judge` adds rewards for each step (`stepagent.rewards`), from the environment's expert or from
the discriminator of a run of `inverse`. They are process rewards as in DeepSeekMath (section
4.1.3): each is compared with all steps of its group, and the advantage of a step's tokens is the
sum over this step and those after it, on top of the episode's own.

`--model tiny` needs no download: a small Llama from scratch that first imitates the expert for
`warm_up` episodes, so that it can call a tool. It demonstrates the set-up, not results.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer
from trl.chat_template_utils import qwen2_5_chat_template, qwen2_5_training_chat_template

from stepagent import command_line, envs, rewards
from stepagent.envs import react
from stepagent.envs.core import TextEnv
from stepagent.envs.react import PromptStyle
from stepagent.envs.trajectory import Step, Trajectory
from stepagent.errors import FORESEEN, exit_code
from stepagent.rewards import Judge
from stepagent.training.config import TinyConfig
from stepagent.training.tiny import build_model, build_tokenizer


@dataclass
class Config:
    """GRPO on an environment of a server."""

    url: str
    """Server of the environment; several are separated by commas. A token, if needed, is read from
    STEPAGENT_TOKEN."""
    env: str = "stepagent/ScienceWorld-v0"
    """Environment id."""
    env_args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the environment."""
    model: str = "tiny"
    """Folder or hub name of a model whose chat template supports tools, or tiny."""
    output: Path = Path("runs/grpo-trl")
    """Directory for the trained policy and the log."""
    tasks: int = 64
    """Number of tasks to train on: the first of the split train."""
    steps: int = 100
    """Optimiser steps."""
    group: int = 8
    """Rollouts per task, which are compared with each other."""
    turns: int = 12
    """Maximum actions per episode."""
    max_tokens: int = 1024
    """Maximum tokens of an episode, including observations."""
    learning_rate: float = 1.0e-5
    """Of AdamW. A model from scratch needs about 1e-4."""
    beta: float = 0.0
    """Weight of the KL divergence from the first policy."""
    warm_up: int = 40
    """Expert episodes that the tiny model imitates first; other models skip this."""
    warm_up_epochs: int = 100
    """Maximum epochs over them."""
    warm_up_loss: float = 0.02
    """Cross entropy of the expert's tokens at which it stops early: a call has some thirty tokens,
    and all that are sampled must be right."""
    judge: str | None = None
    """Rewards for each step besides the score: expert, reach, or the directory of a run of inverse.
    null: none."""
    judge_args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the judge, such as {env_args: {data: FOLDER}}."""
    step_weight: float = 0.5
    """Weight of the steps' advantages beside the episode's own."""
    seed: int = 0
    """Random seed."""


class Episode:
    """An environment as TRL needs it: `reset`, one tool, and the reward."""

    def __init__(self, make: Callable[[], TextEnv], env_id: str = ""):
        self._env, self._env_id = make(), env_id
        self._over, self._score = True, 0.0

    def reset(self, task_id: str, seed: int, **_: Any) -> str:
        observation, _info = self._env.reset(seed=seed, options={"task_id": task_id})
        self._over, self._score = False, 0.0
        self._seed, self._steps, self._observation = seed, list[Step](), observation
        return observation

    def act(self, action: str) -> str:
        """
        Takes one action in the environment.

        Args:
            action: The action, in the words that the task's instruction gives.

        Returns:
            What is observed then.
        """
        if self._over:
            return "The episode is over."
        reply = react.render("", str(action))
        step = Step.of(self._observation, reply, PromptStyle())
        observation, _, terminated, truncated, info = self._env.step(reply)
        self._steps.append(step)
        self._over, self._score = terminated or truncated, info["score"]
        self._observation = observation
        return f"{observation}\nThe episode is over." if self._over else observation

    def get_reward(self) -> float:
        return self._score

    def _trajectory(self) -> Trajectory:
        """The episode so far, for judges. (A name without the underscore would be a tool.)"""
        arguments = dict(self._env.spec.kwargs) if self._env.spec else {}
        arguments = {k: v for k, v in arguments.items() if k not in ("split", "url")}
        return Trajectory(
            env=self._env_id,
            task_id=str(self._env.task_id),
            split=self._env.split,
            agent="grpo",
            seed=self._seed,
            steps=tuple(self._steps),
            final_observation=self._observation,
            reward=self._score,
            fingerprint={"arguments": json.dumps(arguments)},
        )


def turns_of_steps(messages: Sequence[dict[str, Any]]) -> list[int]:
    """For each step of an episode the assistant's message (counted from 0) that took it."""
    turns, turn = [], -1
    for message in messages:
        if message["role"] != "assistant":
            continue
        turn += 1
        for call in message.get("tool_calls") or ():
            function = call.get("function", {})
            arguments = function.get("arguments")
            if function.get("name") == "act" and isinstance(arguments, dict):
                turns += [turn] * (set(arguments) == {"action"})  # others are refused by TRL
    return turns


def process_advantages(rewards: Sequence[Sequence[float]], group: int) -> list[list[float]]:
    """[episodes][steps]: for each step the sum of its reward and of those after it, each less the
    mean and divided by the spread of all steps of its group of `group` episodes."""
    advantages: list[list[float]] = []
    for start in range(0, len(rewards), group):
        rows = rewards[start : start + group]
        values = torch.tensor([value for row in rows for value in row])
        if len(values) < 2:
            advantages += [[0.0] * len(row) for row in rows]
            continue
        mean, spread = float(values.mean()), float(values.std()) + 1e-4
        for row in rows:
            scaled = torch.tensor([(value - mean) / spread for value in row])
            advantages.append(scaled.flip(0).cumsum(0).flip(0).tolist())
    return advantages


class StepwiseTrainer(GRPOTrainer):
    """GRPO with rewards for each step (`stepagent.rewards`) besides those of the episode.

    TRL takes advantages per token from subclasses; the rest is its own. A group must lie within one
    process. Tested with TRL 1.16.
    """

    def __init__(self, *, judge: Judge, step_weight: float, **arguments: Any):
        self.judge, self.step_weight = judge, step_weight
        self.judged: list[tuple[list[int], list[float]]] = []
        """For each episode of the batch: the turns of its steps, and their rewards"""
        super().__init__(reward_funcs=[self.step_reward], **arguments)

    def step_reward(
        self, completions: Sequence[Any], environments: Sequence[Episode], **_: Any
    ) -> list[float]:
        """The sum of each episode's step rewards: for the log, its weight is 0."""
        self.judged = [
            (turns_of_steps(messages), self.judge(episode._trajectory()))
            for messages, episode in zip(completions, environments, strict=True)
        ]
        return [sum(rewards) for _, rewards in self.judged]

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        output = super()._generate_and_score_completions(inputs)
        group = self.num_generations if self.model.training else self.num_generations_eval
        of_steps = process_advantages([rewards for _, rewards in self.judged], group)
        written = output["tool_mask"] * output["completion_mask"]
        begins = written - torch.cat([torch.zeros_like(written[:, :1]), written[:, :-1]], dim=1)
        turn = begins.clamp_min(0).cumsum(1) - 1  # [episodes, tokens]
        advantages = output["advantages"][:, None].repeat(1, written.shape[1])
        for row, ((turns, _), values) in enumerate(zip(self.judged, of_steps, strict=True)):
            for number, value in zip(turns, values, strict=False):
                advantages[row, turn[row] == number] += self.step_weight * value
        output["advantages"] = advantages
        return output


def opening(env: TextEnv) -> list[dict[str, str]]:
    """The prompt: the environment's instruction, and a user turn that `reset` fills in."""
    request = "Call the tool `act` for every action, and nothing else."
    return [
        {"role": "system", "content": f"{env.prompt.instruction}\n\n{request}"},
        {"role": "user", "content": ""},
    ]


def expert_episodes(env: TextEnv, tasks: Sequence[str], seed: int) -> list[list[dict[str, Any]]]:
    """Conversations in which the expert calls the tool, on the tasks that it can do in the turns
    that there are. Raises ValueError where there is none."""
    conversations, too_short = list[list[dict[str, Any]]](), ""
    for task_id in tasks:
        observation, _ = env.reset(seed=seed, options={"task_id": task_id})
        try:
            plan = env.expert_plan()
        except ValueError as error:
            too_short = f": {error}"
            continue
        env.reset(seed=seed, options={"task_id": task_id})
        messages: list[dict[str, Any]] = opening(env)
        messages[-1]["content"] = observation
        for _thought, action in plan:
            call = {"name": "act", "arguments": {"action": action}}
            messages.append(
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"type": "function", "function": call}],
                }
            )
            observation, _, terminated, truncated, _ = env.step(action)
            messages.append({"role": "tool", "name": "act", "content": observation})
            if terminated or truncated:
                break
        conversations.append(messages[:-1])
    if not conversations:
        raise ValueError(
            f"no task to imitate the expert on (--tasks, --turns, --warm-up){too_short}"
        )
    return conversations


def tiny_policy(
    config: Config, episodes: list[list[dict[str, Any]]], shape: TinyConfig
) -> tuple[Any, PreTrainedTokenizerBase]:
    """A small Llama that has imitated these episodes, and its tokenizer."""
    tools = [Episode.act]

    def rendered(tokenizer: PreTrainedTokenizerBase, messages: Any, **more: Any) -> Any:
        template = qwen2_5_training_chat_template  # marks the assistant's part
        return tokenizer.apply_chat_template(messages, tools=tools, chat_template=template, **more)

    texts = [str(m) for messages in episodes for m in messages]
    tokenizer = build_tokenizer(texts, shape.vocabulary, shape.context)
    tokenizer.add_special_tokens(
        {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]}
    )
    tokenizer.chat_template = qwen2_5_chat_template
    model = build_model(shape, tokenizer, config.seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    batches = [
        rendered(
            tokenizer,
            messages,
            return_dict=True,
            return_tensors="pt",
            return_assistant_tokens_mask=True,
        )
        for messages in episodes
    ]
    for _ in range(config.warm_up_epochs):
        losses = []
        for batch in batches:
            labels = batch["input_ids"].masked_fill(batch["assistant_masks"] == 0, -100)
            loss = model(input_ids=batch["input_ids"], labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
            losses.append(loss.item())
        if sum(losses) / len(losses) < config.warm_up_loss:
            break
    return model, tokenizer


def train(config: Config, shape: TinyConfig | None = None) -> list[dict[str, float]]:
    """Trains and saves the policy; returns the log of each step."""
    opened: list[TextEnv] = []

    def make() -> TextEnv:
        arguments = {"split": "train", "max_steps": config.turns, **config.env_args}
        opened.append(envs.make(config.env, url=config.url, **arguments))
        return opened[-1]

    with ExitStack() as stack:
        stack.callback(lambda: [env.close() for env in opened])
        env = make()
        tasks = env.tasks[: config.tasks]
        if config.model == "tiny":
            episodes = expert_episodes(env, tasks[: config.warm_up], config.seed)
            model, tokenizer = tiny_policy(config, episodes, shape or TinyConfig())
        else:
            model = AutoModelForCausalLM.from_pretrained(config.model, dtype="auto")
            tokenizer = AutoTokenizer.from_pretrained(config.model)
        rows = [
            {"prompt": opening(env), "task_id": task_id, "seed": config.seed} for task_id in tasks
        ]
        kind: Any = GRPOTrainer
        weights = None
        if config.judge:
            judge = stack.enter_context(rewards.judge(config.judge, **config.judge_args))
            kind = partial(StepwiseTrainer, judge=judge, step_weight=config.step_weight)
            weights = [0.0]
        trainer = kind(
            model=model,
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(rows),
            environment_factory=lambda: Episode(make, config.env),
            args=GRPOConfig(
                reward_weights=weights,
                output_dir=str(config.output),
                max_steps=config.steps,
                per_device_train_batch_size=config.group,
                num_generations=config.group,
                max_completion_length=config.max_tokens,
                max_tool_calling_iterations=config.turns,
                learning_rate=config.learning_rate,
                beta=config.beta,
                seed=config.seed,
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                bf16=torch.cuda.is_available(),
            ),
        )
        trainer.train()
        trainer.save_model(str(config.output / "final"))
        tokenizer.save_pretrained(str(config.output / "final"))
        return [row for row in trainer.state.log_history if "reward" in row]


def main(argv: Sequence[str] | None = None) -> int:
    config = command_line.parse(Config, argv, prog="python examples/grpo_trl.py")
    try:
        rows = train(config)
    except FORESEEN as error:
        print(f"grpo_trl.py: error: {error}", file=sys.stderr)
        return exit_code(error)
    for row in (rows[0], rows[-1]):
        print(
            f"step {row['step']}: reward {row['reward']:.3f}, calls {row['tools/call_frequency']}"
        )
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    sys.exit(main())
