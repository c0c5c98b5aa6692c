"""The arguments that an environment takes: their names, for the message about another one, and
their types, since a file or a client may give any."""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from inspect import Parameter
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

_PLAIN = (str, int, float, list, tuple, dict, type(None))
"""Of these kinds are values from files, clients and command lines."""


def check(kind: type, arguments: Mapping[str, Any]) -> None:
    """Raises ValueError for a plain value of another type than the constructor's annotation has.

    What is not plain (a path, an object of the user's), an argument without an annotation, and a
    default are not looked at.
    """
    for name, value in arguments.items():
        if isinstance(value, _PLAIN) and name in (known := _types(kind)):
            hint, text, default = known[name]
            if value is not default and not _fits(value, hint):
                shown = f"{value!r:.50}"
                raise ValueError(f"{name} is {shown}: its type must be {text}")


@cache
def _types(kind: type) -> dict[str, tuple[Any, str, Any]]:
    """The annotation of each argument, as an object and as written, and the default."""
    known: dict[str, tuple[Any, str, Any]] = {}
    for init in _constructors(kind):
        try:
            hints = get_type_hints(init)
        except (NameError, TypeError, AttributeError):  # names that only a type checker imports
            continue
        for name, parameter in inspect.signature(init).parameters.items():
            if name in hints:
                text = inspect.formatannotation(parameter.annotation).strip("'")
                known.setdefault(name, (hints[name], text, parameter.default))
    return known


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value has a type; of numbers, whether it is finite and has 64 bits."""
    origin, parts = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if origin in (Any, object) or isinstance(origin, TypeVar):
        return True
    if origin is float:
        return _fits(value, int) or (isinstance(value, float) and math.isfinite(value))
    if isinstance(value, bool) or origin is bool:
        return isinstance(value, bool) and origin is bool
    if origin is int:
        return isinstance(value, int) and -(2**63) <= value < 2**63
    if value is None or origin is None:
        return value is None and origin in (None, type(None))
    if not isinstance(origin, type):
        return True
    if isinstance(value, str | list | tuple) and issubclass(origin, Iterable) and len(parts) == 1:
        return all(_fits(item, parts[0]) for item in ([""] if isinstance(value, str) else value))
    # Lists stand for tuples in JSON.
    return isinstance(value, origin) or (origin is tuple and isinstance(value, list))


def names(entry: Callable[..., Any], refused_by: str, base: type) -> list[str]:
    """Names of the arguments of the environment that `entry` makes.

    Where that is a function, it passes what it does not take itself to a subclass of `base`: the
    one named `refused_by`, which has just refused an argument, or a subclass of it.
    """
    if isinstance(entry, type):
        callables = list(_constructors(entry))
    else:
        callables = [entry]
        for kind in _subclasses(base):
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


def texts_of(value: Any) -> Iterator[str]:
    """All texts of a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from (key, *texts_of(item))
    elif isinstance(value, list):
        for item in value:
            yield from texts_of(item)
