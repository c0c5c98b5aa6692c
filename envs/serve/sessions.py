"""The sessions of a server: opening, calls, time limits, closing, and freeing their resources.

A session is one environment of one client. Its id is a secret that only the client that opened it
knows. Its calls are numbered: each must be one more than the last, and a repeated number gets the
same answer again, so that a client can repeat a call that was lost with a broken connection.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from stepagent import envs
from stepagent.envs.core import TextEnv
from stepagent.envs.serve.limits import Limits, Offer, Refusal, encode, failure
from stepagent.envs.serve.metrics import Metrics
from stepagent.envs.serve.worker import Worker

log = logging.getLogger("stepagent.serve")
_REMEMBERED = 4096
"""Closed sessions whose reason is remembered, to tell clients."""
_TOO_MANY_STUCK = 16
"""Stuck environment threads from which on the server reports itself as not ready."""
_FREE_WITHIN = 10.0
"""Seconds that closing environments may delay the server's shutdown."""


@dataclass
class Session:
    """One environment of one client."""

    id: str
    offer: Offer
    arguments: dict[str, Any]
    worker: Worker
    env: TextEnv
    used: float = field(default_factory=time.monotonic)
    number: int = 0
    """Number of the last call that was carried out."""
    last_answer: tuple[Any, int, bytes] = ("", 0, b"")
    """That call, and the status and body of its answer."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    ended: str = ""
    """Why it has ended; "" while it is open."""

    @property
    def label(self) -> str:
        """The part of its id that may be logged."""
        return self.id[:8]


class Sessions:
    """All sessions of one server. Belongs to one event loop."""

    def __init__(self, offers: list[Offer], limits: Limits, metrics: Metrics):
        self.offers = {offer.name: offer for offer in offers}
        self.limits, self.metrics = limits, metrics
        self.boot = secrets.token_hex(8)
        """Identifies this run of the server."""
        self.closing = False
        self._open: dict[str, Session] = {}
        self._starting: dict[str, asyncio.Task[Session]] = {}
        self._keys: OrderedDict[str, str] = OrderedDict()
        self._ends: OrderedDict[str, str] = OrderedDict()
        self._freeing: set[asyncio.Future[Any]] = set()
        self.stuck = 0
        """Threads that hang in an environment whose session was abandoned."""
        metrics.watch(lambda name: sum(s.offer.name == name for s in self._open.values()), self)

    @property
    def count(self) -> int:
        return len(self._open) + len(self._starting)

    @property
    def unready(self) -> str:
        """Why no session should be opened here; "" if one may."""
        if self.closing:
            return "shutting down"
        return "too many environments hang" if self.stuck >= _TOO_MANY_STUCK else ""

    def offer(self, name: str) -> Offer:
        """What is offered under a name; otherwise a Refusal that says what there is."""
        offer = self.offers.get(name.rsplit(":", 1)[-1])
        if offer is None:
            known = ", ".join(self.offers)
            raise Refusal(404, "unknown_env", f"no environment {name!r} here: there are {known}")
        return offer

    # Opening and closing ----------------------------------------------------------------------

    async def open(self, name: str, args: dict[str, Any], key: str = "") -> Session:
        """A new session; for a key that was used before, the session it opened.

        Raises Refusal: unknown environment, no room, shutting down, or the environment fails.
        """
        offer = self.offer(name)
        arguments = offer.arguments(args)
        if key and key in self._keys and self._keys[key] in self._open:
            return _same(self._open[self._keys[key]], offer, arguments)
        if key and key in self._starting:
            return _same(await asyncio.shield(self._starting[key]), offer, arguments)
        if self.closing:
            raise Refusal(503, "closing", "the server is shutting down", retry_after=5)
        if self.count >= self.limits.max_sessions:
            self.metrics.refused.inc()
            raise Refusal(
                503,
                "full",
                f"all {self.limits.max_sessions} sessions are taken (--max-sessions): close some, "
                "wait, or add a server",
                retry_after=1,
            )
        key = key or secrets.token_hex(16)
        task = asyncio.ensure_future(self._start(offer, arguments, key))
        self._starting[key] = task  # counts at once, so that a flood finds the limit
        task.add_done_callback(lambda _: self._starting.pop(key, None))
        return await asyncio.shield(task)  # a client that disconnects does not stop it half-way

    async def _start(self, offer: Offer, arguments: dict[str, Any], key: str) -> Session:
        session_id = secrets.token_hex(4) + secrets.token_urlsafe(16)
        worker = Worker(f"session-{session_id[:8]}")
        start = time.perf_counter()
        try:
            making = worker.call(lambda: envs.make(offer.env_id, **arguments))
            env = await self._within(making, self.limits.start_seconds, offer, "make")
        except BaseException as error:
            worker.end()
            if isinstance(error, TimeoutError):
                self._wait_for_stuck(making, worker, None)
                raise Refusal(
                    504, "timeout", _slow("Making it", self.limits.start_seconds)
                ) from None
            refusal = failure(error, offer)
            if isinstance(error, OSError):  # a file that the client named
                refusal.status = 422
            raise refusal from None
        session = Session(session_id, offer, arguments, worker, env)
        self._open[session_id] = session
        self._keys[key] = session_id
        while len(self._keys) > _REMEMBERED:
            self._keys.popitem(last=False)
        self.metrics.opened.labels(offer.name).inc()
        seconds = round(time.perf_counter() - start, 4)
        chosen = {
            name: "(not logged)" if "password" in name or "token" in name else value
            for name, value in arguments.items()
            if name not in offer.args
        }
        log.info("session opened", extra=_of(session, args=chosen, seconds=seconds))
        return session

    def find(self, session_id: str) -> Session:
        """The open session with this id. Raises a Refusal that says what became of it."""
        session = self._open.get(session_id)
        if session is not None:
            session.used = time.monotonic()
            return session
        if session_id in self._ends:
            raise Refusal(410, "expired", f"this session is over: {self._ends[session_id]}")
        raise Refusal(
            404,
            "unknown_session",
            "no such session: the server was restarted since it was opened, or it ended long ago",
        )

    def close(self, session: Session, reason: str) -> None:
        """Removes the session; its environment is then closed and its thread ended."""
        if session.ended:
            return
        self._forget(session, reason)
        freeing = session.worker.call(session.env.close)
        session.worker.end()
        self._freeing.add(freeing)
        freeing.add_done_callback(lambda done: self._freed(done, session))

    def _forget(self, session: Session, reason: str) -> None:
        session.ended = reason
        del self._open[session.id]
        self._ends[session.id] = reason
        while len(self._ends) > _REMEMBERED:
            self._ends.popitem(last=False)
        self.metrics.closed.labels(session.offer.name, reason.split(":")[0]).inc()
        log.info("session closed", extra=_of(session, reason=reason, calls=session.number))

    def _freed(self, freeing: asyncio.Future[Any], session: Session) -> None:
        self._freeing.discard(freeing)
        if not freeing.cancelled() and (error := freeing.exception()) is not None:
            log.warning(
                "environment failed to close",
                extra=_of(session, error=session.offer.without_fixed(repr(error))),
            )

    async def reap(self) -> None:
        """Closes sessions that have been idle for too long; runs for ever."""
        while True:
            await asyncio.sleep(min(5.0, self.limits.idle_seconds / 4))
            oldest = time.monotonic() - self.limits.idle_seconds
            for session in list(self._open.values()):
                if session.used < oldest and not session.lock.locked():
                    self.close(session, f"idle: for {self.limits.idle_seconds:g} s")

    async def shut(self) -> None:
        """Closes all sessions and waits briefly for their environments."""
        self.closing = True
        for session in list(self._open.values()):
            self.close(session, "shutdown: the server was stopped")
        if self._freeing:
            await asyncio.wait(set(self._freeing), timeout=_FREE_WITHIN)

    # Calls ------------------------------------------------------------------------------------

    async def ask(self, session: Session, function: Callable[[TextEnv], Any]) -> Any:
        """The result of `function` on the session's environment; it does not change the episode."""
        async with session.lock:
            self._check(session)
            return await self._carry_out(session, function, self.limits.start_seconds, "ask")

    async def play(
        self, session: Session, number: int | None, call: Any, function: Callable[[TextEnv], Any]
    ) -> tuple[int, bytes]:
        """Status and body of the answer to a numbered call (None: the next number).

        `call` identifies the call by its name and arguments. A repeated number gets the stored
        answer without touching the environment; a number out of order is refused.
        """
        async with session.lock:  # a repeat waits here until the first call is done
            self._check(session)
            if number is not None and number == session.number and session.number:
                if session.last_answer[0] != call:
                    raise Refusal(409, "order", f"call {number} of this session was another one")
                self.metrics.repeated.inc()
                return session.last_answer[1:]
            if number is not None and number != session.number + 1:
                raise Refusal(
                    409, "order", f"call {number} is out of order: {session.number + 1} is next"
                )
            seconds = self.limits.start_seconds if call[0] == "reset" else self.limits.step_seconds
            session.number += 1
            try:
                answer = await self._carry_out(session, function, seconds, call[0])
                session.last_answer = (call, 200, encode({**answer, "number": session.number}))
            except Refusal as refusal:
                session.last_answer = (call, refusal.status, encode({"error": refusal.error}))
            return session.last_answer[1:]

    def _check(self, session: Session) -> None:
        if session.ended:
            raise Refusal(410, "expired", f"this session is over: {session.ended}")

    async def _carry_out(
        self, session: Session, function: Callable[[TextEnv], Any], seconds: float, name: str
    ) -> Any:
        env = session.env
        working = session.worker.call(lambda: function(env))
        try:
            return await self._within(working, seconds, session.offer, name)
        except TimeoutError:
            self._forget(session, f"timeout: a {name} took longer than {seconds:g} s")
            self._wait_for_stuck(working, session.worker, env)
            raise Refusal(504, "timeout", _slow(f"This {name}", seconds)) from None
        except Exception as error:
            refusal = failure(error, session.offer)
            if refusal.status == 500:
                log.warning(
                    "environment failed",
                    extra=_of(
                        session, call=name, error=session.offer.without_fixed(repr(error))[:500]
                    ),
                )
            raise refusal from None
        finally:
            session.used = time.monotonic()

    async def _within(
        self, future: asyncio.Future[Any], seconds: float, offer: Offer, name: str
    ) -> Any:
        """The future's result; raises TimeoutError if it takes too long. Counts and times it."""
        start = time.perf_counter()
        try:
            return await asyncio.wait_for(asyncio.shield(future), seconds)
        finally:
            self.metrics.calls.labels(offer.name, name).observe(time.perf_counter() - start)

    def _wait_for_stuck(
        self, working: asyncio.Future[Any], worker: Worker, env: TextEnv | None
    ) -> None:
        """Abandons a hanging call: frees what it can now, and the rest when the call returns."""
        self.stuck += 1
        self.metrics.stuck.set(self.stuck)

        def free(done: asyncio.Future[Any]) -> None:
            self.stuck -= 1
            self.metrics.stuck.set(self.stuck)
            late_env = None if done.cancelled() or done.exception() else done.result()
            left = env if env is not None else late_env
            if isinstance(left, TextEnv):
                worker.call(lambda: _close_quietly(left))
            worker.end()

        working.add_done_callback(free)
        if (
            env is not None
        ):  # from another thread: closing a socket, say, wakes the call that waits for it
            threading.Thread(
                target=_close_quietly, args=(env,), daemon=True, name="freeing"
            ).start()


def _same(session: Session, offer: Offer, arguments: dict[str, Any]) -> Session:
    """The session, if it was opened for the same environment; otherwise a Refusal."""
    if (session.offer, session.arguments) != (offer, arguments):
        raise Refusal(409, "key", "this key has opened a session of another environment")
    return session


def _close_quietly(env: TextEnv) -> None:
    try:
        env.close()
    except Exception:  # it may not support this; it is closed again when its call returns
        pass


def _slow(what: str, seconds: float) -> str:
    return f"{what} took longer than {seconds:g} s; the session is closed"


def _of(session: Session, **more: Any) -> dict[str, Any]:
    return {"fields": {"session": session.label, "env": session.offer.name, **more}}
