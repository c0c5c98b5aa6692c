"""How a policy that StepAgent has trained is prompted: `stepagent.json`, beside its weights.

An agent `hf:PATH` takes from it what it is not told otherwise, so that a policy is scored with the
prompts, the length of replies and the template of its training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stepagent.agents.models import ModelError
from stepagent.envs.react import PromptStyle
from stepagent.files import is_file, parse_json, read_text, write_text

FILE = "stepagent.json"
_KINDS = {
    **{name: type(value) for name, value in asdict(PromptStyle()).items()},
    "max_new_tokens": int,
    "template": dict,
}
"""Options of `TransformersAgent` that the file may have, with their types."""


def write(
    folder: Path, style: PromptStyle, max_new_tokens: int, template: Mapping[str, Any]
) -> None:
    """Writes the file beside a policy's weights."""
    options = {**asdict(style), "max_new_tokens": max_new_tokens, "template": dict(template)}
    write_text(folder / FILE, json.dumps(options, indent=1) + "\n")


def options_of(model: str) -> dict[str, Any]:
    """Options of `TransformersAgent` with which a model was trained; {} where nothing says so: a
    model of others, or of an earlier version.

    Raises ModelError for a file that says something else.
    """
    path = _find(model)
    if path is None:
        return {}
    try:
        options = parse_json(read_text(path))
    except ValueError as error:
        raise ModelError(f"{path} cannot be read ({error}): {_MEND}") from error
    if not isinstance(options, dict):
        raise ModelError(f"{path} holds no options: {_MEND}")
    for name, value in options.items():
        if type(value) is not _KINDS.get(name):
            known = ", ".join(f"{key} ({kind.__name__})" for key, kind in _KINDS.items())
            raise ModelError(f"{path}: {name} is {value!r}; it may have {known}: {_MEND}")
    return options


_MEND = "mend it, or delete it and name the options yourself"


def _find(model: str) -> Path | None:
    """The file of a model in a folder or on the hub; None where it has none."""
    if Path(model).is_dir():
        return path if is_file(path := Path(model, FILE)) else None
    if model.count("/") != 1:
        return None  # no name of the hub either; whoever loads the model says so
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(model, FILE))
    except (EntryNotFoundError, OSError, ValueError):  # not there, or out of reach
        return None
