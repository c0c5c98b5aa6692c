"""Base of the bundled websites: an application that answers requests, and tasks on it.

`page` answers GET, `submit` answers POST with the path to go to next, and a site's memory of a
visitor is a dict, the state. The same code serves the recorder, which plays gold steps
through our own browser, and the live mode, which serves it to Chromium. A goal has the
instruction, the steps that achieve it, and what the state's entry "done" must then be.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from zlib import crc32

import numpy as np

from stepagent.envs.mind2web.sites.pages import Skin, slug

SiteState = dict[str, Any]
Fields = Mapping[str, str]


@dataclass(frozen=True)
class Move:
    """One gold step: operation, id of the element, value."""

    op: str
    element: str
    value: str = ""


@dataclass(frozen=True)
class SiteGoal:
    """A task on a site."""

    instruction: str
    moves: tuple[Move, ...]
    done: dict[str, str]
    """The state's entry "done" if, and only if, the task is done."""


class Site(ABC):
    """One website. `theme` is its entry in themes.json."""

    kind: ClassVar[str]

    def __init__(self, theme: Mapping[str, Any], brand: str):
        self.theme, self.brand, self.name = theme, brand, slug(brand)
        self.skin = Skin.draw(brand, np.random.default_rng(crc32(self.name.encode())))

    @abstractmethod
    def nav(self) -> list[tuple[str, str, str]]:
        """(id, path, text) of the navigation's working links."""

    @abstractmethod
    def main(self, path: str, query: Fields, state: SiteState) -> tuple[str, str] | None:
        """(title, markup) of one of the site's pages; None: there is no such page."""

    def submit(self, path: str, fields: Fields, state: SiteState) -> str:
        """Handles a form; returns the path to show next."""
        return "/info/sent"

    @abstractmethod
    def goal(self, rng: np.random.Generator) -> SiteGoal:
        """A task, drawn at random."""

    def goals(self, count: int) -> list[SiteGoal]:
        """The site's first `count` tasks, all different."""
        rng = np.random.default_rng([crc32(self.name.encode()), 1])
        goals_by_key: dict[Any, SiteGoal] = {}
        while len(goals_by_key) < count:
            goal = self.goal(rng)
            goals_by_key.setdefault((goal.instruction, goal.moves), goal)
        return list(goals_by_key.values())

    def page(self, path: str, query: Fields, state: SiteState) -> str:
        """The complete page at a path, as HTML."""
        others = [(f"n-{slug(x)}", f"/info/{slug(x)}", x) for x in self.theme["other"][:3]]
        title_and_body = self.main(path, query, state)
        if title_and_body is None:
            title = path.rsplit("/", 1)[-1].replace("-", " ").capitalize() or self.brand
            title_and_body = (title[:40], "<p>There is nothing to do on this page.</p>")
        return self.skin.frame(title_and_body[0], [*self.nav(), *others], title_and_body[1])

    def _thanks(self, state: SiteState) -> tuple[str, str]:
        values = ", ".join(str(value) for value in state.get("done", {}).values())
        return "Thank you", f"<p>We have noted: {values}.</p>"


def pick(rng: np.random.Generator, options: Sequence[Any]) -> Any:
    """One of the options, unchanged."""
    return options[int(rng.integers(len(options)))]
