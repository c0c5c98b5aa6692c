"""ScienceWorld's tasks, variations, splits and step limits, without starting Java.

A task id is `<task>/<variation>`, such as `find-living-thing/17`, with the simulator's own task
names. The table below was read from the simulator (a test compares them): 30 tasks, 7,207
variations, each task's train, dev and test variations being three consecutive ranges.

Two task sets:

- `"all"`: every variation, in upstream's official splits.
- `"paper"` (default): the 24 tasks of the paper and of ETO (Song et al., 2024), from which the
  paper took its data, with ETO's step limits.

How `"paper"` differs from ETO:

- **test** is the same 211 variations: the first 10 (or all, if there are fewer) of each task's
  official test range. The paper's table 1 counts 241.
- **dev** is up to 10 variations per task from the official dev range, evenly spaced: 199. ETO drew
  its 194 from the same ranges at random.
- **train** is up to 120 variations per task from the official train range, evenly spaced: 1,408.
  ETO drew its 1,483 from train *and* dev, so that 54 of its dev items are also among its train
  items. Ours uses only the official train range: train, dev and test share nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple


class Variations(NamedTuple):
    """Where a task's splits begin: train is 0…dev, dev is dev…test, test is test…end."""

    dev: int
    test: int
    end: int

    def of(self, split: str) -> range:
        """The variations of "train", "dev" or "test"."""
        borders = {"train": (0, self.dev), "dev": (self.dev, self.test)}
        return range(*borders.get(split, (self.test, self.end)))


TASKS: dict[str, Variations] = {
    "boil": Variations(14, 21, 30),
    "change-the-state-of-matter-of": Variations(14, 21, 30),
    "chemistry-mix": Variations(16, 24, 32),
    "chemistry-mix-paint-secondary-color": Variations(18, 27, 36),
    "chemistry-mix-paint-tertiary-color": Variations(18, 27, 36),
    "find-animal": Variations(150, 225, 300),
    "find-living-thing": Variations(150, 225, 300),
    "find-non-living-thing": Variations(150, 225, 300),
    "find-plant": Variations(150, 225, 300),
    "freeze": Variations(14, 21, 30),
    "grow-fruit": Variations(62, 93, 126),
    "grow-plant": Variations(62, 93, 126),
    "identify-life-stages-1": Variations(6, 9, 14),
    "identify-life-stages-2": Variations(4, 6, 10),
    "inclined-plane-determine-angle": Variations(84, 126, 168),
    "inclined-plane-friction-named-surfaces": Variations(692, 1038, 1386),
    "inclined-plane-friction-unnamed-surfaces": Variations(80, 120, 162),
    "lifespan-longest-lived": Variations(62, 93, 125),
    "lifespan-longest-lived-then-shortest-lived": Variations(62, 93, 125),
    "lifespan-shortest-lived": Variations(62, 93, 125),
    "measure-melting-point-known-substance": Variations(218, 327, 436),
    "measure-melting-point-unknown-substance": Variations(150, 225, 300),
    "melt": Variations(14, 21, 30),
    "mendelian-genetics-known-plant": Variations(60, 90, 120),
    "mendelian-genetics-unknown-plant": Variations(240, 360, 480),
    "power-component": Variations(10, 15, 20),
    "power-component-renewable-vs-nonrenewable-energy": Variations(10, 15, 20),
    "test-conductivity": Variations(450, 675, 900),
    "test-conductivity-of-unknown-substances": Variations(300, 450, 600),
    "use-thermometer": Variations(270, 405, 540),
}

STEP_LIMITS: dict[str, int] = {
    "boil": 100,
    "change-the-state-of-matter-of": 80,
    "chemistry-mix": 60,
    "chemistry-mix-paint-secondary-color": 15,
    "chemistry-mix-paint-tertiary-color": 30,
    "find-animal": 15,
    "find-living-thing": 15,
    "find-non-living-thing": 15,
    "find-plant": 15,
    "freeze": 80,
    "grow-fruit": 60,
    "grow-plant": 30,
    "identify-life-stages-1": 30,
    "identify-life-stages-2": 30,
    "lifespan-longest-lived": 10,
    "lifespan-longest-lived-then-shortest-lived": 12,
    "lifespan-shortest-lived": 10,
    "measure-melting-point-known-substance": 120,
    "melt": 80,
    "power-component": 20,
    "power-component-renewable-vs-nonrenewable-energy": 30,
    "test-conductivity": 30,
    "test-conductivity-of-unknown-substances": 30,
    "use-thermometer": 30,
}
"""Actions an episode may take, by task: the paper's 24 tasks and ETO's limits."""
OTHER_STEP_LIMIT = 300
"""Limit for the six tasks outside the paper's set (upstream's 100 is below some gold paths)."""

TASK_SETS = ("paper", "all")
_PAPER_SIZES = {"train": 120, "dev": 10, "test": 10}

EASY = ("teleportAction", "openDoors", "openContainers", "selfWateringFlowerPots")
NO_ELECTRICAL = "noElectricalAction"
SIMPLIFICATIONS = (*EASY, NO_ELECTRICAL)


def is_electrical(task: str) -> bool:
    """Whether the task needs wires to be connected, so that `noElectricalAction` is impossible."""
    return "power-component" in task or "conductivity" in task


def default_simplifications(task: str) -> tuple[str, ...]:
    """What the paper's prompt promises, written out.

    ETO's environment ran with `easy`: everything but openContainers, and without noElectricalAction
    in electrical tasks. The prompt adds that all containers are open, so they are here.
    """
    return EASY if is_electrical(task) else SIMPLIFICATIONS


def step_limit(task: str) -> int:
    """Actions that an episode of the task may take."""
    return STEP_LIMITS.get(task, OTHER_STEP_LIMIT)


@lru_cache(maxsize=64)
def task_ids(
    split: str, task_set: str = "paper", only: tuple[str, ...] | None = None
) -> tuple[str, ...]:
    """Ids of a split, task by task.

    Parameters
    ----------
    split: "train", "dev" or "test".
    task_set: "paper" or "all".
    only: names of tasks to keep; None: all of the set.

    Raises ValueError for an unknown task set or task, listing what exists.
    """
    if task_set not in TASK_SETS:
        raise ValueError(f"unknown task_set {task_set!r}: choose one of {', '.join(TASK_SETS)}")
    names = [name for name in TASKS if task_set == "all" or name in STEP_LIMITS]
    if only is not None:
        unknown = sorted(set(only) - set(names))
        if unknown or not only:
            raise ValueError(
                f"unknown tasks {unknown} in task_set {task_set!r}, which has: {', '.join(names)}"
            )
        names = [name for name in names if name in only]
    ids = []
    for name in names:
        variations: Sequence[int] = TASKS[name].of(split)
        if task_set == "paper":
            size = min(_PAPER_SIZES[split], len(variations))
            variations = variations[:size] if split == "test" else _spread(variations, size)
        ids += [f"{name}/{variation}" for variation in variations]
    return tuple(ids)


def _spread(numbers: Sequence[int], size: int) -> list[int]:
    """`size` of the numbers, evenly spaced, including the first."""
    return [numbers[i * len(numbers) // size] for i in range(size)]
