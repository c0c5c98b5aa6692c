"""What Gymnasium calls: Mind2Web as the benchmark has it, or with `live` in a real browser."""

from __future__ import annotations

from typing import Any

from stepagent.envs.mind2web.env import Mind2WebEnv
from stepagent.envs.mind2web.live import LiveMind2WebEnv


def make(*, live: bool = False, **kwargs: Any) -> Mind2WebEnv:
    """The environment; with `live`, the one in a real browser. Arguments as `Mind2WebEnv`."""
    return LiveMind2WebEnv(**kwargs) if live else Mind2WebEnv(**kwargs)
