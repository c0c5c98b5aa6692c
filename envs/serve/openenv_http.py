"""OpenEnv's HTTP routes: what its tools ask a server before they play (`openenv` has the episodes).

Every route exists twice: at the root, for the server's first environment, and under `/ID`, for any.

- `/health`, `/metadata`, `/schema` and `/openapi.json` describe the environment. Its action schema
  holds the instruction of its prompt: all that some clients ever show a model.
- `/list_environments`, and for each `/ID/splits`, `/ID/num_tasks`, `/ID/tasks`, `/ID/task` and
  `/ID/task_range`: OpenEnv's Task API. A task is `{"id", "index", "split"}`; `reset` takes either
  `task_id` or `split` and `index`.
- `/mcp` answers JSON-RPC and lists no tools: actions are texts, sent over `/ws`.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from starlette.requests import HTTPConnection

from stepagent.envs.core import SPLITS
from stepagent.envs.serve.limits import Refusal
from stepagent.envs.serve.sessions import Sessions

_TEXT = {"type": "string"}
SCHEMA: dict[str, Any] = {
    "action": {
        "title": "TextAction",  # clients take the plain "Action" for one that calls MCP tools
        "type": "object",
        "properties": {"action": {**_TEXT, "description": "a bare action or a ReAct reply"}},
        "required": ["action"],
    },
    "observation": {
        "title": "TextObservation",
        "type": "object",
        "properties": {
            "text": _TEXT,
            "truncated": {"type": "boolean"},
            "task_id": _TEXT,
            "split": _TEXT,
            "instruction": _TEXT,
            "score": {"type": "number"},
            "success": {"type": "boolean"},
            "valid": {"type": "boolean"},
            "metrics": {"type": "object"},
        },
    },
    "state": {
        "title": "TextState",
        "type": "object",
        "properties": {
            "episode_id": {"type": ["string", "null"]},
            "step_count": {"type": "integer"},
            "task_id": {"type": ["string", "null"]},
            "score": {"type": "number"},
        },
    },
}
"""Of every environment, except for the action's description, which each environment has itself."""
_SPLIT_TYPES = {"train": "train", "dev": "validation", "test": "test"}
"""Our splits → the types of splits that OpenEnv knows."""


@dataclass(frozen=True)
class Facts:
    """What an environment says about itself before an episode."""

    instruction: str
    tasks: tuple[str, ...]


class Catalogue:
    """The facts of a server's environments, queried once, in a session opened only for that."""

    def __init__(self, sessions: Sessions):
        self.sessions = sessions
        self._facts: dict[tuple[str, str | None], Facts] = {}
        self._lock = asyncio.Lock()

    def env_id(self, connection: HTTPConnection) -> str:
        """The environment that a path names; at the root the server's first."""
        path = connection.path_params
        return f"{path['namespace']}/{path['name']}" if path else next(iter(self.sessions.offers))

    def splits(self, env_id: str) -> list[str]:
        """The splits that clients may ask for."""
        offer = self.sessions.offer(env_id)
        if "split" in offer.args:
            return [offer.args["split"]]
        return [*SPLITS] if offer.lets_choose("split") else ["train"]

    async def facts(self, env_id: str, split: str | None = None) -> Facts:
        """Raises Refusal: unknown environment or split, no place for a session."""
        async with self._lock:
            if (env_id, split) not in self._facts:
                choose = split is not None and self.sessions.offer(env_id).lets_choose("split")
                args = {"split": split} if choose else {}
                session = await self.sessions.open(env_id, args)
                try:
                    self._facts[env_id, split] = await self.sessions.ask(
                        session, lambda env: Facts(env.prompt.instruction, env.tasks)
                    )
                finally:
                    self.sessions.close(session, "closed: by its client")
            return self._facts[env_id, split]

    async def tasks(self, env_id: str, split: Any) -> list[dict[str, Any]]:
        if split not in self.splits(env_id):
            known = ", ".join(self.splits(env_id))
            raise Refusal(
                422, "request", f"split: {env_id} has no {split!r} here: there are {known}"
            )
        tasks = (await self.facts(env_id, split)).tasks
        return [{"id": id, "index": index, "split": split} for index, id in enumerate(tasks)]


def add(app: FastAPI, sessions: Sessions) -> None:
    """Adds the routes to a server."""
    catalogue = Catalogue(sessions)
    for prefix in ("", "/{namespace}/{name}"):
        for router in (_descriptions(app, catalogue), _tasks(catalogue)):
            app.include_router(router, prefix=prefix, include_in_schema=not prefix)

    @app.get("/list_environments", tags=["openenv"], summary="The ids of all environments")
    async def list_environments() -> list[str]:
        return [*sessions.offers]

    @app.get("/{namespace}/{name}/openapi.json", include_in_schema=False)
    async def documentation() -> dict[str, Any]:
        return app.openapi()


def _descriptions(app: FastAPI, catalogue: Catalogue) -> APIRouter:
    router = APIRouter(tags=["openenv"])

    @router.get("/health", summary="OpenEnv's health check")
    async def health(request: Request) -> dict[str, str]:
        catalogue.sessions.offer(catalogue.env_id(request))
        return {"status": "healthy"}

    @router.get("/schema", summary="What actions, observations and states hold")
    async def schema(request: Request) -> dict[str, Any]:
        instruction = (await catalogue.facts(catalogue.env_id(request))).instruction
        return {**SCHEMA, "action": {**SCHEMA["action"], "description": instruction}}

    @router.get("/metadata", summary="What the environment is")
    async def metadata(request: Request) -> dict[str, Any]:
        name = catalogue.sessions.offer(catalogue.env_id(request)).name
        description = f"{name}, a text environment of StepAgent"
        return {"name": name, "description": description, "version": app.version}

    @router.post("/mcp", summary="MCP's JSON-RPC: there are no tools")
    async def mcp(request: Request) -> dict[str, Any]:
        return _rpc(await request.body())

    return router


def _tasks(catalogue: Catalogue) -> APIRouter:
    router = APIRouter(tags=["openenv"])

    @router.get("/splits", summary="The splits of an environment")
    async def splits(request: Request) -> list[dict[str, str]]:
        names = catalogue.splits(catalogue.env_id(request))
        return [{"name": name, "type": _SPLIT_TYPES[name]} for name in names]

    @router.post("/num_tasks", summary="How many tasks a split has")
    async def num_tasks(request: Request) -> dict[str, int]:
        body = await _body(request)
        return {"num_tasks": len(await catalogue.tasks(catalogue.env_id(request), body["split"]))}

    @router.post("/tasks", summary="All tasks of a split")
    async def tasks(request: Request) -> dict[str, Any]:
        env_id, body = catalogue.env_id(request), await _body(request)
        return {"tasks": await catalogue.tasks(env_id, body["split"]), "env_name": env_id}

    @router.post("/task", summary="The task at an index of a split")
    async def task(request: Request) -> dict[str, Any]:
        body = await _body(request, index=None)
        all_tasks = await catalogue.tasks(catalogue.env_id(request), body["split"])
        index = body["index"]
        if index is None or not 0 <= index < len(all_tasks):
            raise Refusal(400, "request", f"index: 0 to {len(all_tasks) - 1}, not {index}")
        return {"task": all_tasks[index]}

    @router.post("/task_range", summary="The tasks of a split from start to before stop")
    async def task_range(request: Request) -> dict[str, Any]:
        body = await _body(request, start=None, stop=None)
        all_tasks = await catalogue.tasks(catalogue.env_id(request), body["split"])
        return {"tasks": all_tasks[body["start"] : body["stop"]]}

    return router


async def _body(request: Request, **numbers: None) -> dict[str, Any]:
    """A request's split, and the numbers it may hold (null if it does not)."""
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "json", f"the body is no JSON: {error}") from None
    if not isinstance(body, dict) or not isinstance(body.get("split"), str):
        raise Refusal(422, "request", "the body is an object with the text 'split'")
    for name in numbers:
        if not isinstance(body.setdefault(name, None), int | None):
            raise Refusal(422, "request", f"{name} is a whole number")
    return body


def _rpc(body: bytes) -> dict[str, Any]:
    try:
        call = json.loads(body)
    except (ValueError, RecursionError):
        return _rpc_error(None, -32700, "the body is no JSON")
    if not isinstance(call, dict) or not isinstance(call.get("method"), str):
        return _rpc_error(None, -32600, "a call is an object with 'jsonrpc' and the text 'method'")
    if call["method"] == "tools/list":
        return {"jsonrpc": "2.0", "id": call.get("id"), "result": {"tools": []}}
    message = f"no method {call['method']!r}: this environment has no tools, play it at /ws"
    return _rpc_error(call.get("id"), -32601, message)


def _rpc_error(call_id: Any, code: int, message: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": call_id, "error": {"code": code, "message": message}}
