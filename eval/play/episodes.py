"""Episodes that a person, the expert and agents play, one step at a time and in any mixture."""

from __future__ import annotations

import itertools
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from stepagent.agents import make_agent
from stepagent.agents.core import Agent, Turn
from stepagent.envs import react
from stepagent.envs.core import TextEnv, own_version
from stepagent.envs.trajectory import Step, Trajectory, kept
from stepagent.errors import SetupError, UserError
from stepagent.eval.env_workers import Caller, describe
from stepagent.eval.rollout import fingerprint

PERSON, EXPERT = "human", "expert"
"""Who takes a step, besides agents: their names in trajectories."""
UNFINISHED = "left before the end"
"""The `error` of an episode that is saved before it is over."""
_KEYS = itertools.count()


class NotNow(UserError, RuntimeError):
    """What was asked for is not possible in the present state, or something failed."""


@dataclass(frozen=True)
class Choice:
    """An episode to be started."""

    env: str
    split: str
    seed: int
    task_id: str | None = None
    """None: a task drawn with the seed."""
    env_args: dict[str, Any] = field(default_factory=dict)


class PlayedEpisode:
    """An open environment and the steps so far. `lock` is held by whoever changes it.

    The environment runs in a thread of its own; one that takes longer than `time_limit` seconds
    for a step ends the episode. Raises what the environment's construction and `reset` raise.
    """

    def __init__(self, choice: Choice, make: Callable[[], TextEnv], time_limit: float | None):
        self.choice, self.lock = choice, threading.Lock()
        self.steps: list[Step] = []
        self.players: list[str] = []
        """Who took each step"""
        self.over = self.truncated = False
        self.error = ""
        self.saved_steps = -1
        """Number of steps when it was last saved; -1: never"""
        self.started = time.monotonic()
        self.key = next(_KEYS)
        self._call = Caller(time_limit)
        self._agent_parts: dict[str, dict[str, str]] = {}
        options = {"task_id": choice.task_id} if choice.task_id is not None else {}
        try:
            self.env: TextEnv = self._call(make)
            reset = partial(self.env.reset, seed=choice.seed, options=options)
            self.observation, self.info = self._call(reset)
        except BaseException:
            self.close()
            raise

    # What can be asked ----------------------------------------------------------------------------

    def admissible_actions(self) -> list[str]:
        """Raises NotNow where the environment does not list them."""
        if self.over:
            return []
        return sorted(set(self._ask(self.env.admissible_actions)))

    def suggestion(self) -> tuple[str, str] | None:
        """The expert's (thought, action) here; None where nothing more can be gained.

        Raises NotNow where the expert plans from the reset only and the episode has left its plan.
        """
        if self.over:
            return None
        if self.env.expert_anywhere:
            return self._ask(self.env.expert_action)
        plan = self._ask(self.env.expert_plan)
        actions = [step.action for step in self.steps]
        if actions != [action for _, action in plan[: len(actions)]]:
            raise NotNow("the expert here only knows its plan from the start, which is left")
        return plan[len(actions)] if len(actions) < len(plan) else None

    def _ask(self, question: Callable[[], Any]) -> Any:
        """What the environment answers. Raises NotNow; one that hangs ends the episode."""
        try:
            return self._call(question)
        except TimeoutError as error:
            raise self._failure(error) from error
        except Exception as error:
            raise NotNow(str(error)) from error

    def turn(self, style: react.PromptStyle) -> Turn:
        """The state as an agent of that style sees it, as in an evaluation."""
        prompt, trajectory = self.env.prompt, self.trajectory()
        if self.steps:
            messages = trajectory.messages(prompt, style)
            messages.append({"role": "user", "content": self.observation})
        else:
            messages = react.opening(prompt, self.observation, style)
        seed = zlib.crc32(f"{self.choice.seed}/{self.info['task_id']}".encode())
        return Turn(self.key, messages, self.env, seed)

    # What changes it ------------------------------------------------------------------------------

    def act_as_person(self, action: str, thought: str = "") -> None:
        """A bare action, or a complete ReAct reply in place of both."""
        reply = react.parse(action)
        self._step(react.render(thought or reply.thought, reply.action), PERSON)

    def act_as_expert(self) -> None:
        """Raises NotNow where the expert has nothing to suggest."""
        pair = self.suggestion()
        if pair is None:
            raise NotNow("the expert sees nothing more to gain here")
        self._step(react.render(*pair), EXPERT)

    def act_as(self, agent: Agent, reply: str) -> None:
        """An agent's reply to `turn`."""
        self._agent_parts.setdefault(agent.name, fingerprint(self.env, agent))
        self._step(reply, agent.name, agent.style)

    def _step(
        self, reply: str, player: str, style: react.PromptStyle = react.PromptStyle()
    ) -> None:
        if self.over:
            raise NotNow("the episode is over")
        step = Step.of(self.observation, reply, style, self.env.tools)
        try:
            outcome = self._call(self.env.step, kept(reply))
        except Exception as error:
            raise self._failure(error) from error
        self.observation, reward, done, self.truncated, self.info = outcome
        self.steps.append(replace(step, reward=float(reward), valid=bool(self.info["valid"])))
        self.players.append(player)
        self.over = done or self.truncated

    def _failure(self, error: Exception) -> NotNow:
        """The episode is over, since its environment failed."""
        self.over = True
        self.error = f"environment: {describe(error)} (step {len(self.steps) + 1})"
        return NotNow(self.error)

    def close(self) -> None:
        """Closes the environment, as soon as it has ended what it is at."""
        try:
            if hasattr(self, "env"):
                self._call(self.env.close)
        except Exception:  # it is given up anyway
            pass
        self._call.close()

    # What it is -----------------------------------------------------------------------------------

    def trajectory(self) -> Trajectory:
        """The episode so far. Its agent is whoever took the steps, in the order of their first."""
        players = list(dict.fromkeys(self.players)) or [PERSON]
        alone = self._agent_parts.get(players[0]) if len(players) == 1 else None
        return Trajectory(
            env=self.choice.env,
            task_id=self.info["task_id"],
            task_type=self.env.task_type,
            split=self.choice.split,
            agent="+".join(players),
            seed=self.choice.seed,
            steps=tuple(self.steps),
            final_observation=self.observation,
            reward=float(self.info["score"]),
            success=bool(self.info["success"]),
            truncated=self.truncated,
            metrics={name: float(value) for name, value in self.info["metrics"].items()},
            data_notes=dict(self.info["data_notes"]),
            fingerprint=alone or {"stepagent": own_version(), **self.env.fingerprint()},
            seconds=round(time.monotonic() - self.started, 3),
            error=self.error or ("" if self.over else UNFINISHED),
        )


class Agents:
    """The agents that may be asked, by their specs; one is loaded at a time: models need memory.

    Parameters
    ----------
    options: spec → the agent's options.
    time_limit: seconds for a reply; an agent that takes longer is given up.
    """

    def __init__(self, options: dict[str, dict[str, Any]], time_limit: float | None):
        self.options = options
        self._lock, self._call = threading.Lock(), Caller(time_limit)
        self._spec = ""
        self._agent: Agent | None = None
        self._ended: SimpleQueue[int] = SimpleQueue()

    def play(self, spec: str, episode: PlayedEpisode) -> None:
        """The agent takes a step. Raises NotNow if it fails, SetupError for what it lacks."""
        with self._lock:
            agent = self._loaded(spec)
            self._forget(agent)
            try:
                (reply,) = self._call(agent.act, [episode.turn(agent.style)])
            except SetupError:
                raise
            except Exception as error:
                if isinstance(error, TimeoutError):
                    self._agent = None  # it still works at its reply
                raise NotNow(f"agent: {describe(error)}") from error
        episode.act_as(agent, reply)

    def _loaded(self, spec: str) -> Agent:
        if self._agent is None or self._spec != spec:
            self._close()
            self._agent = self._call(partial(make_agent, spec, **self.options[spec]))
            self._spec = spec
        return self._agent

    def ended(self, episode: PlayedEpisode) -> None:
        """The episode is gone: what an agent stores for it can be dropped."""
        self._ended.put(episode.key)

    def _forget(self, agent: Agent) -> None:
        while True:
            try:
                agent.forget(self._ended.get_nowait())
            except Empty:
                return

    def _close(self) -> None:
        agent, self._agent = self._agent, None
        if agent is not None:
            agent.close()

    def close(self) -> None:
        """Frees the agent, unless it is at a reply: then the end of the process does."""
        if self._lock.acquire(timeout=1):
            self._close()
            self._call.close()
