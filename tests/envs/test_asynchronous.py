"""Many environments on one event loop, each in a thread of its own."""

import asyncio
import threading

import pytest

from stepagent import envs
from stepagent.envs.asynchronous import AsyncEnv

GUESS = "tests.envs.guess:tests/Guess-v0"


def test_episodes_are_those_of_the_environment_and_keep_their_thread():
    async def episode(seed):
        async with AsyncEnv(GUESS, split="dev") as env:
            text, info = await env.reset(seed=seed)
            ((_, action),) = await env.ask(lambda env: env.expert_plan())
            threads = {await env.ask(lambda _: threading.get_ident()) for _ in range(3)}
            assert len(threads) == 1
            assert threads != {threading.get_ident()}
            return text, info["task_id"], await env.step(action)

    async def episodes():
        return await asyncio.gather(*(episode(seed) for seed in range(8)))

    env = envs.make(GUESS, split="dev")
    for seed, (text, task_id, step) in enumerate(asyncio.run(episodes())):
        observation, info = env.reset(seed=seed)
        assert (text, task_id) == (observation, info["task_id"])
        assert step == env.step(env.expert_plan()[0][1])


def test_what_an_environment_raises_reaches_the_caller_and_its_thread_ends():
    async def broken(env_id, **arguments):
        async with AsyncEnv(env_id, **arguments) as env:
            await env.step("1")

    before = threading.active_count()
    with pytest.raises(ValueError, match="no environment"):
        asyncio.run(broken("stepagent/Chess-v0"))
    with pytest.raises(Exception, match="reset"):
        asyncio.run(broken(GUESS))
    for thread in threading.enumerate():
        if thread.name.startswith("environment"):
            thread.join(10)
    assert threading.active_count() <= before
