"""Rollouts with a local model: `run_episodes` against a plain loop, on the same conversations.

The plain loop is what one writes first: episode by episode, turn by turn, `model.generate` on the
whole conversation. So that both sides do the same work, it is led through the conversations that
ours had: at every turn it makes its own greedy reply, which is counted as equal or not, and the
environment then gets the recorded one. In float32 all replies are equal; in bfloat16 two ways of
adding up the same numbers may prefer another token here and there. A second baseline also calls
`generate` on whole conversations, but on all episodes at once, filled up to one length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import envs
from agents import models
from agents.generation import Prompt
from agents.plain import PlainGenerator
from agents.transformers import TransformersAgent
from envs import react
from envs.core import checksum
from envs.trajectory import Trajectory
from eval.benches import Options, Row, measure_sides, settings
from eval.rollout import run_episodes


def bench(options: Options) -> list[Row]:
    """Turns a second of both sides, and how many greedy replies are equal.

    Settings: env, env_args, split, episodes, turns (of an episode, at most), max_new_tokens,
    batch_size, context (tokens; null: the model's own).
    """
    wanted = settings(
        options,
        env="stepagent/ScienceWorld-v0",
        env_args={},
        split="test",
        episodes=4,
        turns=6,
        max_new_tokens=32,
        batch_size=8,
        context=None,
    )
    dtype = models.pick_dtype(options.dtype, options.device)
    agent = TransformersAgent(
        models.load_model(options.model, dtype, options.device),
        models.load_tokenizer(options.model),
        name=options.model,
        max_new_tokens=wanted["max_new_tokens"],
        batch_size=wanted["batch_size"],
        context=wanted["context"],
    )
    return _Sides(agent, wanted).rows(options.repeats)


class _Sides:
    """Both ways of playing the same episodes with the same model."""

    def __init__(self, agent: TransformersAgent, wanted: dict[str, Any]):
        self.agent, self.wanted = agent, wanted
        self.env_args = {**wanted["env_args"], "max_steps": wanted["turns"]}
        self.env = envs.make(wanted["env"], split=wanted["split"], **self.env_args)
        self.tasks = sorted(self.env.tasks, key=checksum)[: wanted["episodes"]]
        self.played: list[Trajectory] = []
        self.replies: list[str] = []

    def rows(self, repeats: int) -> list[Row]:
        try:
            self.ours()  # warms up, and makes the conversations that the baselines follow
            sides = [self.ours, self.plain_loop, self.plain_batches]
            ours, loop, batched = measure_sides(sides, repeats)
            equal, turns = self._equal()
        finally:
            self.env.close()
            self.agent.close()
        unit = f"turns/s ({self.agent.name}, {str(self.agent.model.dtype).split('.')[-1]})"
        return [
            Row.more_is_better("rollout", turns / ours, turns / loop, unit),
            Row.more_is_better("rollout, baseline in batches", turns / ours, turns / batched, unit),
            Row("equal greedy replies", equal, turns, equal / turns, "replies"),
        ]

    def ours(self) -> None:
        self.agent.reset()
        wanted = self.wanted
        run = run_episodes(
            wanted["env"], self.agent, self.tasks, split=wanted["split"], env_kwargs=self.env_args
        )
        self.played = sorted(run, key=lambda t: self.tasks.index(t.task_id))
        for trajectory in self.played:
            if trajectory.error:
                raise ValueError(f"{trajectory.task_id} failed: {trajectory.error}")

    def plain_loop(self) -> None:
        """`generate` on one whole conversation after another."""
        generator, self.replies = self._generator(1), []
        for trajectory in self.played:
            messages = self._begin(trajectory)
            for step in trajectory.steps:
                self.replies += self._generate(generator, [messages])
                self._follow(messages, step.text(self.agent.style))

    def plain_batches(self) -> None:
        """`generate` on the whole conversations of all episodes at once, turn by turn."""
        generator = self._generator(self.agent.batch_size)
        # One environment cannot be in all episodes at once: the observations come from the record.
        whole = [t.messages(self.env.prompt, self.agent.style) for t in self.played]
        for turn in range(max(len(t.steps) for t in self.played)):
            upto = [_before(messages, turn) for messages in whole]
            self._generate(generator, [messages for messages in upto if messages])

    def _generator(self, batch_size: int) -> PlainGenerator:
        agent = self.agent
        ends = models.eos_ids(agent.model, agent.tokenizer) | {agent.codec.end_of_turn_id}
        return PlainGenerator(
            agent.model,
            ends=ends,
            stops=react.STOP,
            tokenizer=agent.tokenizer,
            batch_size=batch_size,
        )

    def _generate(
        self, generator: PlainGenerator, conversations: Sequence[list[react.Message]]
    ) -> list[str]:
        agent, rng = self.agent, np.random.default_rng(0)
        limit = agent.context - agent.decoding.max_new_tokens
        prompts = []
        for i, messages in enumerate(conversations):
            fitting, _ = agent.codec.fit(messages, limit)
            prompts.append(Prompt(i, agent.codec.encode(fitting).ids, rng))
        found = generator.generate(prompts, agent.decoding)
        return [react.cut(agent.codec.decode(ids).strip()) for ids in found]

    def _begin(self, trajectory: Trajectory) -> list[react.Message]:
        options = {"task_id": trajectory.task_id}
        observation, _ = self.env.reset(seed=trajectory.seed, options=options)
        return react.opening(self.env.prompt, observation, self.agent.style)

    def _follow(self, messages: list[react.Message], reply: str) -> None:
        observation = self.env.step(reply)[0]
        messages.append({"role": "assistant", "content": reply})
        messages.append({"role": "user", "content": observation})

    def _equal(self) -> tuple[int, int]:
        style = self.agent.style
        ours = [step.text(style).strip() for t in self.played for step in t.steps]
        pairs = zip(ours, self.replies, strict=True)
        return sum(mine == theirs for mine, theirs in pairs), len(ours)


def _before(messages: list[react.Message], turn: int) -> list[react.Message]:
    """The conversation that the turn's reply answers; [] where the episode had ended before it."""
    replies = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    return messages[: replies[turn]] if turn < len(replies) else []
