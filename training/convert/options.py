"""Options of `stepagent convert`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from stepagent.envs import PromptStyle


@dataclass
class Config:
    """Converts trajectories of other projects into StepAgent's, and StepAgent's into theirs."""

    files: list[str] = field(default_factory=list)
    """Files, or folders of .json, .jsonl and .parquet files. For step-pairs: folders of training
    runs."""
    out: Path | None = None
    """File to write: .jsonl, or also .parquet where `to` is not trajectories."""
    to: Literal[
        "trajectories", "messages", "sharegpt", "prompt-completion", "preference", "step-pairs"
    ] = "trajectories"
    """Layout of the output. step-pairs reads folders of training runs (implicit, inverse)."""
    format: (
        Literal[
            "trajectories",
            "eto",
            "agentgym",
            "fireact",
            "alfworld",
            "messages",
            "sharegpt",
            "prompt-completion",
        ]
        | None
    ) = None
    """Layout of the input. null: recognised for each record."""
    env: str | None = None
    """Environment of all records. null: recognised for each record."""
    env_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the environment, such as --env-args.data FOLDER."""
    modules: list[str] = field(default_factory=list)
    """Modules to import, which register custom environments of StepAgent's trajectories. A file
    alone cannot have a module imported."""
    replay: bool = True
    """Play the actions again where the task can be found. If nothing differs, observations, rewards
    and score are then the environment's."""
    observations: Literal["file", "replay"] = "file"
    """What a trajectory keeps if its replay differs: observations and score of the file, or of the
    replay."""
    reward: float | None = None
    """Score, 0 to 1, of records that get none from a replay and do not say theirs. null: 1 for
    expert demonstrations (ETO, AgentGym, ALFWorld), else 0."""
    limit: int | None = None
    """Maximum number of records of each file. null: all."""
    prompt: PromptStyle = field(default_factory=PromptStyle)
    """Prompt that conversations begin with, where `to` is not trajectories."""
    report: Path | None = None
    """File for the report. null: OUT.report.json."""
