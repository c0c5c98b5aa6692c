"""The reference engine: TextWorld's own PDDL engine behind the interface of `engine.Play`.

For comparison; `stepagent install textworld` installs it (its planner library is compiled during
installation, which needs a C++ compiler and CMake). It takes a second to load a game and tens of
milliseconds per step, and never frees memory.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from typing import Any

from stepagent import optional
from stepagent.envs.alfworld.engine import NOTHING
from stepagent.envs.alfworld.pddl import GameError

_ALTERNATIVE = "which compiles C++; or use engine='fast', which gives the same texts"


def require() -> None:
    """Raises MissingPackage without TextWorld."""
    optional.require("textworld", "engine='textworld'", _ALTERNATIVE)


def load(data: Mapping[str, Any]) -> ReferencePlay:
    """Raises MissingPackage without TextWorld, GameError where it refuses the game."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            import textworld
            from alfworld.agents.environment.alfred_tw_env import AlfredDemangler, AlfredInfos
            from textworld.envs.pddl import PddlEnv
    except ImportError as error:
        raise optional.missing("textworld", f"engine='textworld' ({error})", _ALTERNATIVE) from None
    infos = textworld.EnvInfos(won=True, admissible_commands=True)
    env = AlfredInfos(AlfredDemangler(PddlEnv(infos), shuffle=False))
    try:
        env.load(dict(data))
    except (Exception, SystemExit) as error:  # the translator exits if it finds an error
        raise GameError(f"TextWorld cannot read the game: {error!r}") from error
    return ReferencePlay(env)


class ReferencePlay:
    """One episode in TextWorld; `start()` restarts it."""

    def __init__(self, env: Any):
        self.env, self.state = env, env.reset()

    def start(self) -> ReferencePlay:
        if self.state.get("last_command") is not None:
            self.state = self.env.reset()
        return self

    def intro(self) -> str:
        return str(self.state["feedback"])

    def won(self) -> bool:
        return bool(self.state["won"])

    def admissible(self) -> list[str]:
        return list(self.state["admissible_commands"])

    def knows(self, text: str) -> bool:
        return text in self.state["admissible_commands"]

    def step(self, text: str) -> str | None:
        """The feedback; None if TextWorld says that nothing happens."""
        self.state, _, _ = self.env.step(text)
        feedback = str(self.state["feedback"])
        return None if feedback == NOTHING else feedback
