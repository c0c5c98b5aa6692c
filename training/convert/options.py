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
    """Files, or folders of .json, .jsonl and .parquet files; training runs for step-pairs."""
    out: Path | None = None
    """File to write: .jsonl, or .parquet where `to` is not trajectories."""
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
    """Layout of the input. null: recognised record by record."""
    env: str | None = None
    """Environment of all records. null: recognised record by record."""
    env_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the environment, such as --env-args.data FOLDER."""
    modules: list[str] = field(default_factory=list)
    """Modules that register custom environments of StepAgent's trajectories. They are imported,
    which a file alone cannot cause."""
    replay: bool = True
    """Play the actions again where the task can be found. Scores then come from the environment."""
    observations: Literal["file", "replay"] = "file"
    """What a trajectory holds whose replay differs: the file's observations or the replay's."""
    reward: float | None = None
    """Score of records that do not say theirs and were not replayed, 0 to 1. null: 1 for expert
    demonstrations (ETO, AgentGym, ALFWorld), else 0."""
    limit: int | None = None
    """Records of each file at most. null: all."""
    prompt: PromptStyle = field(default_factory=PromptStyle)
    """What conversations begin with, where `to` is not trajectories."""
    report: Path | None = None
    """Where the report goes. null: OUT.report.json."""
