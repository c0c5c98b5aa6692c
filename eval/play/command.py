"""The command `stepagent play`: in the terminal (`envs.play`), or with `--web` as a page."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from stepagent.command_line import Command
from stepagent.envs import ENTRY_POINTS, make, play
from stepagent.envs.trajectory import Writer
from stepagent.errors import LAST_PORT, UsageError, check_range
from stepagent.eval.play.episodes import EXPERT, PERSON, Agents
from stepagent.eval.play.recorded import Recorded
from stepagent.eval.play.server import Offer, PlayServer
from stepagent.eval.suite import accepted_options


@dataclass
class Config(play.Config):
    """Play an environment by hand, in the terminal or (--web) on a page, which also shows agents at
    play and running evaluations."""

    env: str = ""
    """Environment id, such as stepagent/ScienceWorld-v0, or module:Namespace/Name-v0. With --web it
    may be left out: the page offers all seven environments, and a named one first."""
    web: bool = False
    """Serve a page for the browser, on this machine only, until Ctrl-C."""
    port: int = 8322
    """Port of the page; 0: any free one, which is printed."""
    agents: list[str] = field(default_factory=list)
    """Agents that the page offers besides the expert and random, such as '[hf:PATH,
    openai:MODEL]'."""
    agent_args: dict[str, Any] = field(default_factory=dict)
    """Further options of the agents (of those that take them), such as --agent-args.max-new-tokens
    64."""
    results: list[str] = field(default_factory=lambda: ["runs"])
    """Folders below which the page looks for results of evaluations, running ones included."""
    time_limit: float | None = 600.0
    """With --web: seconds that an agent may take for a reply, or an environment for a step. null:
    no limit."""


def run(config: Config) -> int:
    if not config.web:
        if not config.env:
            raise UsageError("required: ENV (or --web for a page that offers all)")
        return play.run(config)
    with serve(config) as server:
        Console().print(f"Play at {server.url} (Ctrl-C ends it)", markup=False, soft_wrap=True)
        server.serve_forever()
    return 0


def serve(config: Config) -> PlayServer:
    """The page's server, not running yet. Raises UsageError and ValueError for what does not
    exist, OSError if the port is taken."""
    check_range(0, LAST_PORT, port=config.port)
    check_range(0, seed=config.seed)
    if config.env_args and not config.env:
        raise UsageError("--env-args needs ENV: the environment that they are for")
    if PERSON in config.agents:
        raise UsageError("--agents: on the page the person is you; name other agents")
    if config.task_id and not config.env:
        raise UsageError("--task-id needs ENV: the environment that has it")
    if config.env:
        _check_env(config)
    env_args = {config.env: config.env_args} if config.env else {}
    specs = [spec for spec in dict.fromkeys(["random", *config.agents]) if spec != EXPERT]
    options = accepted_options(dict.fromkeys(specs, config.agent_args))
    offer = Offer(
        env_args={**env_args, **{env: {} for env in sorted(ENTRY_POINTS) if env != config.env}},
        agents=Agents(options, config.time_limit),
        results=Recorded([Path(folder) for folder in config.results]),
        chosen={"split": config.split, "task": config.task_id or "", "seed": config.seed},
        writer=Writer(config.out) if config.out else None,
        time_limit=config.time_limit,
    )
    return PlayServer(("127.0.0.1", config.port), offer)


def _check_env(config: Config) -> None:
    with contextlib.closing(make(config.env, split=config.split, **config.env_args)) as env:
        if config.task_id and config.task_id not in env.tasks:
            raise UsageError(
                f"{config.env} has no task {config.task_id!r} in the split {config.split!r}: there "
                f"are {len(env.tasks)}, such as {', '.join(env.tasks[:3])}"
            )


main = Command("play", Config, run, positional="env")
