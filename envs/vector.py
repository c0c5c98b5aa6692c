"""What `gym.make_vec` makes of our environments if it is given no mode.

On servers (`url`), they are stepped with one request per server; here, one after another.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode, SyncVectorEnv


def make_vector(
    env_id: str,
    num_envs: int,
    *,
    url: str | list[str] | None = None,
    autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    **arguments: Any,
) -> SyncVectorEnv:
    """`num_envs` environments behind Gymnasium's vector interface.

    Raises what `gym.make` raises, and with `url` what `envs.remote.RemoteVectorEnv` raises.
    """
    if url is not None:
        from stepagent.envs.remote import RemoteVectorEnv

        return RemoteVectorEnv(
            env_id, num_envs, url=url, autoreset_mode=autoreset_mode, **arguments
        )
    make_one = partial(gym.make, env_id, **arguments)
    return SyncVectorEnv([make_one] * num_envs, autoreset_mode=autoreset_mode)


def __getattr__(name: str) -> Callable[..., SyncVectorEnv]:
    """An environment's vector entry point, by its id.

    Gymnasium passes an entry point no id, and writes specs to JSON only if it is a text.
    """
    if name in gym.registry:
        return partial(make_vector, name)
    raise AttributeError(name)
