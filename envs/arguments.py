"""The arguments that an environment takes, for the message about one that it does not take."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from inspect import Parameter
from typing import Any

from gymnasium.envs.registration import load_env_creator

from stepagent.envs.core import TextEnv


def names(entry_point: str | Callable[..., Any], refused_by: str) -> list[str]:
    """Names of the arguments of the environment that Gymnasium makes by `entry_point`.

    Where that is a function, what it does not take itself goes on to a class: the one named
    `refused_by`, which has just refused an argument, or one made of it.
    """
    entry: Any = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    if isinstance(entry, type):
        makers = list(_constructors(entry))
    else:
        makers = [entry]
        for kind in _below(TextEnv):
            if refused_by in (base.__name__ for base in kind.__mro__):
                makers += _constructors(kind)
    found = (p for maker in makers for p in inspect.signature(maker).parameters.values())
    named = [p.name for p in found if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return list(dict.fromkeys([*(name for name in named if name != "self"), "url"]))


def _constructors(kind: type) -> Iterator[Callable[..., Any]]:
    """The class's constructor, and those above it as long as arguments are handed on."""
    for base in kind.__mro__:
        if init := vars(base).get("__init__"):
            yield init
            parameters = inspect.signature(init).parameters.values()
            if all(p.kind is not Parameter.VAR_KEYWORD for p in parameters):
                return


def _below(kind: type) -> Iterator[type]:
    found: list[type] = kind.__subclasses__()
    for below in found:
        yield below
        yield from _below(below)
