"""Command lines from dataclasses: every command of ours reads its options through `parse`.

A command's options are the fields of one dataclass; the docstring under a field is its help. Values
come from the dataclass's defaults, then a YAML file (`--config FILE`), then the command line, and
are checked against the type hints (jsonargparse does that part). Beyond what jsonargparse gives:
dashes and underscores in option names mean the same, a bool is switched by `--x` and `--no-x`, and
an unknown key, in the file or on the command line, is an error that lists the keys there are.
A configuration is data: unlike jsonargparse's own way, none can name a class to be called.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, TypeVar

import jsonargparse
import yaml

C = TypeVar("C")
_EPILOG = (
    "--no-x switches off what --x switches on. An option that takes a dict also takes its keys one "
    "by one: --env-args.KEY VALUE. --print-config shows the resolved options as a YAML file."
)
_UNKNOWN = re.compile(r"unrecognized arguments: --([\w.\-]+)|Option '(.+?)' is not acc")
_UNKNOWN_IN_GROUP = re.compile(r"Group '(.+?)' does not accept option '(.+?)'")
_WRONG_VALUE = re.compile(r'Parser key "([\w.]+)":.*(?:Given|Got) value: (.*)\Z', re.DOTALL)


class _Parser(jsonargparse.ArgumentParser):
    """Shows options with dashes, and says what exists where a key or a value is wrong."""

    known: dict[str, Any]

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        text = super().format_help(*args, **kwargs)
        text = re.sub(r"--[a-z][\w.]*", lambda m: m.group().replace("_", "-"), text)
        return re.sub(r" \{true,false(,null)?\}", "", text)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if found := _UNKNOWN.search(message):
            message = unknown_key(found.group(1) or found.group(2), self.known)
        elif found := _UNKNOWN_IN_GROUP.search(message):
            message = unknown_key(f"{found.group(1)}.{found.group(2)}", self.known)
        elif (found := _WRONG_VALUE.search(message)) and found.group(1) in self.known:
            name, value = found.groups()
            message = f"{name} cannot be {value!r}: it takes {_in_words(self.known[name])}"
        elif message.startswith("the following arguments are required"):
            needed = message.split(":")[1].split(",")
            message = "required: " + ", ".join("--" + n.strip().replace("_", "-") for n in needed)
        sys.stderr.write(f"{self.prog}: error: {message}\n(--help explains every option)\n")
        sys.exit(2)


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The error message for a key that does not exist: the nearest ones, then all of them."""
    key = key.replace("-", "_")
    known = list(known)
    near = difflib.get_close_matches(key, known, n=2)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"unknown key {key!r}.{hint} There are: {', '.join(known)}"


def parse(
    kind: type[C], argv: Sequence[str] | None = None, *, prog: str, positional: str | None = None
) -> C:
    """The dataclass `kind`, filled from `argv` (default: the process's own arguments).

    `positional` names the field that a first argument without dashes goes to; where that is a list,
    all arguments without dashes go there, wherever they stand. Exits with code 2 and one clear
    message where an option is unknown, missing or of the wrong type.
    """
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = _Parser(
        prog=prog, allow_abbrev=False, description=(kind.__doc__ or "").strip(), epilog=_EPILOG
    )
    parser.known = _fields(kind)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below")
    parser.add_class_arguments(kind, None, sub_configs=False)
    arguments = _normalise(list(sys.argv[1:] if argv is None else argv), parser.known, positional)
    return _build(kind, parser.parse_args(arguments))


def _build(kind: Any, values: Any) -> Any:
    """The dataclass from parsed values; nothing but our own dataclasses is ever called."""
    hints, found = typing.get_type_hints(kind), {}
    for field in dataclasses.fields(kind):
        hint, value = hints[field.name], values[field.name]
        found[field.name] = _build(hint, value) if dataclasses.is_dataclass(hint) else _plain(value)
    return kind(**found)


def _plain(value: Any) -> Any:
    if isinstance(value, jsonargparse.Namespace):
        return _plain(value.as_dict())
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def dump(config: Any) -> str:
    """The dataclass as YAML that `--config` reads back."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


def _fields(kind: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted name of every option → its type hint."""
    hints = typing.get_type_hints(kind)
    found: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        hint, name = hints[field.name], prefix + field.name
        found |= _fields(hint, name + ".") if dataclasses.is_dataclass(hint) else {name: hint}
    return found


def _choices(hint: Any) -> tuple[Any, ...]:
    """The members of a union; of any other hint, itself."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _in_words(hint: Any) -> str:
    words = []
    for choice in _choices(hint):
        if typing.get_origin(choice) is typing.Literal:
            words += [str(value) for value in typing.get_args(choice)]
        elif choice is type(None):
            words.append("null")
        else:
            words.append(choice.__name__ if type(choice) is type else str(choice))
    return " or ".join(words)


def _normalise(argv: list[str], known: dict[str, Any], positional: str | None) -> list[str]:
    """Dashes to underscores, `--x` / `--no-x` to `--x=true` / `--x=false`."""
    switches = {name for name, hint in known.items() if bool in _choices(hint)}
    if positional and typing.get_origin(known[positional]) is list:
        argv = _gathered(argv, switches, positional)
    elif positional and argv and not argv[0].startswith("-"):
        argv = [f"--{positional}={argv[0]}", *argv[1:]]
    out = []
    for i, argument in enumerate(argv):
        if not argument.startswith("--"):
            out.append(argument)
            continue
        name, equals, value = argument[2:].partition("=")
        name = name.replace("-", "_")
        if not equals and name.startswith("no_") and name[3:] in switches:
            name, equals, value = name[3:], "=", "false"
        elif not equals and name in switches and not _is_truth("".join(argv[i + 1 : i + 2])):
            equals, value = "=", "true"
        out.append(f"--{name}{equals}{value}")
    return out


def _gathered(argv: list[str], switches: set[str], positional: str) -> list[str]:
    """The arguments that stand alone as one option that holds their list."""
    without_value = {*switches, *(f"no_{name}" for name in switches), "h", "help", "print_config"}
    options: list[str] = []
    alone: list[str] = []
    may_follow: Callable[[str], bool] = _never
    for argument in argv:
        if may_follow(argument):
            options.append(argument)
            may_follow = _never
        elif argument.startswith("-"):
            options.append(argument)
            name = argument.lstrip("-").replace("-", "_")
            may_follow = _never if "=" in name else _always
            if name in without_value:
                may_follow = _is_truth if name in switches else _never
        else:
            alone.append(argument)
            may_follow = _never
    return [*options, f"--{positional}={json.dumps(alone)}"] if alone else options


def _never(argument: str) -> bool:
    return False


def _always(argument: str) -> bool:
    return True


def _is_truth(argument: str) -> bool:
    return argument.lower() in ("true", "false", "null")
