"""StepAgent's environments. Importing this registers them with Gymnasium.

>>> import gymnasium as gym
>>> import envs
>>> "stepagent/ScienceWorld-v0" in gym.registry
True
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from envs.core import SPLITS, FreeText, Outcome, TextEnv
from envs.react import Message, Prompt, PromptStyle, Reply, parse
from envs.trajectory import Step, Trajectory

ENTRY_POINTS = {
    "stepagent/ALFWorld-v0": "envs.alfworld.env:ALFWorldEnv",
    "stepagent/Mind2Web-v0": "envs.mind2web.env:make",
    "stepagent/ScienceWorld-v0": "envs.scienceworld.env:ScienceWorldEnv",
    "stepagent/WebShop-v0": "envs.webshop.env:WebShopEnv",
    "stepagent/HotpotQA-v0": "envs.wikipedia.env:HotpotQAEnv",
    "stepagent/2WikiMultihopQA-v0": "envs.wikipedia.env:TwoWikiMultihopQAEnv",
    "stepagent/MuSiQue-v0": "envs.wikipedia.env:MuSiQueEnv",
}
"""Environment id → `module:class`. The one place where an environment is named."""

for _id, _entry_point in ENTRY_POINTS.items():
    if _id not in gym.registry:
        # TextEnv itself refuses steps without a reset and texts of the wrong type, and `envs.check`
        # is far stricter than the wrapper that Gymnasium would put around every environment.
        gym.register(_id, entry_point=_entry_point, disable_env_checker=True)


def make(env_id: str, **kwargs: Any) -> TextEnv:
    """The environment itself (unwrapped); `env_id` may be `module:Namespace/Name-v0`.

    Raises ValueError for an unknown id, listing those that exist.
    """
    try:
        env = gym.make(env_id, **kwargs).unwrapped
    except (gym.error.UnregisteredEnv, ModuleNotFoundError) as error:
        known = ", ".join(sorted(ENTRY_POINTS))
        raise ValueError(
            f"no environment {env_id!r} ({error}). Ours: {known}. One of your own is named "
            "'module:Namespace/Name-v0', where importing module registers it."
        ) from None
    if not isinstance(env, TextEnv):
        raise ValueError(f"{env_id!r} is a {type(env).__name__}, not an envs.TextEnv")
    return env


__all__ = [
    "ENTRY_POINTS",
    "SPLITS",
    "FreeText",
    "Message",
    "Outcome",
    "Prompt",
    "PromptStyle",
    "Reply",
    "Step",
    "TextEnv",
    "Trajectory",
    "make",
    "parse",
]
