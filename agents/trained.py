"""How a policy that StepAgent has trained is prompted: `stepagent.json`, beside its weights.

An agent `hf:FOLDER` takes from it what it is not told otherwise, so that a policy is scored with
the prompts, the length of replies and the template of its training. A model of the hub has to be
told: its `config.yaml` says how.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stepagent.agents.models import ModelError
from stepagent.envs.react import PromptStyle
from stepagent.errors import check_range
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
    """Options of `TransformersAgent` with which the model in a folder was trained; {} where nothing
    says so: a model of others, or of an earlier version, or no folder.

    Raises ModelError for a file that says something else.
    """
    path = Path(model).expanduser() / FILE
    if not is_file(path):
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
    try:
        PromptStyle(format=options.get("format", "react"))
        check_range(1, max_new_tokens=options.get("max_new_tokens"))
    except ValueError as error:
        raise ModelError(f"{path}: {error}: {_MEND}") from error
    return options


def with_given(trained: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A model's own options, and those given, which come first; of templates each argument."""
    merged = {**trained, **given}
    if trained.get("template") and given.get("template"):
        merged["template"] = {**trained["template"], **given["template"]}
    return merged


def note(spec: str, given: Mapping[str, Any]) -> str:
    """What an agent's user should know of it: options that come from its training; "" for none."""
    options = options_of(spec.removeprefix("hf:"))
    usual = asdict(PromptStyle()) | {"template": {}}
    taken = {k: v for k, v in options.items() if k not in given and v != usual.get(k)}
    listed = ", ".join(f"{name} {json.dumps(value)}" for name, value in taken.items())
    return f"{spec} is prompted as in its training: {listed}" if listed else ""


_MEND = "mend it, or delete it and name the options yourself"
