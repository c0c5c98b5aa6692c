"""Writes generated games in ALFWorld's own layout: `stepagent alfworld-export --out DIR`.

    DIR/json_2.1.1/{train,valid_seen,valid_unseen}/<task>/<trial>/{game.tw-pddl,traj_data.json}

Upstream's `AlfredTWEnv` loads them, and so does `data=DIR` here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stepagent.command_line import Command
from stepagent.envs.alfworld import generate
from stepagent.envs.alfworld.data import FOLDERS, GAME, ROOT, TRAJECTORY
from stepagent.errors import check_range


@dataclass
class Config:
    """Writes generated ALFWorld games as files that upstream's loader reads."""

    out: Path
    """Folder to write to; it is created."""
    split: Literal["train", "dev", "test"] = "test"
    """Split whose games are written."""
    limit: int = 20
    """Number of games, from the first of the split on."""


def write(folder: Path, task_ids: Sequence[str]) -> list[Path]:
    """Writes the games; returns the folders of the trials. Raises ValueError for unknown ids."""
    trials = []
    for task_id in task_ids:
        game = generate.make(task_id)
        task = game.pop("task")
        kind, _, rest = task_id.partition("/")
        split, _, number = rest.partition("-")
        lamp = kind == "look_at_obj_in_light"
        name = f"{kind}-{task['object']}-None-{task['target']}-{task['room']}"
        trial = folder / ROOT / FOLDERS[split] / name / f"trial_generated_{split}_{number}"
        trial.mkdir(parents=True, exist_ok=True)
        trajectory = {
            "task_id": trial.name,
            "task_type": kind,
            "pddl_params": {
                "mrecep_target": "",
                "object_sliced": False,
                "object_target": task["object"],
                "parent_target": "" if lamp else task["target"],
                "toggle_target": task["target"] if lamp else "",
            },
            "scene": {"floor_plan": f"FloorPlan{task['room']}", "scene_num": task["room"]},
            "turk_annotations": {"anns": [{"task_desc": task["words"]}]},
        }
        _write(trial / GAME, game)
        _write(trial / TRAJECTORY, trajectory)
        trials.append(trial)
    return trials


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def export(config: Config) -> int:
    check_range(1, limit=config.limit)
    trials = write(config.out, generate.GeneratedGames().tasks(config.split)[: config.limit])
    print(f"{len(trials)} games in {config.out / ROOT / FOLDERS[config.split]}")
    return 0


main = Command("alfworld-export", Config, export)


if __name__ == "__main__":
    sys.exit(main())
