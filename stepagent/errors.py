"""Errors for people: a command prints the message and no traceback (`command_line.Command`)."""


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
