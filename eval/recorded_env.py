"""The environment that a file records, made again.

Files of results may come from anyone, so they must not be able to run code or to send anything: an
environment's id must be registered, and only the user can give arguments that name code or a
server.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym

from stepagent.envs.arguments import texts_of
from stepagent.errors import UsageError
from stepagent.eval.load_runs import EvaluationRun

_OF_A_SERVER = ("url", "token")
_DRIVE = re.compile(r"^[A-Za-z]:[\\/]")
_ADDRESS = re.compile(r"://|^[\\/]{2}")
"""A URL, or a folder that another machine shares: opening one sends it the user's name."""


def import_modules(modules: Sequence[str]) -> None:
    """Imports what the user names, after which recorded ids may name it too. Raises UsageError."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UsageError(f"modules: {error}") from None


def check_id(recorded: str, source: str) -> None:
    """Raises UsageError unless making an environment of this id, which `source` holds, imports no
    module that is not loaded yet."""
    module, _, env_id = recorded.rpartition(":")
    if module and module not in sys.modules:
        raise UsageError(
            f"{source}: it was recorded with an environment of the module {module!r}, and "
            f"importing a module runs its code: if you trust it, add --modules {module}"
        )
    if env_id not in gym.registry:
        raise UsageError(
            f"{source}: no environment {env_id!r} is registered: name the module that registers "
            "it by --modules"
        )


def safe_arguments(
    recorded: Mapping[str, Any], source: str, env_args: Mapping[str, Any]
) -> dict[str, Any]:
    """The recorded arguments without those of a server, replaced by the user's `env_args`.

    Raises UsageError for a recorded argument that names code, or an address to connect to.
    """
    safe = {name: value for name, value in recorded.items() if name not in _OF_A_SERVER}
    for name in safe.keys() - env_args.keys():
        texts = list(texts_of(safe[name]))
        # Arguments name classes and functions as `module:name`. What is between may be any file.
        named = "code" if any(":" in _DRIVE.sub("", text) for text in texts) else ""
        named = "an address" if any(map(_ADDRESS.search, texts)) else named
        if named:
            raise UsageError(
                f"{source}: its argument {name} = {safe[name]!r} names {named}, which a file may "
                f"not choose: if you trust it, add --env-args.{name} yourself"
            )
    return {**safe, **env_args}


def recorded_env(
    run: EvaluationRun, env_args: Mapping[str, Any] | None = None
) -> tuple[str, dict[str, Any]]:
    """The environment id of a run, and the arguments to make it with; `env_args` replace recorded
    ones. Raises UsageError like `check_id` and `safe_arguments`."""
    source = str(run.path)
    check_id(run.env, source)
    recorded = recorded_arguments(run.fingerprint, source)
    return run.env, {**safe_arguments(recorded, source, env_args or {}), "split": run.split}


def recorded_arguments(fingerprint: Mapping[str, str], source: str) -> dict[str, Any]:
    """The environment's arguments in a fingerprint, which `source` holds. Raises UsageError."""
    try:
        recorded = json.loads(fingerprint.get("arguments", "{}"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{source}: its fingerprint's arguments are not JSON: {error}") from None
    if not isinstance(recorded, dict):
        raise UsageError(f"{source}: its fingerprint's arguments are not a JSON object")
    return recorded
