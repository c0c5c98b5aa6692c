"""OpenEnv's protocol over our sessions, so that its clients and trainers can use the environments.

OpenEnv (`openenv` 0.3 to 0.10) plays an episode over one WebSocket: messages `reset`,
`step`, `state` and `close`, answered by `observation`, `state` or `error`; the environment lives
from the first `reset` to the end of the connection. `/ws` is the server's first environment,
`/ID/ws` any of them, so that `GenericEnvClient(base_url="http://host:8001/stepagent/WebShop-v0")`
finds its environment. A client that cannot send headers puts the token into the URL:
`ws://any:TOKEN@host:8001`. `openenv_http` has the rest of the protocol.

- `reset` takes `seed`, `episode_id`, `env_args` (if they differ from the last ones, a new
  environment is made) and a task: `task_id`, or `index`, its position among the tasks. `split` is
  short for the split of `env_args`.
- An action is `{"action": text}`, a bare action or a whole ReAct reply (`message` works, too).
- An observation is `{"text": …}` and the keys of our `info`; `truncated` says why it ended.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, WebSocket, WebSocketDisconnect

from stepagent.envs.core import TextEnv
from stepagent.envs.serve.limits import Refusal, encode
from stepagent.envs.serve.sessions import Session, Sessions

_CODES = {
    "json": "INVALID_JSON",
    "type": "UNKNOWN_TYPE",
    "request": "VALIDATION_ERROR",
    "full": "CAPACITY_REACHED",
    "closing": "CAPACITY_REACHED",
    "environment": "EXECUTION_ERROR",
}
"""Our codes of refusals → OpenEnv's; all others are SESSION_ERROR."""


@dataclass
class _Talk:
    """One connection, and the session that lives as long as it."""

    sessions: Sessions
    env_id: str
    session: Session | None = None
    args: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(
        default_factory=lambda: {"episode_id": None, "step_count": 0, "task_id": None, "score": 0.0}
    )

    async def open(self, args: dict[str, Any]) -> Session:
        """The session; with other arguments, a new one."""
        if self.session is None or self.session.ended or args != self.args:
            self.close("closed: by its client")
            self.session, self.args = await self.sessions.open(self.env_id, args), args
        return self.session

    def close(self, reason: str) -> None:
        if self.session is not None:
            self.sessions.close(self.session, reason)

    async def answer(self, message: Any) -> dict[str, Any]:
        if not isinstance(message, dict):
            raise Refusal(422, "request", "a message is an object with 'type' and 'data'")
        kind, data = message.get("type"), message.get("data") or {}
        if not isinstance(data, dict):
            raise Refusal(422, "request", f"data must be an object, not {data!r:.100}")
        if kind == "state":
            return {"type": "state", "data": self.state}
        if kind == "reset":
            return {"type": "observation", "data": await self.reset(data)}
        if kind == "step":
            return {"type": "observation", "data": await self.step(data)}
        raise Refusal(422, "type", f"no message {kind!r}: there are reset, step, state and close")

    async def reset(self, data: dict[str, Any]) -> dict[str, Any]:
        seed, index, args = data.get("seed"), data.get("index"), data.get("env_args", self.args)
        if not isinstance(seed, int | None) or not isinstance(index, int | None):
            raise Refusal(422, "request", "seed and index are numbers or null")
        if not isinstance(args, dict):
            raise Refusal(422, "request", "env_args is an object")
        if data.get("split") is not None:
            args = {**args, "split": data["split"]}
        session = await self.open(args)

        def work(env: TextEnv) -> dict[str, Any]:
            task_id = data.get("task_id") if index is None else _task(env, index)
            options = {} if task_id is None else {"task_id": task_id}
            observation, info = env.reset(seed=seed, options=options)
            return {"text": observation, "truncated": False, **info}

        observation = await self._play(session, "reset", work)
        self.state = {
            "episode_id": data.get("episode_id"),
            "step_count": 0,
            "task_id": observation["task_id"],
            "score": 0.0,
        }
        return {"observation": observation, "reward": None, "done": False}

    async def step(self, data: dict[str, Any]) -> dict[str, Any]:
        action = data.get("action", data.get("message"))
        if not isinstance(action, str):
            raise Refusal(422, "request", "an action is an object with the text 'action'")
        if self.session is None:
            raise Refusal(422, "request", "no episode is running: reset first")

        def work(env: TextEnv) -> dict[str, Any]:
            text, reward, done, truncated, info = env.step(action)
            observation = {"text": text, "truncated": truncated, **info}
            return {"observation": observation, "reward": reward, "done": done or truncated}

        result = await self._play(self.session, "step", work)
        self.state["step_count"] += 1
        self.state["score"] = result["observation"]["score"]
        return result

    async def _play(self, session: Session, name: str, work: Any) -> dict[str, Any]:
        status, body = await self.sessions.play(session, None, (name, object()), work)
        answer = json.loads(body)
        if status >= 400:
            error = answer["error"]
            raise Refusal(status, error["code"], error["message"], error.get("type", ""))
        del answer["number"]
        return answer


def add(app: FastAPI, sessions: Sessions) -> None:
    """Adds OpenEnv's routes to a server."""
    first = next(iter(sessions.offers))

    async def talk(socket: WebSocket, env_id: str) -> None:
        await socket.accept()
        talking = _Talk(sessions, env_id)
        reason = "closed: by its client"
        try:
            while True:
                try:
                    message = _read(await _received(socket))
                    if isinstance(message, dict) and message.get("type") == "close":
                        break
                    answer = await talking.answer(message)
                except Refusal as refusal:
                    answer = _refused(refusal)
                await socket.send_text(encode(answer).decode())
        except (WebSocketDisconnect, RuntimeError):  # gone, perhaps in the middle of an answer
            reason = "vanished: its connection broke"
        finally:
            talking.close(reason)
        try:
            await socket.close()
        except (WebSocketDisconnect, RuntimeError):  # already closed
            pass

    @app.websocket("/ws")
    async def of_the_first(socket: WebSocket) -> None:
        await talk(socket, first)

    @app.websocket("/{namespace}/{name}/ws")
    async def of_any(socket: WebSocket, namespace: str, name: str) -> None:
        await talk(socket, f"{namespace}/{name}")


def _task(env: TextEnv, index: int) -> str:
    if not 0 <= index < len(env.tasks):
        raise ValueError(f"index is {index}: the split {env.split!r} has {len(env.tasks)} tasks")
    return env.tasks[index]


async def _received(socket: WebSocket) -> str | None:
    """The next message's text; None if it is binary. Raises WebSocketDisconnect at the end."""
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message["code"], message.get("reason"))
    text: str | None = message.get("text")
    return text


def _read(text: str | None) -> Any:
    if text is None:
        raise Refusal(400, "json", "the message is no JSON: it is binary, not text")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "json", f"the message is no JSON: {error}") from None


def _refused(refusal: Refusal) -> dict[str, Any]:
    code = _CODES.get(refusal.error["code"], "SESSION_ERROR")
    return {"type": "error", "data": {"message": str(refusal), "code": code}}
