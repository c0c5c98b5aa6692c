"""Many environments on one or several servers, stepped with one request per server.

A `SyncVectorEnv` whose environments are remote: before each round, all their calls go out in
one batch per server, to all servers at once; then Gymnasium's own loop runs, and every environment
already has its answer. So observations, infos and autoreset are exactly Gymnasium's.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, cast

from gymnasium.vector import AutoresetMode, SyncVectorEnv

from stepagent.envs.remote.client import LOST, Server, ServerGone, servers
from stepagent.envs.remote.env import RemoteEnv

BATCH = 1024
"""Calls that one request may contain."""


class RemoteVectorEnv(SyncVectorEnv):
    """`num_envs` environments, distributed over the servers of `url`.

    Parameters
    ----------
    env_id: the environment's id.
    num_envs: how many; they are opened concurrently.
    url: of a server; several (a list, or separated by commas) share the environments.
    autoreset_mode: as in Gymnasium's vector environments.
    arguments: `token`, `patience` and the environment's own, as for `RemoteEnv`.

    Raises what `RemoteEnv` raises; `reset` then starts again on the servers that answer.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        *,
        url: str | list[str],
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        **arguments: Any,
    ):
        with ThreadPoolExecutor(16) as opening:
            make = partial(RemoteEnv, env_id, url=url, **arguments)
            futures = [opening.submit(make) for _ in range(num_envs)]
        try:
            opened = [future.result() for future in futures]
        except BaseException:
            for future in futures:
                if future.exception() is None:
                    future.result().close()
            raise
        super().__init__([partial(_itself, e) for e in opened], autoreset_mode=autoreset_mode)
        self._remote = opened
        at_once = len(servers(url, arguments.get("token")))
        self._senders = ThreadPoolExecutor(at_once, thread_name_prefix="servers")

    def reset(
        self,
        *,
        seed: int | list[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        for env in self._remote:
            env.forget()
        seeds = (
            [seed + i for i in range(self.num_envs)]
            if isinstance(seed, int)
            else (seed or [None] * self.num_envs)
        )
        if len(seeds) == self.num_envs and not (options and "reset_mask" in options):
            pairs = zip(self._remote, seeds, strict=True)
            self._send([(env, env.reset_call(one, options)) for env, one in pairs], again=True)
        return super().reset(seed=seed, options=options)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        actions = list(cast(Iterable[str], actions))
        if len(actions) != self.num_envs:
            raise ValueError(f"{len(actions)} actions for {self.num_envs} environments")
        by_itself = self.autoreset_mode == AutoresetMode.NEXT_STEP
        calls = [
            env.reset_call(None) if by_itself and ended else env.step_call(action)
            for env, ended, action in zip(self._remote, self._autoreset_envs, actions, strict=True)
        ]
        try:
            self._send(list(zip(self._remote, calls, strict=True)))
            return super().step(actions)
        finally:
            for env in self._remote:
                env.forget()

    def _send(self, calls: list[tuple[RemoteEnv, dict[str, Any]]], again: bool = False) -> None:
        """Sends calls, and passes each answer to its environment.

        An environment that gets none loses its session. With `again` it asks for itself later, in a
        new one; otherwise the error is raised once all servers have answered or failed.
        """
        by_server: dict[Server, list[tuple[RemoteEnv, dict[str, Any]]]] = {}
        for env, call in calls:
            by_server.setdefault(env.server, []).append((env, call))
        work = [
            (s, part) for s, server_calls in by_server.items() for part in _parts(s, server_calls)
        ]
        sent = [(part, self._senders.submit(_batch, server, part)) for server, part in work]
        unheard = {env for env, _ in calls}
        failed: Exception | None = None
        try:
            for part, sending in sent:
                try:
                    answers = sending.result()
                except Exception as error:
                    failed = failed or error
                    if isinstance(error, ServerGone):  # no server to close them on
                        for env, _ in part:
                            env.session = ""
                    continue
                for (env, _), answer in zip(part, answers, strict=True):
                    unheard.discard(env)
                    if again and answer.get("error", {}).get("code") in LOST:
                        env.session = ""
                    else:
                        env.receive(answer)
        finally:  # after Ctrl-C, too: whether these calls were carried out is unknown
            for _, sending in sent:
                sending.cancel()
            for env in unheard:
                env.close()
        if failed and not again:
            raise failed

    def close_extras(self, **kwargs: Any) -> None:
        super().close_extras(**kwargs)
        self._senders.shutdown()


def _itself(env: RemoteEnv) -> RemoteEnv:
    return env


def _parts(
    server: Server, calls: list[tuple[RemoteEnv, dict[str, Any]]]
) -> Iterable[list[tuple[RemoteEnv, dict[str, Any]]]]:
    """Batches that a server accepts, by number of calls and by bytes."""
    part: list[tuple[RemoteEnv, dict[str, Any]]] = []
    size = 0
    for env, call in calls:
        bytes_ = 200 + 4 * len(call.get("action", ""))
        if part and (len(part) == BATCH or size + bytes_ > server.max_body):
            yield part
            part, size = [], 0
        part.append((env, call))
        size += bytes_
    if part:
        yield part


def _batch(server: Server, calls: list[tuple[RemoteEnv, dict[str, Any]]]) -> list[dict[str, Any]]:
    body = {"calls": [{**call, "session": env.session} for env, call in calls]}
    patience = max(env.patience for env, _ in calls)
    response = server.call("POST", "/v1/batch", body, patience=patience)
    answers: list[dict[str, Any]] = response["answers"]
    return answers
