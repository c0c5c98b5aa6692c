"""The shop as web pages for people: `stepagent webshop-site [--out FILE]`.

The same environment that agents play, page for page: every visible string of a page becomes an
element, every button, link and option a button of one form that sends the action an agent would
type. With `--out`, each finished episode is appended to a file as a trajectory (agent "human"),
including thoughts if they were written down: a demonstration.

It listens on this machine only by default, keeps at most a thousand visits, and needs only the
standard library.
"""

from __future__ import annotations

import secrets
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs

from stepagent import envs
from stepagent.command_line import Command
from stepagent.envs import react
from stepagent.envs.loopback import OwnPagesHandler
from stepagent.envs.trajectory import Step, Trajectory, Writer
from stepagent.envs.webshop import pages
from stepagent.envs.webshop.env import WebShopEnv
from stepagent.errors import LAST_PORT, check_range

ENV = "stepagent/WebShop-v0"
MAX_VISITS = 1000
MAX_BODY = 65_536
_STYLE = """
:root { color-scheme: light dark; --ink: #1c2733; --ground: #f4f5f7; --sheet: #fff; --line: #b6c2cf;
  --task: #fff7dd; --note: #a33; --link: #175ea8; --chosen: #17324d }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --ground: #12161c; --sheet: #1a2028;
  --line: #445160; --task: #40320f; --note: #f08a90; --link: #7eaaf5; --chosen: #2f5f93 } }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0; overflow-wrap: anywhere;
  color: var(--ink); background: var(--ground) }
header { background: #17324d; color: #fff; padding: .7rem 1.5rem; display: flex; gap: 1rem }
header b { flex: 1 } header a { color: #cfe3f7 }
main { max-width: 60rem; margin: 1rem auto; padding: 1rem 1.5rem; background: var(--sheet);
  border-radius: .5rem; box-shadow: 0 1px 4px #0002 }
.task { background: var(--task); border-left: .3rem solid #e3b341; padding: .5rem 1rem }
.note { color: var(--note) } .hit { padding: .6rem 0; border-top: 1px solid var(--line) }
button { font: inherit; color: inherit; padding: .3rem .8rem; margin: .15rem; cursor: pointer;
  border: 1px solid var(--line); border-radius: .4rem; background: var(--sheet); max-width: 100% }
button.chosen { background: var(--chosen); color: #fff }
button.buy { background: #e3b341; color: #1c2733 }
button.link { border: 0; padding: 0; color: var(--link); text-decoration: underline;
  background: none; text-align: left }
input[type=text], textarea { font: inherit; color: inherit; background: var(--sheet);
  border: 1px solid var(--line); padding: .35rem .6rem; width: 28rem; max-width: 100% }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px }
h1 { font-size: 1.5rem; margin: .8rem 0 .2rem } p { margin: .3rem 0 }
table { border-collapse: collapse } td { padding: .1rem 1rem .1rem 0 }
@media (max-width: 40rem) { main { margin: 0; padding: 1rem } header { padding: .7rem 1rem } }
"""


@dataclass
class Config:
    """Serves WebShop as web pages for people, and records how they shop."""

    host: str = "127.0.0.1"
    """Address to listen on. With 0.0.0.0 other machines can reach it too."""
    port: int = 8321
    """Port to listen on; 0: any free one, which is printed."""
    split: Literal["train", "dev", "test"] = "train"
    """Split whose tasks are given out."""
    seed: int = 0
    """Seed of the first visit's task. Each further visit gets the next seed."""
    out: Path | None = None
    """File to which finished episodes are appended, one JSON line each. null: none."""
    env_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the environment, such as --env-args.data FOLDER."""


class Visitor:
    """One person's episode."""

    def __init__(self, env: WebShopEnv, seed: int, task_id: str | None):
        self.env, self.seed = env, seed
        self.observation, self.info = env.reset(
            seed=seed, options={"task_id": task_id} if task_id else None
        )
        self.steps: list[Step] = []
        self.ended = self.truncated = False
        self.note = ""
        self.started = time.monotonic()
        self.lock = threading.Lock()

    def step(self, action: str, thought: str) -> bool:
        """Carries out an action; True if it ended the episode."""
        if self.ended:
            return False
        reply = react.parse(react.render(thought, action))
        before = self.observation
        self.observation, gain, done, self.truncated, self.info = self.env.step(reply.action)
        self.note = "" if self.info["valid"] else f"{action!r} is not possible here."
        self.steps.append(
            Step(before, reply.thought, reply.action, float(gain), self.info["valid"])
        )
        self.ended = done or self.truncated
        return self.ended

    def trajectory(self) -> Trajectory:
        """The episode so far, as training reads it."""
        return Trajectory(
            env=ENV,
            task_id=self.info["task_id"],
            task_type=self.env.task_type,
            split=self.env.split,
            agent="human",
            seed=self.seed,
            steps=tuple(self.steps),
            final_observation=self.observation,
            reward=self.info["score"],
            success=self.info["success"],
            truncated=self.truncated,
            metrics=self.info["metrics"],
            data_notes=self.info["data_notes"],
            fingerprint=self.env.fingerprint(),
            seconds=round(time.monotonic() - self.started, 3),
        )


class Site(ThreadingHTTPServer):
    """The server: visits by their secret names, and the file in which they are recorded.

    Raises OSError if the address is taken, and what `WebShopEnv` raises for its arguments.
    """

    daemon_threads = True

    def __init__(self, config: Config):
        self.config = config
        self.visits: OrderedDict[str, Visitor] = OrderedDict()
        self.lock = threading.Lock()
        self.next_seed = config.seed
        self._new_env().close()
        self.writer = Writer(config.out) if config.out else None
        super().__init__((config.host, config.port), _Handler)

    @property
    def url(self) -> str:
        """Where the site is."""
        host, port = self.server_address[:2]
        return f"http://{host if isinstance(host, str) else host.decode()}:{port}/"

    def _new_env(self) -> WebShopEnv:
        env = envs.make(ENV, split=self.config.split, **self.config.env_args)
        assert isinstance(env, WebShopEnv)
        return env

    def start(self, task_id: str | None) -> str:
        """A new visit's name. Raises ValueError for an unknown task."""
        with self.lock:
            seed, self.next_seed = self.next_seed, self.next_seed + 1
        visitor, name = Visitor(self._new_env(), seed, task_id), secrets.token_urlsafe(12)
        with self.lock:
            self.visits[name] = visitor
            while len(self.visits) > MAX_VISITS:
                self.visits.popitem(last=False)
        return name

    def act(self, visitor: Visitor, action: str, thought: str) -> None:
        """One action of a visit; a finished episode is recorded."""
        with visitor.lock:
            ended = visitor.step(action, thought)
            if ended and self.writer:
                with self.lock:
                    self.writer.write(visitor.trajectory())

    def server_close(self) -> None:
        super().server_close()
        if self.writer:
            self.writer.close()


class _Handler(OwnPagesHandler):
    server: Site
    timeout = 30

    def do_GET(self) -> None:
        if self.path == "/":
            self._html(_start_page(self.server.config.split))
        elif visitor := self._visitor():
            with visitor.lock:
                self._html(_visit_page(visitor))
        else:
            self._html(_start_page(self.server.config.split, "There is no such visit."), 404)

    def do_POST(self) -> None:
        form = self._form()
        if form is None:
            return
        if self.path == "/start":
            try:
                self._go(f"/visit/{self.server.start(form.get('task_id', '').strip() or None)}")
            except ValueError as error:
                self._html(_start_page(self.server.config.split, str(error)), 400)
        elif visitor := self._visitor():
            action = form.get("action", "")
            if "words" in form and not action:
                action = f"search[{form['words']}]"
            self.server.act(visitor, action, form.get("thought", ""))
            self._go(self.path)
        else:
            self._html(_start_page(self.server.config.split, "There is no such visit."), 404)

    def _visitor(self) -> Visitor | None:
        return self.server.visits.get(self.path.removeprefix("/visit/"))

    def _form(self) -> dict[str, str] | None:
        """The form's fields; None (and answered) if it is too large."""
        size = self.headers.get("Content-Length", "0")
        if not size.isdecimal() or int(size) > MAX_BODY:
            self.send_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return None
        text = self.rfile.read(int(size)).decode("utf-8", "replace")
        try:
            fields = parse_qs(text, keep_blank_values=True, max_num_fields=20)
        except ValueError:
            self.send_error(HTTPStatus.BAD_REQUEST)
            return None
        return {name: values[-1] for name, values in fields.items()}

    def _go(self, path: str) -> None:
        self.send_response(HTTPStatus.SEE_OTHER)
        self.send_header("Location", path)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _html(self, body: str, status: int = 200) -> None:
        data = body.encode("utf-8", "replace")
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: the console shows only the address and errors."""


# Templates ------------------------------------------------------------------------------------


def _whole(main: str, right: str = "") -> str:
    return (
        "<!DOCTYPE html><html lang=en><meta charset=utf-8><title>WebShop</title>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<style>{_STYLE}</style><header><b>WebShop</b>{right}<a href='/'>new visit</a></header>"
        f"<main>{main}</main></html>"
    )


def _start_page(split: str, note: str = "") -> str:
    return _whole(
        f"<h1>Shop for a task of the {split} split</h1><p class=note>{escape(note)}</p>"
        "<p>You are told what to buy. Search, choose, buy; how well it fits is your score.</p>"
        "<form method=post action=/start><p><input type=text name=task_id aria-label='Task id' "
        "placeholder='a task id, or nothing for the next one'></p>"
        "<button class=buy id=start>Start</button></form>"
    )


def _visit_page(visitor: Visitor) -> str:
    visit = visitor.env.visit
    limit = visitor.env.max_steps or visitor.env.step_limit(visitor.info["task_id"])
    right = f"<span id=steps>step {len(visitor.steps)} of {limit}</span>"
    task = f"<p class=task id=instruction>{escape(visitor.info['instruction'])}</p>"
    note = f"<p class=note id=note>{escape(visitor.note)}</p>" if visitor.note else ""
    if visitor.ended:
        return _whole(task + _end(visitor), right)
    body = "".join(_element(kind, text, visit.options) for kind, text in _own(visit.page))
    if visit.page.name == "index":
        body = (
            "<input type=text name=words id=words aria-label='What are you looking for?' "
            "placeholder='what are you looking for?'>"
            "<button id=search>Search</button>"
        )
    thought = (
        "<p><textarea name=thought rows=1 aria-label='Your reason' placeholder='why? (recorded)'>"
        "</textarea></p>"
    )
    return _whole(
        f"{task}{note}<form method=post class={visit.page.name}>{body}{thought}</form>", right
    )


def _own(page: pages.Page) -> Sequence[pages.Node]:
    """The page's strings without the instruction, which is shown above."""
    return page.nodes[2:] if page.nodes[0][1] == "Instruction:" else ()


def _element(kind: str, text: str, chosen: dict[str, str]) -> str:
    shown = escape(text)
    if kind == pages.TEXT:
        return f"<p>{shown}</p>"
    style = {pages.LINK: "link", pages.OPTION: "option"}.get(kind, "")
    if kind == pages.OPTION and text in chosen.values():
        style += " chosen"
    elif text == pages.BUY:
        style = "buy"
    button = (
        f"<button name=action class='{style}' value='{escape(f'click[{text}]')}'>{shown}</button>"
    )
    return f"<div class=hit>{button}</div>" if kind == pages.LINK else button


def _end(visitor: Visitor) -> str:
    bought = visitor.env.visit.bought
    if bought is None:
        return "<h1>Out of steps</h1><p>Nothing was bought: score <b id=score>0.00</b></p>"
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{value:.2f}</td></tr>"
        for name, value in bought.metrics().items()
    )
    return (
        f"<h1>Thank you for shopping with us!</h1><p>Score <b id=score>{bought.reward:.2f}</b></p>"
        f"<table>{rows}</table>"
    )


def serve(config: Config) -> int:
    check_range(0, LAST_PORT, port=config.port)
    check_range(0, seed=config.seed)
    site = Site(config)
    print(f"WebShop is at {site.url} (Ctrl-C ends it)", flush=True)
    try:
        site.serve_forever()
    finally:
        site.server_close()
    return 0


main = Command("webshop-site", Config, serve)


if __name__ == "__main__":
    sys.exit(main())
