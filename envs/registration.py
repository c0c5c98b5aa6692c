"""The environments by id: registered with Gymnasium by `register`, and made by `make`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator

from stepagent.envs import arguments
from stepagent.envs.core import TextEnv

ENTRY_POINTS = {
    "stepagent/ALFWorld-v0": "stepagent.envs.alfworld.env:ALFWorldEnv",
    "stepagent/Mind2Web-v0": "stepagent.envs.mind2web.make:make",
    "stepagent/ScienceWorld-v0": "stepagent.envs.scienceworld.env:ScienceWorldEnv",
    "stepagent/WebShop-v0": "stepagent.envs.webshop.env:WebShopEnv",
    "stepagent/HotpotQA-v0": "stepagent.envs.wikipedia.env:HotpotQAEnv",
    "stepagent/2WikiMultihopQA-v0": "stepagent.envs.wikipedia.env:TwoWikiMultihopQAEnv",
    "stepagent/MuSiQue-v0": "stepagent.envs.wikipedia.env:MuSiQueEnv",
}
"""Environment id → `module:class`. The only place where an environment is named."""

EntryPoint = str | Callable[..., gym.Env]
"""`module:attribute`, or what it names: a class of environments, or a function that makes one."""


class Creator(NamedTuple):
    """What Gymnasium calls to make an environment: here, or with `url` on a server."""

    env_id: str
    entry_point: EntryPoint

    def __call__(self, *, url: str | list[str] | None = None, **arguments: Any) -> gym.Env:
        if url is not None:
            from stepagent.envs.remote import RemoteEnv

            return RemoteEnv(self.env_id, url=url, **arguments)
        entry = self.entry_point
        create = load_env_creator(entry) if isinstance(entry, str) else entry
        return create(**arguments)  # type: ignore[return-value]


def register(env_id: str, entry_point: EntryPoint, **options: Any) -> None:
    """Registers an environment with Gymnasium, so that it can also be made on a server.

    `gym.make(env_id, url="http://host:8001", …)` then gives the environment that a server there
    (`stepagent serve`) has under this id, made with the other arguments; `RemoteEnv` has the
    further arguments that go with `url`. An environment registered with `gym.register` itself
    works everywhere, except with `url`.

    Parameters
    ----------
    env_id: such as "mine/Vault-v0". Commands are given "vault:mine/Vault-v0", where importing the
        module `vault` registers it.
    entry_point: a subclass of `TextEnv`, or a function that makes one, or its `module:name`.
    options: further ones of `gym.register`. Gymnasium's checking wrapper is off by default:
        `TextEnv` rejects steps before a reset and texts of the wrong type, and `envs.check` is
        stricter.
    """
    # A spec can be written as JSON only if its entry points are texts: `__getattr__` resolves ours.
    text = f"{__name__}:{env_id}" if env_id in ENTRY_POINTS else None
    options = {"disable_env_checker": True, **options}
    gym.register(env_id, entry_point=text or Creator(env_id, entry_point), **options)


def __getattr__(name: str) -> Creator:
    """The creator of an environment of ours, by its id."""
    if name in ENTRY_POINTS:
        return Creator(name, ENTRY_POINTS[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


for _id, _entry_point in ENTRY_POINTS.items():
    if _id not in gym.registry:
        register(_id, _entry_point, vector_entry_point=f"stepagent.envs.vector:{_id}")


_ID = re.compile(r"(?:[^\W\d]\w*(?:\.[^\W\d]\w*)*:)?(?:[\w-]+/)?[\w.-]+")
_REFUSED = re.compile(
    r"(?<!\w)(\w++)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'"
)


def make(env_id: str, **kwargs: Any) -> TextEnv:
    """The environment itself (unwrapped); `env_id` may be `module:Namespace/Name-v0`.

    With `url`, the one on that server (`register`). Raises ValueError for an unknown id, and
    TypeError for an argument that the environment does not take, listing those that exist.
    """
    if not _ID.fullmatch(env_id):
        raise _no_environment(env_id, "an id has another form")
    try:
        env = gym.make(env_id, **kwargs).unwrapped
    except (gym.error.UnregisteredEnv, ModuleNotFoundError) as error:
        raise _no_environment(env_id, error) from None
    except TypeError as error:
        spec = gym.registry.get(env_id.rpartition(":")[2])
        refused = _REFUSED.search(str(error))
        if spec is None or spec.entry_point is None or not refused or refused[2] not in kwargs:
            raise
        names = ", ".join(_arguments(spec.entry_point, refused[1]))
        hint = " (url: register it by stepagent.register)" if refused[2] == "url" else ""
        raise TypeError(
            f"{env_id} has no argument {refused[2]!r}: it takes {names}{hint}"
        ) from None
    if not isinstance(env, TextEnv):
        raise ValueError(f"{env_id!r} is a {type(env).__name__}, not an envs.TextEnv")
    return env


def _arguments(entry_point: EntryPoint, refused_by: str) -> list[str]:
    """The names of the arguments that an environment takes, `url` among them if it is ours."""
    entry: Any = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    if isinstance(entry, Creator):
        return [*_arguments(entry.entry_point, refused_by), "url"]
    return arguments.names(entry, refused_by, TextEnv)


def _no_environment(env_id: str, why: object) -> ValueError:
    ours = sorted(ENTRY_POINTS)
    names = {name.rpartition("/")[2].rpartition("-")[0].lower(): name for name in ours}
    near = difflib.get_close_matches(env_id.rpartition("/")[2].lower(), names, n=1)
    hint = f" Did you mean {names[near[0]]}?" if near and names[near[0]] != env_id else ""
    known = ", ".join(ours)
    return ValueError(
        f"no environment {env_id!r} ({why}).{hint} Ours: {known}. A custom one is named "
        "'module:Namespace/Name-v0', where importing module registers it."
    )
