"""`stepagent serve --env ID [--env ID …]`: environments for other processes and machines.

It listens on this machine only; elsewhere it requires a token or --allow-unauthenticated. Every
environment is made once before the first client can connect, so that missing data stop the command
(exit code 2) and not somebody's training; SIGTERM and Ctrl-C shut it down cleanly.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from stepagent import envs
from stepagent.command_line import Command
from stepagent.envs.core import TextEnv
from stepagent.envs.loopback import is_loopback
from stepagent.envs.remote.client import TOKEN_VARIABLE, checked_token
from stepagent.errors import LAST_PORT, UsageError, check_range

if TYPE_CHECKING:
    from stepagent.envs.serve.limits import Offer

HARMLESS = ["split", "max_steps"]
"""Arguments that unknown clients may set: none that names a file or code."""


@dataclass
class Config:
    """Serves environments over HTTP; clients use gym.make(ID, url="http://host:port").

    The token is read from the variable STEPAGENT_TOKEN, where other users of the machine cannot see
    it. The routes are documented at /docs, everything else in docs/pages/servers.md.
    """

    env: list[str]
    """Environment to serve: an id, or module:Namespace/Name-v0. Repeat the option for several
    environments."""
    host: str = "127.0.0.1"
    """Address to listen on. One that other machines can reach needs a token."""
    port: int = 8000
    """Port to listen on; 0: a free one, which the first line of the log names."""
    published: str = ""
    """Address on which the port is published, if that is not host, as with containers. It then
    decides whether a token is needed."""
    allow_unauthenticated: bool = False
    """Let other machines in without a token: whoever reaches the port may use the server."""
    env_args: dict[str, Any] = field(default_factory=dict)
    """Arguments that the server fixes and clients cannot change, by environment id:
    '{"stepagent/WebShop-v0": {"data": …}}'."""
    client_args: list[str] | None = None
    """Arguments of environments that clients may set. null: all; but without a token, if other
    machines can reach the server, only split and max_steps."""
    max_sessions: int = 256
    """Maximum number of open sessions. Further clients get an error that says so."""
    max_connections: int = 1024
    """Maximum number of connections. For a further one an idle one is closed."""
    idle_seconds: float = 1800.0
    """Seconds after which an unused session is closed."""
    step_seconds: float = 120.0
    """Seconds that a step may take. After that its session is closed."""
    start_seconds: float = 300.0
    """Seconds that creating an environment, a reset or an expert's plan may take."""
    max_body_mb: float = 4.0
    """Largest request, in MiB."""
    grace_seconds: float = 10.0
    """Seconds that running requests get to finish when the server is stopped."""
    log_level: Literal["debug", "info", "warning"] = "info"
    """debug logs every request."""


def problem(config: Config, token: str | None) -> str:
    """Why the server would be open to strangers; "" if it would not."""
    option = "published" if config.published else "host"
    reached = getattr(config, option)
    if not is_loopback(reached) and not token and not config.allow_unauthenticated:
        return (
            f"--{option} {reached} can be reached from other machines: set {TOKEN_VARIABLE} to a "
            "secret that clients have too, or give --allow-unauthenticated if whoever reaches this "
            "port may use it"
        )
    return ""


def check_numbers(config: Config) -> None:
    """Raises UsageError for a number that is out of range."""
    check_range(0, LAST_PORT, port=config.port)
    check_range(1, max_sessions=config.max_sessions, max_connections=config.max_connections)
    check_range(0.1, idle_seconds=config.idle_seconds)
    check_range(0.001, step_seconds=config.step_seconds, start_seconds=config.start_seconds)
    check_range(0.01, max_body_mb=config.max_body_mb)
    check_range(0, grace_seconds=config.grace_seconds)


def _warm(offered: list[Offer]) -> Iterator[TextEnv]:
    """Makes each environment once: errors show here, and shared data stay loaded."""
    for offer in offered:
        env = envs.make(offer.env_id, **offer.args)
        logging.getLogger("stepagent.serve").info(
            "environment ready", extra={"fields": {"env": offer.name, "tasks": len(env.tasks)}}
        )
        yield env


def serve(config: Config) -> int:
    check_numbers(config)
    try:
        token = checked_token(os.environ.get(TOKEN_VARIABLE)) or None
    except ValueError as error:
        raise UsageError(str(error)) from None
    if wrong := problem(config, token):
        raise UsageError(wrong)
    import uvicorn

    from stepagent.envs.serve.app import create_app
    from stepagent.envs.serve.guard import JsonLines
    from stepagent.envs.serve.limits import Limits, offers
    from stepagent.envs.serve.protocol import LimitedProtocol, Server, available_connections

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("stepagent", "uvicorn"):
        logging.getLogger(name).handlers[:] = [handler]
        logging.getLogger(name).propagate = False
        logging.getLogger(name).setLevel(config.log_level.upper() if name != "uvicorn" else "INFO")
    logging.getLogger("uvicorn.error").setLevel(
        max(logging.INFO, logging.getLogger("uvicorn").level)
    )
    allowed = config.client_args
    if allowed is None and not token and not is_loopback(config.host):
        allowed = HARMLESS
    probes: list[TextEnv] = []
    try:
        offered = offers(config.env, config.env_args, allowed)
        for env in _warm(offered):
            probes.append(env)
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        for env in probes:
            env.close()
        raise UsageError(str(error)) from error
    limits = Limits(
        max_sessions=config.max_sessions,
        idle_seconds=config.idle_seconds,
        step_seconds=config.step_seconds,
        start_seconds=config.start_seconds,
        max_body=int(config.max_body_mb * (1 << 20)),
    )
    gc.collect()
    gc.freeze()  # else every full collection holds all requests while it walks through the data
    sys.setswitchinterval(0.001)  # so that the event loop gets its turn while environments compute
    server = Server(
        uvicorn.Config(
            create_app(offered, limits, token),
            host=config.host,
            port=config.port,
            http=partial(  # type: ignore[arg-type]
                LimitedProtocol, max_connections=available_connections(config.max_connections)
            ),
            log_config=None,
            access_log=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=max(1, round(config.grace_seconds)),
            ws_max_size=limits.max_body,
            server_header=False,
        )
    )
    # uvicorn shuts down cleanly at SIGTERM and Ctrl-C, then raises the signal again.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    try:
        server.run()
    finally:
        for env in probes:
            env.close()
    return 0 if server.started else 1


main = Command("serve", Config, serve)


if __name__ == "__main__":
    sys.exit(main())
