"""Errors for people: a command prints the message and no traceback (`command_line.Command`)."""

from __future__ import annotations

import math

LAST_PORT = 65535
"""The highest port there is."""


class UserError(Exception):
    """Something that the user can put right; the message says what is wrong and what to do."""

    exit_code = 1


class SetupError(UserError):
    """Something that all work of this kind needs is missing, or refuses: an evaluation or a
    training stops, since no episode could be played."""

    exit_code = 2


class UsageError(UserError, ValueError):
    """Options or files that cannot be used as given."""

    exit_code = 2


FORESEEN = (UserError, OSError, ValueError, TypeError, ImportError)
"""What a command says in a line; anything else is a fault of the program, with its traceback."""


def exit_code(error: Exception) -> int:
    """Of a command that ends by this error: 2 where what it was given cannot work, 1 where
    something went wrong on the way.

    >>> exit_code(FileNotFoundError()), exit_code(PermissionError()), exit_code(RuntimeError())
    (2, 1, 1)
    """
    if isinstance(error, UserError):
        return error.exit_code
    if isinstance(error, OSError):
        return 2 if isinstance(error, FileNotFoundError) else 1
    return 2 if isinstance(error, FORESEEN) else 1


def check_range(least: float, most: float = math.inf, /, **values: float | None) -> None:
    """Raises UsageError for the first of the values that is not in [least, most]; None is.

    >>> check_range(0, LAST_PORT, port=99999)
    Traceback (most recent call last):
    ...
    stepagent.errors.UsageError: port is 99999: it must be from 0 to 65535
    """
    for name, value in values.items():
        if value is not None and not least <= value <= most:
            allowed = f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
            raise UsageError(f"{name} is {value}: it must be {allowed}")
