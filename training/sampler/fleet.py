"""Several engines that share the load. One that dies or hangs is taken out, reported and tried
again; what it was asked goes to the others. Where all are out, requests wait for one to come back.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import requests

from stepagent.errors import SetupError
from stepagent.training.sampler.engine import (
    Drawn,
    Engine,
    EngineGone,
    Prompt,
    StaleVersion,
    session,
)
from stepagent.training.sampler.version import SamplerError, Version
from stepagent.training.trees.sampling import Sampling

RETRY_SECONDS = 5.0
"""Between two attempts to reach an engine that is out."""
ATTEMPTS = 5
"""How often a prompt is asked again although its engine answers to everything else."""


class NoEngine(SetupError, RuntimeError):
    """No engine has answered for as long as the run waits."""

    exit_code = 1


class Cancelled(Exception):
    """The fleet was closed while a prompt waited."""


@dataclass(eq=False)
class _Member:
    """An engine of the fleet."""

    engine: Engine
    busy: int = 0
    """Prompts under way."""
    is_alive: bool = False
    is_tried: bool = False
    """Whether a thread is trying to bring it back."""
    retry_at: float = 0.0
    why: str = ""
    """Why it is out."""


class Fleet:
    """The engines of a run.

    Parameters
    ----------
    engines: at least one.
    context: tokens that each must take, prompt and reply together.
    patience: seconds to wait where all are out.
    report: called with a line about each engine that goes out or comes back.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        context: int,
        patience: float,
        report: Callable[[str], None],
    ):
        self._members = [_Member(engine) for engine in engines]
        self._context, self._patience, self._report = context, patience, report
        self._places: dict[Hashable, _Member] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._out_since: float | None = None
        self._version: Version

    @property
    def context(self) -> int:
        """Tokens that all engines take, prompt and reply together."""
        return min(member.engine.context for member in self._members)

    def serve(self, version: Version) -> None:
        """Has every engine that answers serve a version; waits for one where none does.

        Raises SamplerError for an engine that answers and cannot serve it, NoEngine after
        `patience` seconds without any.
        """
        self._version = version
        with ThreadPoolExecutor(len(self._members)) as pool:
            list(pool.map(self._prepare, self._members))
        if not any(member.is_alive for member in self._members):
            self._release(self._take(None))
        with ThreadPoolExecutor(len(self._members)) as pool:
            list(pool.map(self._forget_others, self._members))

    def draw(self, own: requests.Session, prompt: Prompt, sampling: Sampling) -> Drawn:
        """A reply to the prompt, from whichever engine answers.

        Raises SamplerError, NoEngine, and Cancelled once the fleet is closed.
        """
        attempts = 0
        while True:
            member = self._take(prompt.key)
            try:
                return member.engine.generate(own, self._version, prompt, sampling)
            except EngineGone as error:
                attempts += 1
                if attempts >= ATTEMPTS and self._is_well(member):
                    raise SamplerError(
                        f"{error}, {attempts} times, though it answers otherwise"
                    ) from error
                self._bury(member, error)
            finally:
                self._release(member)

    def forget(self, key: Hashable) -> None:
        """There will be no further prompt of this key."""
        with self._changed:
            self._places.pop(key, None)

    def close(self) -> None:
        """Ends all waiting."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    # Who gets a prompt --------------------------------------------------------------------------

    def _take(self, key: Hashable) -> _Member:
        """The engine of the key, else that with the least to do; counts the prompt as under way.

        Waits where all are out. Those that are due are tried again meanwhile.
        """
        with self._changed:
            while not self._closed:
                if due := self._due():
                    due.is_tried = True
                    # On its own: one that hangs takes long to fail again.
                    threading.Thread(target=self._revive, args=(due,), daemon=True).start()
                if member := self._choose(key):
                    member.busy += 1
                    return member
                self._check_patience()
                self._changed.wait(timeout=min(1.0, RETRY_SECONDS))
        raise Cancelled

    def _choose(self, key: Hashable) -> _Member | None:
        alive = [member for member in self._members if member.is_alive]
        member = self._places.get(key)
        if alive and (member is None or not member.is_alive):
            keys = Counter(map(id, self._places.values()))
            member = min(alive, key=lambda m: (m.busy, keys[id(m)]))
            if key is not None:
                self._places[key] = member
        return member if alive else None

    def _release(self, member: _Member) -> None:
        with self._changed:
            member.busy -= 1

    # Who is out ---------------------------------------------------------------------------------

    def _prepare(self, member: _Member) -> None:
        try:
            self._ready(member)
        except EngineGone as error:
            self._bury(member, error)

    def _ready(self, member: _Member, news: str = "") -> None:
        with session() as own:
            member.engine.prepare(own, self._version, self._context)
        if news:
            self._report(news)
        with self._changed:
            member.is_alive, self._out_since = True, None
            self._changed.notify_all()

    def _forget_others(self, member: _Member) -> None:
        if member.is_alive:
            try:
                with session() as own:
                    member.engine.forget_others(own, self._version)
            except EngineGone as error:
                self._bury(member, error)

    def _bury(self, member: _Member, error: Exception) -> None:
        """Takes an engine out. One with other weights is tried again at once: it was restarted."""
        with self._changed:
            is_news = member.is_alive or not member.why
            delay = 0.0 if isinstance(error, StaleVersion) else RETRY_SECONDS
            member.retry_at = time.monotonic() + delay
            member.is_alive, member.why = False, str(error)
        if is_news:
            self._report(f"{error}: its prompts go elsewhere until it serves again")

    def _due(self) -> _Member | None:
        now = time.monotonic()
        for member in self._members:
            if not member.is_alive and not member.is_tried and member.retry_at <= now:
                return member
        return None

    def _revive(self, member: _Member) -> None:
        """Tries an engine that is out. What it refuses is said, and it stays out: others may go on
        without it."""
        try:
            self._ready(member, f"{member.engine.name} serves {self._version.name}")
        except (EngineGone, SamplerError) as error:
            if isinstance(error, SamplerError) and str(error) != member.why:
                self._report(str(error))
            member.why = str(error)
        finally:
            with self._changed:
                member.is_tried = False
                member.retry_at = time.monotonic() + RETRY_SECONDS

    def _is_well(self, member: _Member) -> bool:
        try:
            self._ready(member)
        except (EngineGone, SamplerError):
            return False
        return True

    def _check_patience(self) -> None:
        """Raises NoEngine where all have been out for too long."""
        now = time.monotonic()
        if self._out_since is None:
            self._out_since = now
        if now - self._out_since > self._patience:
            reasons = "; ".join(member.why for member in self._members)
            raise NoEngine(
                f"no engine has served the policy for {self._patience:g} s ({reasons}): start one "
                "and run the same command again to continue"
            )
