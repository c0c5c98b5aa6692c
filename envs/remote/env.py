"""An environment that lives on a server, with the contract of any other.

`gym.make("stepagent/WebShop-v0", url="http://host:8001")` gives a `RemoteEnv`: the same texts,
rewards and infos as the environment itself, which `stepagent serve` makes on that host. The
server has the rules; the client has the session and numbers an episode's calls, so that a call sent
again after a broken connection is not applied twice.
"""

from __future__ import annotations

import itertools
import json
import os
import secrets
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

import gymnasium as gym

from stepagent.envs import react
from stepagent.envs.core import Outcome, Plan, TextEnv, clip, own_version
from stepagent.envs.remote.client import (
    PROTOCOL,
    RemoteError,
    ServerFull,
    ServerGone,
    SessionLost,
    StepTimeout,
    WrongVersion,
    raise_refusal,
    servers,
)
from stepagent.envs.tools import Tool

_turn = itertools.count()
_facts: dict[tuple[str, ...], Any] = {}
"""What environments with equal arguments on one run of a server share, such as task lists."""


class RemoteEnv(TextEnv):
    """An environment on a server; made by `gym.make(id, url=…)`.

    Parameters
    ----------
    env_id: the environment's id.
    url: of the server; several, as a list or separated by commas: the next one with a free place.
    token: the server's token; None: the variable STEPAGENT_TOKEN.
    patience: seconds for which a call keeps trying while no server is reachable or has a place.
    render_mode, and arguments: the environment's own.

    Raises what the environment's constructor raises, or a `RemoteError`: `ServerGone`,
    `ServerFull`, `WrongVersion`, `WrongToken`; from `reset` and `step` also `SessionLost` and
    `StepTimeout`. After any of these, and after Ctrl-C, the next `reset` opens a new session.
    """

    prompt_file: ClassVar[Path] = Path()  # the prompt comes from the server

    def __init__(
        self,
        env_id: str,
        *,
        url: str | list[str],
        token: str | None = None,
        patience: float = 5.0,
        render_mode: str | None = None,
        **arguments: Any,
    ):
        shared = {name: arguments[name] for name in ("split", "max_steps") if name in arguments}
        super().__init__(render_mode=render_mode, **shared)
        self.env_id = env_id.rsplit(":", 1)[-1]
        try:
            self._arguments = json.dumps(arguments, sort_keys=True, default=os.fspath)
        except TypeError as error:
            raise ValueError(f"arguments for a server must be plain data: {error}") from None
        self._servers, self.patience = servers(url, token), patience
        self.session = ""
        """The session's id on the server; "" while there is none."""
        self._number, self._pid = 0, os.getpid()
        self._task_type = ""
        self._answers: list[dict[str, Any]] = []
        self._open()

    # The session ------------------------------------------------------------------------------

    def _open(self) -> None:
        """Opens a session on the next server with a free place, within `patience`."""
        request = {
            "env": self.env_id,
            "args": json.loads(self._arguments),
            "key": secrets.token_hex(16),
        }
        deadline, first = time.monotonic() + self.patience, next(_turn)
        while True:
            for offset in range(len(self._servers)):
                self.server = self._servers[(first + offset) % len(self._servers)]
                try:
                    return self._enter(self.server.call("POST", "/v1/sessions", request))
                except (ServerGone, ServerFull) as error:
                    problem = error
            if time.monotonic() > deadline:
                raise problem
            time.sleep(min(0.25, self.patience))

    def _enter(self, opened: dict[str, Any]) -> None:
        there, here = opened.get("version"), own_version()
        if opened.get("protocol") != PROTOCOL or (there != here and "source" not in (there, here)):
            raise WrongVersion(
                f"{self.server.url} runs StepAgent {there} (protocol {opened.get('protocol')}), "
                f"here it is {here} (protocol {PROTOCOL}): install the same version on both sides"
            )
        self.server.adopt_limits(opened["limits"])
        self.session, self._number, self._pid = opened["session"], 0, os.getpid()
        self.split, self.max_steps = opened["split"], opened["max_steps"]
        self._key = (self.server.url, opened["boot"], self.env_id, self._arguments)

    def _call(self, method: str, what: str, body: Any = None) -> Any:
        """One call in the session. Raises `SessionLost` if there is no session (any more)."""
        if not self.session or self._pid != os.getpid():
            raise SessionLost("no session is open: call reset()")
        path = f"/v1/sessions/{self.session}{what}"
        try:
            return self.server.call(method, path, body, patience=self.patience)
        except (SessionLost, StepTimeout, ServerGone):
            self.session = ""
            raise

    def _fact(self, name: str) -> Any:
        """What depends only on the environment's arguments; requested once."""
        if (*self._key, name) not in _facts:
            if not self.session or self._pid != os.getpid():
                self._open()
            try:
                answer = self._call("GET", f"/{name}")
            except SessionLost:  # it expired; the question needs no episode
                self._open()
                answer = self._call("GET", f"/{name}")
            while len(_facts) > 256:
                _facts.pop(next(iter(_facts)))
            _facts[*self._key, name] = answer[name]
        return _facts[*self._key, name]

    def close(self) -> None:
        """Closes the session. Never raises: if the server cannot be reached, the session
        expires."""
        session, self.session, self._ended = self.session, "", True
        if session and self._pid == os.getpid():
            try:
                self.server.call("DELETE", f"/v1/sessions/{session}")
            except RemoteError:
                pass

    # The contract -----------------------------------------------------------------------------

    @property
    def prompt(self) -> react.Prompt:
        prompt = self._fact("prompt")
        example = tuple(map(tuple, prompt["example"]))
        return react.Prompt(prompt["instruction"], example, tools=self.tools)

    @property
    def tools(self) -> tuple[Tool, ...]:
        return tuple(Tool(**{**tool, "also": tuple(tool["also"])}) for tool in self._fact("tools"))

    @property
    def task_type(self) -> str:
        return self._task_type

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self._fact("tasks"))

    def list_tasks(self) -> Sequence[str]:
        return self.tasks

    def fingerprint(self) -> dict[str, str]:
        """That of the environment on the server: where it runs does not affect results."""
        return dict(self._fact("fingerprint"))

    def data_notes(self) -> dict[str, int]:
        return dict(self._fact("data_notes"))

    def data_checksum(self) -> str:
        return self.fingerprint()["data"]

    def step_limit(self, task_id: str) -> int:
        return int(self._call("GET", f"/limit?task_id={quote(task_id)}")["limit"])

    @property
    def expert_anywhere(self) -> bool:
        return bool(self._fact("expert_anywhere"))

    def expert_plan(self, *, from_here: bool = False) -> Plan:
        what = "plan_from_here" if from_here else "plan"
        return [(thought, action) for thought, action in self._call("GET", f"/{what}")[what]]

    def expert_action(self) -> tuple[str, str] | None:
        answer = self._call("GET", "/expert_action")["expert_action"]
        return None if answer is None else (answer[0], answer[1])

    def admissible_actions(self) -> list[str]:
        return list(self._call("GET", "/actions")["actions"])

    def reset_call(self, seed: int | None, options: dict[str, Any] | None = None) -> dict[str, Any]:
        """The call that resets, with its number; opens a session if there is none."""
        if not self.session or self._pid != os.getpid():
            self._open()
            # The server's generator is gone with the old session: ours replaces it.
            seed = int(self.np_random.integers(2**31)) if seed is None else seed
        return {"call": "reset", "number": self._number + 1, "seed": seed, "options": options or {}}

    def step_call(self, action: str) -> dict[str, Any]:
        """The call that steps, with its number. Raises as `step` does before anything is sent."""
        if self._ended:
            raise gym.error.ResetNeeded("the episode has ended: call reset() first")
        if not isinstance(action, str):
            raise TypeError(f"an action must be a str, not {type(action).__name__}")
        if not self.session or self._pid != os.getpid():
            raise SessionLost("no session is open: call reset()")
        return {"call": "step", "number": self._number + 1, "action": clip(action)}

    def receive(self, answer: dict[str, Any]) -> None:
        """Takes the server's answer to a call that was sent in a batch, for the `reset` or `step`
        that the call stands for."""
        self._answers.append(answer)
        if "error" not in answer or answer["error"].get("code") == "environment":
            self._number += 1  # it was carried out
        else:
            self.close()

    def forget(self) -> None:
        """Drops answers that no `reset` or `step` has taken."""
        self._answers.clear()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = self._call("POST", f"/{request['call']}", request)
            self._number = request["number"]
        except BaseException as error:
            if isinstance(error, Exception) and not isinstance(error, RemoteError):
                self._number = request["number"]  # the environment's own: it was carried out
            else:  # whether it was carried out is unknown
                self.close()
            raise
        return answer

    def _received(self) -> dict[str, Any]:
        answer = self._answers.pop()
        if "error" in answer:
            raise_refusal(answer["error"], self.server.url)
        return answer

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        gym.Env.reset(self, seed=seed)
        if self._answers:
            answer = self._received()
        else:
            try:
                answer = self._ask(self.reset_call(seed, options))
            except SessionLost:  # it expired, or the server was restarted: nothing is lost yet
                answer = self._ask(self.reset_call(seed, options))
        info = answer["info"]
        self.task_id, self.instruction = info["task_id"], info["instruction"]
        self._task_type, self._steps, self._ended = answer["task_type"], 0, False
        self._outcome = Outcome(answer["observation"], 0.0)
        return answer["observation"], info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        request = None if self._answers else self.step_call(action)
        self._ended = True  # if anything fails from here on, the episode is over
        answer = self._received() if request is None else self._ask(request)
        self._ended = answer["terminated"] or answer["truncated"]
        self._steps += 1
        self._outcome = Outcome(answer["observation"], answer["info"]["score"])
        return (
            answer["observation"],
            answer["reward"],
            answer["terminated"],
            answer["truncated"],
            answer["info"],
        )

    def begin(self, task_id: str) -> str:
        raise RuntimeError("the rules of the episode are on the server: call reset()")

    def act(self, action: str) -> Outcome:
        raise RuntimeError("the rules of the episode are on the server: call step()")
