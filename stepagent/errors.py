"""Errors for people: a command prints the message and no traceback (`command_line.Command`)."""


class UserError(Exception):
    """Something that the user can put right; the message says what is wrong and what to do."""

    exit_code = 1


class UsageError(UserError, ValueError):
    """Options or files that cannot be used as given."""

    exit_code = 2
