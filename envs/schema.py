"""The JSON schema of a line of a trajectories file, from the dataclasses that it is read into.

`python -m envs.schema` rewrites `trajectory.schema.json` beside this file.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

from stepagent.envs.trajectory import VERSION, Step, Trajectory
from stepagent.files import write_text

FILE = Path(__file__).with_name("trajectory.schema.json")
_TYPES: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    dict[str, float]: {"type": "object", "additionalProperties": {"type": "number"}},
    dict[str, int]: {"type": "object", "additionalProperties": {"type": "integer"}},
    dict[str, str]: {"type": "object", "additionalProperties": {"type": "string"}},
    tuple[int, ...]: {"type": "array", "items": {"type": "integer", "minimum": 0}},
    tuple[Step, ...]: {"type": "array", "items": {"$ref": "#/$defs/Step"}},
}


def schema() -> dict[str, Any]:
    """The schema (JSON Schema 2020-12) of one line."""
    trajectory = _of(Trajectory)
    trajectory["properties"]["version"] = {"const": VERSION}
    trajectory["required"].append("version")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "StepAgent trajectory",
        **trajectory,
        "$defs": {"Step": _of(Step)},
    }


def _of(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    missing = dataclasses.MISSING
    return {
        "type": "object",
        "description": (kind.__doc__ or "").strip(),
        "properties": {field.name: dict(_TYPES[hints[field.name]]) for field in fields},
        "required": [f.name for f in fields if f.default is missing is f.default_factory],
        "additionalProperties": False,
    }


def text() -> str:
    return json.dumps(schema(), indent=2) + "\n"


if __name__ == "__main__":
    write_text(FILE, text())
