"""The arguments that an environment takes, for the message about one that it does not take."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from inspect import Parameter
from typing import Any

from stepagent.envs.core import TextEnv


def names(entry: Callable[..., Any], refused_by: str) -> list[str]:
    """Names of the arguments of the environment that `entry` makes.

    Where that is a function, it passes what it does not take itself to a class: the one named
    `refused_by`, which has just refused an argument, or a subclass of it.
    """
    if isinstance(entry, type):
        callables = list(_constructors(entry))
    else:
        callables = [entry]
        for kind in _subclasses(TextEnv):
            if refused_by in (base.__name__ for base in kind.__mro__):
                callables += _constructors(kind)
    parameters = (p for c in callables for p in inspect.signature(c).parameters.values())
    taken = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return list(dict.fromkeys(name for name in taken if name != "self"))


def _constructors(kind: type) -> Iterator[Callable[..., Any]]:
    """The class's constructor, and those above it as long as they pass arguments on."""
    for base in kind.__mro__:
        if init := vars(base).get("__init__"):
            yield init
            parameters = inspect.signature(init).parameters.values()
            if all(p.kind is not Parameter.VAR_KEYWORD for p in parameters):
                return


def _subclasses(kind: type) -> Iterator[type]:
    subclasses: list[type] = kind.__subclasses__()
    for subclass in subclasses:
        yield subclass
        yield from _subclasses(subclass)
