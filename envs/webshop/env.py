"""`stepagent/WebShop-v0`: buying what an instruction asks for (Yao et al., 2022).

Rules of the episode, as in upstream's text environment and in the paper:

- Actions are `search[keywords]` and `click[value]`. What is not understood or cannot be clicked
  leaves the page as it is; the observation is then the same page, and `valid` is false. Unlike
  upstream, another form, such as `Click[…]`, is told which forms there are.
- `click[Buy Now]` ends the episode with the purchase's reward (`envs.webshop.reward`), which is
  the score; before it the score is 0. Success means reward 1.
- 10 actions per task, as in ETO and the paper (upstream has no limit). Without a purchase by then
  the score is 0.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from stepagent.envs.core import Outcome, Plan, TextEnv, checksum
from stepagent.envs.webshop import data, engine, expert, nouns, onwards, pages
from stepagent.envs.webshop.tools import TOOLS

STEP_LIMIT = 10
SEED = 233
"""Upstream's seed for the goals' order; ours also seeds prices and budgets."""


class WebShopEnv(TextEnv):
    """WebShop as a text environment; the module's docstring has the rules.

    Parameters
    ----------
    data: a folder or archive of WebShop's files (or one catalogue file), see
        `envs.webshop.sources`; None: the bundled shop of 2,400 products.
    goals: "human" (instructions written by people) or "synthetic" (composed of attributes and
        options).
    observation: "text" (the paper's; strings between [SEP]) or "text_rich" (lines with marked
        buttons; shows what was chosen).
    show_attributes: whether item pages have a button Attributes.
    goal_seed: seed of prices, budgets and of the shuffle before the split.
    split, max_steps, render_mode: as in `TextEnv`.

    Raises ValueError for an unknown choice, FileNotFoundError or ValueError for missing or damaged
    files, naming them.
    """

    prompt_file: ClassVar[Path] = Path(__file__).with_name("prompt.md")
    packages: ClassVar[tuple[str, ...]] = ("rapidfuzz", "PyStemmer")
    tools = TOOLS

    def __init__(
        self,
        *,
        split: str = "train",
        data: str | os.PathLike[str] | None = None,
        goals: str = "human",
        observation: str = "text",
        show_attributes: bool = False,
        goal_seed: int = SEED,
        max_steps: int | None = None,
        render_mode: str | None = None,
    ):
        super().__init__(split=split, max_steps=max_steps, render_mode=render_mode)
        for name, value, allowed in (
            ("goals", goals, _GOALS),
            ("observation", observation, pages.MODES),
        ):
            if value not in allowed:
                raise ValueError(f"unknown {name} {value!r}: choose {' or '.join(allowed)}")
        self.data = None if data is None else os.fspath(data)
        self.goals, self.observation = goals, observation
        self.show_attributes, self.goal_seed = show_attributes, goal_seed
        self.shop = engine.open_shop(self.data, goal_seed)
        _goal_numbers(self.shop, goals)  # raises if there are too few
        self._visit: engine.Visit | None = None
        self._buyer: onwards.Buyer | None = None

    def list_tasks(self) -> Sequence[str]:
        """Ids are `<category>/<product>/<number of the product's goal>`."""
        return _tasks(self.shop, self.goals, self.split)

    def step_limit(self, task_id: str) -> int:
        return STEP_LIMIT

    def data_notes(self) -> dict[str, int]:
        shop = self.shop.catalogue
        left_out = {f"left out: {reason}": count for reason, count in shop.skipped.items()}
        return left_out | {f"replaced: {why}": count for why, count in shop.replaced.items()}

    def data_checksum(self) -> str:
        return checksum(self.shop.catalogue.checksum, self.goals, str(self.goal_seed))

    def fingerprint(self) -> dict[str, str]:
        return {**super().fingerprint(), "nouns": nouns.method()}

    def goal(self, task_id: str) -> data.Goal:
        """What the task asks for."""
        _, asin, number = task_id.rsplit("/", 2)
        return data.goal(self.shop.product(asin), self.goals, int(number), self.goal_seed)

    def begin(self, task_id: str) -> str:
        goal = self.goal(task_id)
        self.instruction = goal.instruction
        self._visit = engine.Visit(self.shop, goal, self.observation, self.show_attributes)
        self._buyer = None
        return self._visit.observation()

    def act(self, action: str) -> Outcome:
        assert self._visit is not None
        valid = self._visit.act(action)
        bought = self._visit.bought
        if bought is None:
            wrong = "" if valid else engine.wrong_form(action)
            return Outcome(wrong + self._visit.observation(), 0.0, valid=valid)
        return Outcome(
            observation=self._visit.observation(),
            score=bought.reward,
            done=True,
            success=bought.reward == 1.0,
            metrics=bought.metrics(),
        )

    @property
    def visit(self) -> engine.Visit:
        """The running episode's visit to the shop. Raises RuntimeError before the first reset."""
        if self._visit is None:
            raise RuntimeError("no task is running: call reset() first")
        return self._visit

    def admissible_actions(self) -> list[str]:
        """What can be clicked on this page, and a search for the instruction's own words."""
        words = " ".join(expert.keywords(self.visit.goal))
        return [f"search[{words}]", *self.visit.actions()]

    def expert_plan(self, *, from_here: bool = False) -> Plan:
        """A search, a look at what it finds, the choice and the purchase; see `expert`, and
        `onwards` for what it does from here. A state is lost once nothing of worth can be bought in
        the steps left."""
        if from_here:
            return self.plan_onwards(self._plan_from_here)
        limit = self.max_steps or STEP_LIMIT
        return expert.plan(self.shop, self.visit.goal, limit)

    def _plan_from_here(self) -> Plan:
        if self._buyer is None:
            self._buyer = onwards.Buyer(self.visit)
        return self._buyer.plan(self.steps_left)


_GOALS = data.GOALS


@lru_cache(maxsize=32)
def _goal_numbers(shop: engine.Shop, kind: str) -> dict[str, array[int]]:
    """Split → the numbers of its goals, in the split's order."""
    catalogue = shop.catalogue
    count = len(catalogue.goals(kind))
    if not count:
        raise ValueError(
            f"the catalogue has no {kind} goals: choose goals={' or '.join(_GOALS)} by what its "
            f"files hold (left out when it was read: {catalogue.skipped or 'nothing'})"
        )
    return data.split_of(count, shop.seed)


@lru_cache(maxsize=32)
def _tasks(shop: engine.Shop, kind: str, split: str) -> tuple[str, ...]:
    """The ids of a split's tasks."""
    goals, numbers = shop.catalogue.goals(kind), _goal_numbers(shop, kind)[split]
    ids = [""] * len(numbers)
    for at in sorted(range(len(numbers)), key=numbers.__getitem__):  # each product is read once
        row, number = goals[numbers[at]]
        product = shop.catalogue.product(row)
        ids[at] = f"{product.category or 'goods'}/{product.asin}/{number}"
    return tuple(ids)
