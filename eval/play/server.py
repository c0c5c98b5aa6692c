"""The server of the page: episodes to play, agents to ask and results to watch, as JSON.

It offers what its command line names and nothing else: a request can choose among the environments,
agents and folders of results, but cannot name a module, a model or a file. Only pages of its own
are answered (`envs.loopback`), and only requests with a JSON body change anything.

Paths: `/` the page; `/api/suite`, `/api/tasks`, `/api/episodes` (POST), `/api/episodes/NAME` with
`/actions`, `/expert`, `/trajectory`, and by POST `/steps` and `/save`; `/api/results`,
`/api/results/follow`, `/api/results/episode`.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from stepagent import envs
from stepagent.envs.core import SPLITS, default_task_type
from stepagent.envs.loopback import OwnPagesHandler
from stepagent.envs.trajectory import Writer
from stepagent.errors import UserError
from stepagent.eval.env_workers import describe
from stepagent.eval.play import page
from stepagent.eval.play.episodes import EXPERT, Agents, Choice, NotNow, PlayedEpisode
from stepagent.eval.play.recorded import NoSuchResults, Recorded
from stepagent.eval.view.data import outcome, step_text, to_json

MAX_EPISODES = 16
"""Episodes kept open; the one that was not used for longest makes room."""
MAX_BODY, MAX_TASKS = 262_144, 200
"""Bytes of a request; tasks in an answer."""
MAX_ACTIONS = 2000
"""Admissible actions in an answer."""


@dataclass(frozen=True)
class Offer:
    """What the page can choose from."""

    env_args: dict[str, dict[str, Any]]
    """Environment id → arguments"""
    agents: Agents
    results: Recorded
    chosen: dict[str, Any]
    """What the page begins with: env, split, task_id, seed"""
    writer: Writer | None
    """Where episodes are saved"""
    time_limit: float | None
    """Seconds for a step of an environment"""


class BadRequest(ValueError):
    """A request that says something else than it may."""


class NotThere(LookupError):
    """A path, or an episode, that does not exist (any more)."""


class PlayServer(ThreadingHTTPServer):
    """The open episodes by their secret names. Raises OSError if the address is taken."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], offer: Offer):
        self.offer, self.page, self.policy = offer, *page.render()
        self.episodes: OrderedDict[str, PlayedEpisode] = OrderedDict()
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._tasks: dict[tuple[str, str], tuple[str, ...]] = {}
        super().__init__(address, _Handler)

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{host if isinstance(host, str) else host.decode()}:{port}/"

    # What is offered ------------------------------------------------------------------------------

    def suite(self) -> dict[str, Any]:
        return {
            "envs": list(self.offer.env_args),
            "splits": SPLITS,
            "agents": [EXPERT, *self.offer.agents.options],
            "chosen": self.offer.chosen,
            "saves": str(self.offer.writer.path) if self.offer.writer else "",
        }

    def tasks(self, env_id: str, split: str, search: str) -> dict[str, Any]:
        """The first tasks whose ids hold the words, and how many there are."""
        make = self._maker(env_id, split)
        if (env_id, split) not in self._tasks:
            env = make()
            try:
                self._tasks[env_id, split] = tuple(dict.fromkeys(env.tasks))
            finally:
                env.close()
        tasks, words = self._tasks[env_id, split], search.lower().split()
        fitting = [task for task in tasks if all(word in task.lower() for word in words)]
        types = {default_task_type(task) for task in tasks} - {""}
        return {
            "tasks": fitting[:MAX_TASKS],
            "fitting": len(fitting),
            "total": len(tasks),
            "types": sorted(types),
        }

    def _maker(self, env_id: str, split: str) -> Callable[[], envs.TextEnv]:
        if env_id not in self.offer.env_args:
            raise BadRequest(
                f"no environment {env_id!r} here: there are {', '.join(self.offer.env_args)}"
            )
        if split not in SPLITS:
            raise BadRequest(f"no split {split!r}: there are {', '.join(SPLITS)}")
        arguments = {**self.offer.env_args[env_id], "split": split}
        return lambda: envs.make(env_id, **arguments)

    # Episodes -------------------------------------------------------------------------------------

    def start(self, choice: Choice) -> dict[str, Any]:
        make = self._maker(choice.env, choice.split)
        episode = PlayedEpisode(choice, make, self.offer.time_limit)
        name = secrets.token_urlsafe(12)
        with self._lock:
            self.episodes[name] = episode
            room = max(0, len(self.episodes) - MAX_EPISODES)
            left = [self.episodes.popitem(last=False)[1] for _ in range(room)]
        for old in left:
            threading.Thread(target=self._end, args=[old], daemon=True).start()
        return {"name": name, **self.state(episode, 0)}

    def episode(self, name: str) -> PlayedEpisode:
        with self._lock:
            if name not in self.episodes:
                raise NotThere("this episode is no longer open: start it again")
            self.episodes.move_to_end(name)
            return self.episodes[name]

    def state(self, episode: PlayedEpisode, since: int) -> dict[str, Any]:
        """What the page shows; of the steps only those from the number `since` on."""
        t = episode.trajectory()
        return {
            "env": t.env,
            "task": t.task_id,
            "split": t.split,
            "seed": t.seed,
            "type": t.task_type,
            "instruction": episode.info["instruction"],
            "about": episode.env.prompt.instruction,
            "since": since,
            "steps": [step_text(step) for step in t.steps[since:]],
            "players": episode.players[since:],
            "final": t.final_observation,
            "score": t.reward,
            "metrics": t.metrics,
            "notes": t.data_notes,
            "over": episode.over,
            "outcome": outcome(t) if episode.over else "",
            "error": episode.error,
            "left": 0 if episode.over else episode.env.steps_left,
            "saved": episode.saved_steps == len(t.steps),
        }

    def step(self, episode: PlayedEpisode, player: str, action: str, thought: str) -> None:
        """A step by the expert, by an agent, or (player "") by a person."""
        if not player:
            episode.act_as_person(action, thought)
        elif player == EXPERT:
            episode.act_as_expert()
        elif player in self.offer.agents.options:
            self.offer.agents.play(player, episode)
        else:
            raise BadRequest(f"no agent {player!r} here: name it by --agents")

    def save(self, episode: PlayedEpisode) -> None:
        """Appends the episode to the file, once for each length."""
        if self.offer.writer is None:
            raise NotNow("nothing is saved here: start with --out FILE, or use Download")
        if episode.saved_steps != len(episode.steps):
            with self._writing:
                self.offer.writer.write(episode.trajectory())
            episode.saved_steps = len(episode.steps)

    def _end(self, episode: PlayedEpisode) -> None:
        with episode.lock:
            episode.close()
        self.offer.agents.ended(episode)

    def server_close(self) -> None:
        super().server_close()
        for episode in self.episodes.values():
            if episode.lock.acquire(timeout=1):  # else it is at a step: the process ends anyway
                episode.close()
        self.offer.agents.close()
        if self.offer.writer:
            self.offer.writer.close()


class _Handler(OwnPagesHandler):
    server: PlayServer
    timeout = 30

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, work: Callable[[list[str], dict[str, Any]], Any]) -> None:
        """Sends what `work` returns for (the path's parts, the query or the body)."""
        try:
            url = urlsplit(self.path)
            fields = self._body() if self.command == "POST" else _query(url.query)
            value, status = work(url.path.strip("/").split("/"), fields), 200
        except (BadRequest, ValueError, TypeError) as error:
            value, status = {"error": str(error)}, 400
        except (NotThere, NoSuchResults) as error:
            value, status = {"error": str(error.args[0])}, 404
        except NotNow as error:
            value, status = {"error": str(error)}, 409
        except UserError as error:
            value, status = {"error": str(error)}, 500
        except Exception as error:  # an environment, an agent or a disk may fail in any way
            value, status = {"error": describe(error)}, 500
        if isinstance(value, str):
            self._send(status, "text/html; charset=utf-8", value.encode("utf-8"))
        elif isinstance(value, bytes):
            self._send(status, "application/jsonl", value)
        else:
            self._send(status, "application/json", to_json(value))

    def _get(self, path: list[str], query: dict[str, Any]) -> Any:
        server = self.server
        match path:
            case [""]:
                return server.page
            case ["api", "suite"]:
                return server.suite()
            case ["api", "tasks"]:
                return server.tasks(
                    _text(query, "env"), _text(query, "split"), _text(query, "search")
                )
            case ["api", "episodes", name, *rest]:
                episode = server.episode(name)
                with episode.lock:
                    return self._of_episode(episode, rest, query)
            case ["api", "results"]:
                return {"files": server.offer.results.files()}
            case ["api", "results", "follow"]:
                after = _number(query, "after") if "after" in query else None
                return server.offer.results.follow(_text(query, "name"), after)
            case ["api", "results", "episode"]:
                name = _text(query, "name")
                if "task" in query:
                    task, seed = _text(query, "task"), _number(query, "seed")
                    return server.offer.results.open_episode(name, task, seed)
                return server.offer.results.episode(name, _number(query, "at"))
        raise NotThere("there is nothing at this path")

    def _of_episode(self, episode: PlayedEpisode, rest: list[str], query: dict[str, Any]) -> Any:
        match rest:
            case []:
                return self.server.state(episode, _number(query, "since"))
            case ["actions"]:
                actions = episode.admissible_actions()
                return {"actions": actions[:MAX_ACTIONS], "total": len(actions)}
            case ["expert"]:
                pair = episode.suggestion()
                return {"thought": pair[0], "action": pair[1]} if pair else {"action": None}
            case ["trajectory"]:
                return episode.trajectory().to_json().encode("utf-8", "replace") + b"\n"
        raise NotThere("there is nothing at this path")

    def _post(self, path: list[str], body: dict[str, Any]) -> Any:
        server = self.server
        match path:
            case ["api", "episodes"]:
                task = _text(body, "task") or None
                env, split, seed = _text(body, "env"), _text(body, "split"), _number(body, "seed")
                return server.start(Choice(env, split, seed, task))
            case ["api", "episodes", name, ("steps" | "save") as what]:
                episode = server.episode(name)
                with episode.lock:
                    if what == "save":
                        server.save(episode)
                    else:
                        fields = (_text(body, key) for key in ("player", "action", "thought"))
                        server.step(episode, *fields)
                    return server.state(episode, _number(body, "since"))
        raise NotThere("there is nothing at this path")

    def _body(self) -> dict[str, Any]:
        """The request's JSON object. A form of another site's page cannot send this type."""
        size = self.headers.get("Content-Length", "")
        if not size.isdecimal() or int(size) > MAX_BODY:
            raise BadRequest(f"a request has a length of at most {MAX_BODY} bytes")
        if self.headers.get_content_type() != "application/json":
            raise BadRequest("the content type must be application/json")
        try:
            value = json.loads(self.rfile.read(int(size)))
        except (ValueError, RecursionError):
            raise BadRequest("the body is not JSON") from None
        if not isinstance(value, dict):
            raise BadRequest("the body must be a JSON object")
        return value

    def _send(self, status: int, kind: str, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Security-Policy", self.server.policy)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        if kind == "application/jsonl":
            self.send_header("Content-Disposition", 'attachment; filename="trajectory.jsonl"')
        with contextlib.suppress(ConnectionError):  # the page was closed meanwhile
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: the console shows only the address and errors."""


def _query(text: str) -> dict[str, Any]:
    return {name: values[-1] for name, values in parse_qs(text, max_num_fields=20).items()}


def _text(fields: dict[str, Any], name: str) -> str:
    """A field's text; "" where it is missing."""
    value = fields.get(name, "")
    if not isinstance(value, str):
        raise BadRequest(f"{name} must be a text")
    return value


def _number(fields: dict[str, Any], name: str) -> int:
    """A field's number from 0 on; 0 where it is missing."""
    value = fields.get(name, 0)
    if isinstance(value, str) and value.isdecimal() and len(value) < 19:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise BadRequest(f"{name} must be a number from 0 on")
    return value
