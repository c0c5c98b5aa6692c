"""An environment for asyncio: its calls run in a thread of its own, one after another.

Environments are synchronous, and some (a browser, a connection to Java) need all their calls from
one thread. Frameworks that play many episodes on one event loop use this instead of `envs.make`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from stepagent.envs.core import TextEnv
from stepagent.envs.registration import make

T = TypeVar("T")


class AsyncEnv:
    """`async with AsyncEnv(env_id, **arguments) as env`: made, stepped and closed in its thread.

    Raises what `make` and the environment raise.
    """

    def __init__(self, env_id: str, **arguments: Any):
        self._make = lambda: make(env_id, **arguments)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="environment")
        self._env: TextEnv | None = None

    async def __aenter__(self) -> AsyncEnv:
        try:
            self._env = await self._call(self._make)
        except BaseException:
            self._thread.shutdown(wait=False)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        # Not awaited: a task that is cancelled in the middle of a step does not wait for its end.
        self._thread.submit(self.unwrapped.close)
        self._thread.shutdown(wait=False)

    @property
    def unwrapped(self) -> TextEnv:
        """The environment itself, for what needs no thread (its prompt, its tasks)."""
        assert self._env is not None, "enter it first: async with AsyncEnv(…) as env"
        return self._env

    async def reset(self, **arguments: Any) -> tuple[str, dict[str, Any]]:
        return await self.ask(lambda env: env.reset(**arguments))

    async def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return await self.ask(lambda env: env.step(action))

    async def ask(self, function: Callable[[TextEnv], T]) -> T:
        """What `function` returns for the environment, called in its thread."""
        env = self.unwrapped
        return await self._call(lambda: function(env))

    async def _call(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)
