"""Rollouts with a local model: `run_episodes` against a naive loop, on the same conversations.

The naive loop goes episode by episode, turn by turn, and calls `model.generate` on the entire
conversation. So that both sides do the same work, it follows the conversations that ours had: in
every turn it generates its own greedy reply, which is counted as equal or not, and the environment
then gets the recorded one. In float32 all replies are equal; in bfloat16 a different order of
summation may occasionally change a token. A second baseline also calls `generate` on entire
conversations, but on all episodes at once, padded to one length.

The second part compares continuous batching with fixed batches, both with kept caches, on more
episodes than the model answers at once and replies of any length. A fixed batch of episodes is
played in lockstep (all reply, then all environments step at once), and the next batch begins when
the last episode has ended. It is measured with the environments as they are, and with a third of
the tasks slower by `slow` seconds per step.

The last part, on a CPU and with `many` and `slots` too, has our own passes with padding as the
baseline.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from typing import Any

import gymnasium as gym
import numpy as np

from stepagent import envs
from stepagent.agents import models
from stepagent.agents.core import Turn
from stepagent.agents.generation import Request
from stepagent.agents.naive_generation import NaiveGenerator
from stepagent.agents.transformers import TransformersAgent
from stepagent.envs import react
from stepagent.envs.core import Outcome, TextEnv, checksum
from stepagent.envs.trajectory import Trajectory
from stepagent.eval.benches import Options, Row, measure_sides, settings
from stepagent.eval.rollout import run_episodes


def bench(options: Options) -> Iterator[Row]:
    """Turns per second of both sides, and how many greedy replies are equal.

    Settings: env, env_args, split, episodes, turns (maximum per episode), max_new_tokens,
    batch_size, context (tokens; null: the model's own); for continuous against fixed batches,
    many (episodes), slots (of them at once), reply_tokens and slow (seconds). If episodes, many or
    slow is 0, that part is not measured.
    """
    args = settings(
        options,
        env="stepagent/ScienceWorld-v0",
        env_args={},
        split="test",
        episodes=4,
        turns=6,
        max_new_tokens=32,
        batch_size=8,
        context=None,
        many=12,
        slots=4,
        reply_tokens=64,
        slow=1.0,
    )
    dtype = models.pick_dtype(options.dtype, options.device)
    model = models.load_model(options.model, dtype, options.device)
    tokenizer = models.load_tokenizer(options.model)

    def agent(batch_size: int, max_new_tokens: int) -> TransformersAgent:
        return TransformersAgent(
            model,
            tokenizer,
            name=options.model,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            context=args["context"],
        )

    if args["episodes"]:
        few = agent(args["batch_size"], args["max_new_tokens"])
        yield from _AgainstNaive(few, args, args["episodes"]).rows(options.repeats)
    many = agent(args["slots"], args["reply_tokens"])
    if args["many"]:
        yield from _AgainstFixedBatches(many, args, args["many"]).rows(options.repeats)
    if args["many"] and args["slow"]:
        slowed = {**args, "env": _slowed(args["env"], args["slow"])}
        title = f", a third of the tasks slow by {args['slow']:g} s"
        yield from _AgainstFixedBatches(many, slowed, args["many"]).rows(options.repeats, title)
    if args["many"]:
        yield from _AgainstPadding(many, args, args["many"]).rows(options.repeats)
    many.close()


def _slowed(env_id: str, seconds: float) -> str:
    """The id of the same environment, with a third of its tasks slow in every step."""

    def make(**kwargs: Any) -> TextEnv:
        env = envs.make(env_id, **kwargs)
        act = env.act

        def late(action: str) -> Outcome:
            if zlib.crc32(str(env.task_id).encode()) % 3 == 0:
                time.sleep(seconds)
            return act(action)

        env.act = late  # type: ignore[method-assign]
        return env

    gym.registry.pop("stepagent-bench/Slow-v0", None)
    gym.register("stepagent-bench/Slow-v0", entry_point=make, disable_env_checker=True)
    return "stepagent-bench/Slow-v0"


class _Sides:
    """Ways of playing the same episodes with the same model; ours is one of them."""

    def __init__(self, agent: TransformersAgent, args: dict[str, Any], episodes: int):
        self.agent, self.args = agent, args
        self.env_args = {**args["env_args"], "max_steps": args["turns"]}
        self.env = self.make()
        self.tasks = sorted(self.env.tasks, key=checksum)[:episodes]
        self.played: list[Trajectory] = []
        self.followed: list[Trajectory] = []  # those that the other side followed last
        self.replies: list[str] = []
        self.unit = f"turns/s ({agent.name}, {str(agent.model.dtype).split('.')[-1]})"

    def make(self) -> TextEnv:
        return envs.make(self.args["env"], split=self.args["split"], **self.env_args)

    def ours(self) -> None:
        self.agent.reset()
        args = self.args
        run = run_episodes(
            args["env"], self.agent, self.tasks, split=args["split"], env_args=self.env_args
        )
        self.played = sorted(run, key=lambda t: self.tasks.index(t.task_id))
        for trajectory in self.played:
            if trajectory.error:
                raise ValueError(f"{trajectory.task_id} failed: {trajectory.error}")

    def equal(self, name: str) -> Row:
        """How many of the other side's replies equal ours."""
        style = self.agent.style
        replies = [step.text(style).strip() for t in self.followed for step in t.steps]
        same = sum(a == b for a, b in zip(replies, self.replies, strict=True))
        return Row(name, same, len(replies), same / len(replies), "replies")


class _AgainstNaive(_Sides):
    """Against `generate` on entire conversations."""

    def rows(self, repeats: int) -> list[Row]:
        try:
            self.ours()  # warms up, and produces the conversations that the baselines follow
            sides = [self.ours, self.naive_loop, self.naive_batches]
            ours, loop, batched = measure_sides(sides, repeats)
            equal = self.equal("equal greedy replies")
        finally:
            self.env.close()
            self.agent.close()
        turns, unit = equal.baseline, self.unit
        return [
            Row.more_is_better("rollout", turns / ours, turns / loop, unit),
            Row.more_is_better("rollout, baseline in batches", turns / ours, turns / batched, unit),
            equal,
        ]

    def naive_loop(self) -> None:
        """`generate` on one entire conversation after another."""
        generator, self.replies, self.followed = self._generator(1), [], self.played
        for trajectory in self.followed:
            messages = _begin(self.env, trajectory, self.agent)
            for step in trajectory.steps:
                self.replies += self._generate(generator, [messages])
                _follow(self.env, messages, step.text(self.agent.style))

    def naive_batches(self) -> None:
        """`generate` on the entire conversations of all episodes at once, turn by turn."""
        generator = self._generator(self.agent.batch_size)
        # One environment cannot play all episodes at once: the observations are the recorded ones.
        conversations = [t.messages(self.env.prompt, self.agent.style) for t in self.played]
        for turn in range(max(len(t.steps) for t in self.played)):
            upto = [_before(messages, turn) for messages in conversations]
            self._generate(generator, [messages for messages in upto if messages])

    def _generator(self, batch_size: int) -> NaiveGenerator:
        agent = self.agent
        ends = models.eos_ids(agent.model, agent.tokenizer) | {agent.codec.end_of_turn_id}
        return NaiveGenerator(
            agent.model,
            ends=ends,
            stops=react.STOP,
            tokenizer=agent.tokenizer,
            batch_size=batch_size,
        )

    def _generate(
        self, generator: NaiveGenerator, conversations: Sequence[list[react.Message]]
    ) -> list[str]:
        agent, rng = self.agent, np.random.default_rng(0)
        limit = agent.context - agent.decoding.max_new_tokens
        requests = []
        for i, messages in enumerate(conversations):
            fitting, _ = agent.codec.fit(messages, limit)
            requests.append(Request(i, agent.codec.prompt(fitting), rng))
        replies = generator.generate(requests, agent.decoding)
        return [react.cut(agent.codec.decode(ids).strip()) for ids in replies]


class _AgainstFixedBatches(_Sides):
    """Against fixed batches with the same kept caches."""

    def rows(self, repeats: int, title: str = "") -> list[Row]:
        opened = [self.env, *(self.make() for _ in range(self.agent.batch_size - 1))]
        try:
            self.ours()
            ours, fixed = measure_sides([self.ours, lambda: self.fixed(opened)], repeats)
            equal = self.equal(f"equal greedy replies, fixed batches{title}")
        finally:
            for env in opened:
                env.close()
            self.agent.reset()
        name = f"rollout, continuous against fixed batches of {self.agent.batch_size}{title}"
        turns = equal.baseline
        return [Row.more_is_better(name, turns / ours, turns / fixed, self.unit), equal]

    def fixed(self, opened: Sequence[TextEnv]) -> None:
        """Batch after batch of episodes, each following the conversations that ours had."""
        self.agent.reset()
        self.followed = self.played
        replies: dict[tuple[str, int], str] = {}
        with ThreadPoolExecutor(len(opened)) as threads:
            for start in range(0, len(self.followed), len(opened)):
                episodes = self.followed[start : start + len(opened)]
                batch = list(zip(opened, episodes, strict=False))
                self._batch(batch, replies, threads)
        self.replies = [replies[t.task_id, i] for t in self.followed for i in range(len(t.steps))]

    def _batch(
        self,
        batch: Sequence[tuple[TextEnv, Trajectory]],
        replies: dict[tuple[str, int], str],
        threads: ThreadPoolExecutor,
    ) -> None:
        """Plays a batch in lockstep; fills `replies` with the agent's own by (task, turn)."""
        talks = list(threads.map(lambda pair: _begin(pair[0], pair[1], self.agent), batch))
        for number in range(max(len(t.steps) for _, t in batch)):
            going = [i for i, (_, t) in enumerate(batch) if number < len(t.steps)]
            turns = [Turn(batch[i][1].task_id, talks[i], batch[i][0]) for i in going]
            for i, reply in zip(going, self.agent.act(turns), strict=True):
                replies[batch[i][1].task_id, number] = react.cut(reply)
            texts = [batch[i][1].steps[number].text(self.agent.style) for i in going]
            places = [(batch[i][0], talks[i]) for i in going]
            moves = [(env, talk, text) for (env, talk), text in zip(places, texts, strict=True)]
            list(threads.map(lambda move: _follow(*move), moves))
        for _, trajectory in batch:
            self.agent.forget(trajectory.task_id)


class _AgainstPadding(_Sides):
    """Packed passes against padded ones, with all else the same."""

    def rows(self, repeats: int) -> list[Row]:
        self.env.close()
        generator: Any = self.agent._generator
        if not getattr(generator, "packed", False):
            return []  # a GPU, or a model with more than plain attention
        self.ours()
        packed, turns = self.played, sum(len(t.steps) for t in self.played)

        def padded() -> None:
            generator.packed = False
            try:
                self.ours()
            finally:
                generator.packed = True

        ours, theirs = measure_sides([self.ours, padded], repeats)
        padded()
        style, of_padded = self.agent.style, sum(len(t.steps) for t in self.played)
        said = [
            [[step.text(style) for step in t.steps] for t in side] for side in (packed, self.played)
        ]
        same = sum(a == b for one, two in zip(*said, strict=True) for a, b in zip_longest(one, two))
        self.agent.reset()
        name = f"rollout, packed against padded passes, {self.agent.batch_size} at once"
        return [
            Row.more_is_better(name, turns / ours, of_padded / theirs, self.unit),
            Row(f"equal greedy replies, {name}", same, turns, same / turns, "replies"),
        ]


def _begin(env: TextEnv, trajectory: Trajectory, agent: TransformersAgent) -> list[react.Message]:
    options = {"task_id": trajectory.task_id}
    observation, _ = env.reset(seed=trajectory.seed, options=options)
    return react.opening(env.prompt, observation, agent.style)


def _follow(env: TextEnv, messages: list[react.Message], reply: str) -> None:
    observation = env.step(reply)[0]
    messages.append({"role": "assistant", "content": reply})
    messages.append({"role": "user", "content": observation})


def _before(messages: list[react.Message], turn: int) -> list[react.Message]:
    """The conversation that the turn's reply answers; [] if the episode ended before it."""
    replies = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    return messages[: replies[turn]] if turn < len(replies) else []
