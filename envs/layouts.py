"""Layouts in which trajectories are passed around, recognised by their contents."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from stepagent.envs.containers import SourceError
from stepagent.envs.records import is_message, read_records

LAYOUTS: dict[str, str] = {
    "trajectories": "StepAgent's trajectories",
    "eto": "ETO's conversations",
    "agentgym": "AgentGym's or AgentInstruct's conversations",
    "fireact": "FireAct's prompts or trajectories",
    "alfworld": "ALFWorld's ground-truth conversations",
    "messages": "OpenAI messages",
    "sharegpt": "ShareGPT conversations",
    "prompt-completion": "TRL's prompt and completion",
    "preference": "TRL's or ETO's preference pairs",
    "alfred": "ALFRED's description of a task",
}
"""Name → what it is."""
CONVERTIBLE = tuple(name for name in LAYOUTS if name not in ("preference", "alfred"))
"""Layouts that are, or can be made, trajectories of ours."""
_ETO = ("You are web shopping", "You are a helpful assistant to do", "Interact with a household")


def layout_of(value: Any) -> str | None:
    """The layout of a record (see `LAYOUTS`); None where it is none of them."""
    if isinstance(value, list) and value and is_message(value[0]):
        return "messages" if "role" in value[0] else "sharegpt"
    if not isinstance(value, dict):
        return None
    if {"env", "task_id", "steps"} <= set(value):
        return "trajectories"
    if {"chosen", "rejected"} <= set(value):
        return "preference"
    if {"prompt", "completion"} <= set(value):
        return "prompt-completion"
    if {"task_id", "plan", "scene"} <= set(value) or {"task_id", "turk_annotations"} <= set(value):
        return "alfred"
    if "traj" in value or ("Action:" in str(value.get("output")) and "instruction" in value):
        return "fireact"
    turns = turns_of(value)
    if not turns and {"item_id", "conversations"} <= set(value):
        return "agentgym"
    if not turns or not is_message(turns[0]):
        return None
    return _of_conversation(value, turns)


def _of_conversation(value: dict[str, Any], turns: list[Any]) -> str:
    first, last = turns[0], turns[-1] if isinstance(turns[-1], dict) else {}
    if "role" in first:
        return "fireact" if "Episode finished, reward" in str(last.get("content")) else "messages"
    if "game" in value:
        return "alfworld"
    if "item_id" in value or "loss" in first:
        return "agentgym"
    if "meta" in value or "game_file" in value or str(first["value"]).startswith(_ETO):
        return "eto"
    return "sharegpt"


def turns_of(value: dict[str, Any]) -> list[Any]:
    """The turns of a conversation; empty where the record has none."""
    for key in ("messages", "conversations", "conversation"):
        if isinstance(value.get(key), list):
            return value[key]
    return []


def layout_of_file(path: Path) -> str | None:
    """The layout of a file's first record that can be read; None where it is no known one.

    Reads the beginning of the file. Raises FileNotFoundError, and SourceError for an archive.
    """
    try:
        first = next((r for r in islice(read_records(path), 3) if not r.problem), None)
    except SourceError:
        raise
    except ValueError:
        return None
    return layout_of(first.value) if first else None


def not_ours(path: Path | str, layout: str) -> str:
    """What to tell somebody who named a file of a foreign layout where trajectories belong."""
    what = f"{path} holds {LAYOUTS[layout]}, not StepAgent's trajectories"
    if layout not in CONVERTIBLE:
        return f"{what}; they cannot be converted into trajectories"
    return f"{what}: convert them with `stepagent convert {path} --out FILE.jsonl`"
