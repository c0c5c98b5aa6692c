"""The environments by id: registered with Gymnasium, and made by `make`."""

from __future__ import annotations

import re
from typing import Any

import gymnasium as gym

from stepagent.envs.core import TextEnv

ENTRY_POINTS = {
    "stepagent/ALFWorld-v0": "stepagent.envs.alfworld.env:ALFWorldEnv",
    "stepagent/Mind2Web-v0": "stepagent.envs.mind2web.env:make",
    "stepagent/ScienceWorld-v0": "stepagent.envs.scienceworld.env:ScienceWorldEnv",
    "stepagent/WebShop-v0": "stepagent.envs.webshop.env:WebShopEnv",
    "stepagent/HotpotQA-v0": "stepagent.envs.wikipedia.env:HotpotQAEnv",
    "stepagent/2WikiMultihopQA-v0": "stepagent.envs.wikipedia.env:TwoWikiMultihopQAEnv",
    "stepagent/MuSiQue-v0": "stepagent.envs.wikipedia.env:MuSiQueEnv",
}
"""Environment id → `module:class`. The one place where an environment is named."""

for _id, _entry_point in ENTRY_POINTS.items():
    if _id not in gym.registry:
        # TextEnv itself refuses steps without a reset and texts of the wrong type, and `envs.check`
        # is far stricter than the wrapper that Gymnasium would put around every environment.
        gym.register(
            _id,
            entry_point=_entry_point,
            vector_entry_point=f"stepagent.envs.vector:{_id}",
            disable_env_checker=True,
        )


_ID = re.compile(r"(?:[^\W\d]\w*(?:\.[^\W\d]\w*)*:)?(?:[\w-]+/)?[\w.-]+")
_REFUSED = re.compile(r"(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'")


def make(env_id: str, **kwargs: Any) -> TextEnv:
    """The environment itself (unwrapped); `env_id` may be `module:Namespace/Name-v0`.

    Raises ValueError for an unknown id, and TypeError for an argument that the environment does not
    take, listing those that exist.
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
        from stepagent.envs import arguments

        takes = ", ".join(arguments.names(spec.entry_point, refused[1]))
        raise TypeError(f"{env_id} has no argument {refused[2]!r}: it takes {takes}") from None
    if not isinstance(env, TextEnv):
        raise ValueError(f"{env_id!r} is a {type(env).__name__}, not an envs.TextEnv")
    return env


def _no_environment(env_id: str, why: object) -> ValueError:
    known = ", ".join(sorted(ENTRY_POINTS))
    return ValueError(
        f"no environment {env_id!r} ({why}). Ours: {known}. One of your own is named "
        "'module:Namespace/Name-v0', where importing module registers it."
    )
