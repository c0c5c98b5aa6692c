"""Environments on a server: the client's side of `envs.serve`.

`env` is the environment as Gymnasium sees it, `vector` many of them with one request per server,
`client` the connection and its errors.
"""

from stepagent.envs.remote.client import (
    PROTOCOL,
    TOKEN_VARIABLE,
    EnvironmentFailed,
    RemoteError,
    Server,
    ServerFull,
    ServerGone,
    SessionLost,
    StepTimeout,
    WrongToken,
    WrongVersion,
)
from stepagent.envs.remote.env import RemoteEnv
from stepagent.envs.remote.vector import RemoteVectorEnv

__all__ = [
    "PROTOCOL",
    "TOKEN_VARIABLE",
    "EnvironmentFailed",
    "RemoteEnv",
    "RemoteError",
    "RemoteVectorEnv",
    "Server",
    "ServerFull",
    "ServerGone",
    "SessionLost",
    "StepTimeout",
    "WrongToken",
    "WrongVersion",
]
