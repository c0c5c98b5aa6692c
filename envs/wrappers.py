"""Gymnasium wrappers for text environments: conversations in place of texts, and a record on disk.

>>> import gymnasium as gym
>>> from stepagent.envs.wrappers import MessagesWrapper
>>> env = MessagesWrapper(gym.make("stepagent/ALFWorld-v0", split="dev"))
>>> messages, info = env.reset(seed=0)
>>> [message["role"] for message in messages]
['system', 'user']
>>> messages, reward, terminated, truncated, info = env.step("Thought: I look.\\nAction: look")
>>> [message["role"] for message in messages]
['system', 'user', 'assistant', 'user']

With both, the record goes inside: `MessagesWrapper(RecordTrajectories(env, path, agent="mine"))`.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np

from stepagent.envs.core import TextEnv, own_version
from stepagent.envs.react import Message, Prompt, PromptStyle, opening
from stepagent.envs.trajectory import Step, Trajectory, Writer

Conversation = tuple[Message, ...]


class Conversations(gym.spaces.Space[Conversation]):
    """Conversations: tuples of messages with a role (system, user or assistant) and a content.

    `gym.vector.AsyncVectorEnv` has no shared memory for them: pass it `shared_memory=False`.
    """

    def __init__(self, seed: int | np.random.Generator | None = None):
        super().__init__(dtype=object, seed=seed)

    @property
    def is_np_flattenable(self) -> bool:
        return False

    def sample(self, mask: Any = None, probability: Any = None) -> Conversation:
        return ({"role": "user", "content": str(self.np_random.integers(10**6))},)

    def contains(self, x: Any) -> bool:
        return isinstance(x, tuple) and all(
            isinstance(message, dict)
            and message.keys() == {"role", "content"}
            and message["role"] in ("system", "user", "assistant")
            and isinstance(message["content"], str)
            for message in x
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Conversations)

    def __repr__(self) -> str:
        return "Conversations()"


class MessagesWrapper(gym.Wrapper[Any, str, Any, str]):
    """Observations are the conversation so far, as our agents and the trainer see it.

    It opens with the environment's prompt (system) and the first observation (user); each step adds
    the reply (assistant) and its outcome (user). An action is a complete reply or a bare action.

    Parameters
    ----------
    style: what the system message holds, and how replies are written.
    prompt: in place of the environment's own.
    """

    def __init__(
        self,
        env: gym.Env[str, str],
        style: PromptStyle = PromptStyle(),
        prompt: Prompt | None = None,
    ):
        super().__init__(env)
        self.observation_space = Conversations()
        self.style = style
        self.prompt = prompt or _text_env(env).prompt
        self._messages: list[Message] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Conversation, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self._messages = opening(self.prompt, observation, self.style)
        return tuple(self._messages), info

    def step(self, action: str) -> tuple[Conversation, SupportsFloat, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        tools = self.prompt.tools
        reply = Step.of("", action, self.style, tools).text(self.style, tools)
        self._messages += [
            {"role": "assistant", "content": reply},
            {"role": "user", "content": observation},
        ]
        return tuple(self._messages), reward, terminated, truncated, info


class RecordTrajectories(gym.Wrapper[str, str, str, str]):
    """Appends each episode, as it ends, to a file of trajectories (`envs.trajectory`).

    The file can be trained on, replayed and viewed. Several environments, also in
    several processes, may write to one file. Episodes that are reset before their end are not
    written. A reset without a seed gets one drawn from the last given seed, so that every recorded
    episode can be replayed.

    Parameters
    ----------
    path: of the JSON-lines file; its existing lines stay.
    agent: the agent's name in the trajectories.
    style: of the replies; those in another style are kept verbatim.
    """

    def __init__(
        self,
        env: gym.Env[str, str],
        path: str | Path,
        *,
        agent: str,
        style: PromptStyle = PromptStyle(),
    ):
        super().__init__(env)
        self.agent, self.style = agent, style
        self._writer = Writer(path)
        self._seeds = np.random.default_rng()
        self._trajectory: Trajectory | None = None
        self._start = 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        if seed is None:
            seed = int(self._seeds.integers(2**31))
        else:
            self._seeds = np.random.default_rng(seed)
        observation, info = self.env.reset(seed=seed, options=options)
        if not isinstance(observation, str):
            raise TypeError("RecordTrajectories records texts: wrap MessagesWrapper around it")
        env = _text_env(self.env)
        self._start = time.monotonic()
        self._trajectory = Trajectory(
            env=self.env.spec.id if self.env.spec else type(env).__name__,
            task_id=info["task_id"],
            split=info["split"],
            agent=self.agent,
            seed=seed,
            steps=(),
            final_observation=observation,
            fingerprint={"stepagent": own_version(), **env.fingerprint(), **self._format()},
        )
        return observation, info

    def step(self, action: str) -> tuple[str, SupportsFloat, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        assert self._trajectory is not None  # the environment refuses a step before its reset
        tools = _text_env(self.env).tools
        step = Step.of(self._trajectory.final_observation, action, self.style, tools)
        step = replace(step, reward=float(reward), valid=bool(info["valid"]))
        self._trajectory = replace(
            self._trajectory,
            steps=(*self._trajectory.steps, step),
            final_observation=observation,
            reward=float(info["score"]),
            success=bool(info["success"]),
            truncated=truncated,
            metrics={name: float(value) for name, value in info["metrics"].items()},
            data_notes=dict(info["data_notes"]),
            seconds=round(time.monotonic() - self._start, 3),
        )
        if terminated or truncated:
            self._writer.write(self._trajectory)
        return observation, reward, terminated, truncated, info

    def _format(self) -> dict[str, str]:
        return {"format": self.style.format} if self.style.format != "react" else {}

    def close(self) -> None:
        self._writer.close()
        super().close()


def _text_env(env: gym.Env[Any, Any]) -> TextEnv:
    if not isinstance(env.unwrapped, TextEnv):
        raise TypeError(f"{type(env.unwrapped).__name__} is not a stepagent.envs.TextEnv")
    return env.unwrapped
