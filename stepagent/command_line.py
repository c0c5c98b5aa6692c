"""Command lines from dataclasses: every command of ours is a `Command`.

A command's options are the fields of one dataclass; the docstring under a field is its help. Values
come from the dataclass's defaults, then a YAML file (`--config FILE`), then the command line, and
are checked against the type hints (jsonargparse does that part). Beyond what jsonargparse gives:
dashes and underscores in option names mean the same, a bool is switched by `--x` and `--no-x`, and
an unknown key, in the file or on the command line, is an error that lists the keys there are.
A configuration is data: unlike jsonargparse's own way, none can name a class to be called.

Exit codes: 0 done, 1 failed, 2 wrong options or a missing package, 130 interrupted by Ctrl-C or
SIGTERM. Errors that a user can put right are one line; with STEPAGENT_DEBUG=1 they come with their
traceback.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib.util
import json
import os
import re
import signal
import sys
import threading
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

import jsonargparse
import yaml

from stepagent import optional
from stepagent.errors import FORESEEN, UsageError, exit_code
from stepagent.files import read_text

C = TypeVar("C")
_EPILOG = (
    "--no-x switches off what --x switches on. An option that takes a dict also takes its keys one "
    "by one: --env-args.KEY VALUE, --agent-args.template.KEY VALUE. --print-config shows the "
    "resolved options as a YAML file."
)
_UNKNOWN_OPTION = re.compile(r"unrecognized arguments: --([\w.\-]+)")
_UNKNOWN_KEY = re.compile(r"Option '([^']+)' is not acc")
_UNKNOWN_IN_GROUP = re.compile(r"Group '([^']+)' does not accept option '([^']+)'")
_MANY = 50
"""Names that would bury the one that was meant."""
_SCIENTIFIC = re.compile(r"[+-]?\d++(\.\d*+)?[eE][+-]?\d++")
_WRONG_VALUE = re.compile(r'Parser key "([\w.]+)":.*(?:Given|Got) value: (.*)\Z', re.DOTALL)


@dataclass(frozen=True)
class Command(Generic[C]):
    """A command, called with its arguments (default: the process's own); returns the exit code."""

    word: str
    """Its name: `stepagent WORD`."""
    options: type[C]
    """Dataclass of its options."""
    body: Callable[[C], int]
    """Does it; returns the exit code. What it raises becomes a message and an exit code here."""
    positional: str | Sequence[str] = ()
    """See `parse`."""
    resumes: bool = False
    """After Ctrl-C or SIGTERM, the same command continues where it stopped."""
    configs: str | None = None
    """Package whose folder `configs` holds what --config finds by name."""
    adjust: Callable[[C, list[str]], None] | None = None
    """Changes the parsed options, seeing the arguments that they came from."""

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        words = list(sys.argv[1:] if argv is None else argv)
        options = parse(
            self.options,
            words,
            prog=self.prog,
            positional=self.positional,
            configs=self.configs,
        )
        try:
            with _sigterm_as_ctrl_c(), optional.named():
                if self.adjust:
                    self.adjust(options, words)
                return self.body(options)
        except KeyboardInterrupt:
            self._say("interrupted" + "; the same command continues from here" * self.resumes)
            return 130
        except FORESEEN as error:
            if os.environ.get("STEPAGENT_DEBUG"):
                raise
            self._say(f"error: {error}")
            return exit_code(error)

    @property
    def prog(self) -> str:
        """How the user started it: `stepagent eval`, or `python -m eval.run`."""
        module = getattr(getattr(sys.modules["__main__"], "__spec__", None), "name", "")
        module = module.removesuffix(".__main__")
        full_name = module if module.startswith("stepagent.") else f"stepagent.{module}"
        body = self.body.__module__
        if body == "__main__" or body == full_name or body.startswith(f"{full_name}."):
            return f"python -m {module}"
        return f"stepagent {self.word}"

    def _say(self, text: str) -> None:
        print(f"{self.prog}: {_printable(text)}", file=sys.stderr)


@contextlib.contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Within the body SIGTERM, a cluster's kill, raises KeyboardInterrupt as Ctrl-C does, unless
    the program handles it otherwise. Only the main thread gets signals."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _printable(text: str) -> str:
    """The text without what could move a terminal's cursor: file names and files may hold it."""
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in text)


class _Parser(jsonargparse.ArgumentParser):
    """Shows options with dashes and positional arguments without an option name, and says what
    exists where a key or a value is wrong."""

    known: dict[str, Any]
    positional: list[str]
    needed: set[str]
    """Names of fields without a default."""

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        with self._as_positional():
            text = super().format_help(*args, **kwargs)
        text = re.sub(r"--[a-z][\w.]*", lambda m: m.group().replace("_", "-"), text)
        text = re.sub(r"<class\s+'(\w+)'>", r"\1", text)
        return re.sub(r" \{true,false(,null)?\}", "", text).rstrip() + "\n"

    @contextlib.contextmanager
    def _as_positional(self) -> Iterator[None]:
        """For argparse's help: it is told of positional arguments, which `_normalise` has made
        options by the time that it parses."""
        shown = [action for action in self._actions if action.dest in self.positional]
        attributes = [dict(vars(action)) for action in shown]
        for action in shown:
            several, at_most = ("+", None) if action.dest in self.needed else ("*", "?")
            is_list = _is_list(self.known[action.dest])
            action.option_strings, action.nargs = [], several if is_list else at_most
            action.metavar = written(action.dest, self.known, self.positional)
        try:
            yield
        finally:
            for action, before in zip(shown, attributes, strict=True):
                vars(action).update(before)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if match := _UNKNOWN_OPTION.search(message):
            name = match.group(1).replace("-", "_")
            near = suggestion(name, self.known, _option)
            message = f"unknown option {_option(name)}.{near}"
        elif match := _UNKNOWN_KEY.search(message):
            message = unknown_key(match.group(1), self.known)
        elif match := _UNKNOWN_IN_GROUP.search(message):
            message = unknown_key(f"{match.group(1)}.{match.group(2)}", self.known)
        elif (match := _WRONG_VALUE.search(message)) and match.group(1) in self.known:
            name, value = match.groups()
            message = f"{name} cannot be {value!r}: it takes {_in_words(self.known[name])}"
        elif message.startswith("the following arguments are required"):
            needed = [name.strip() for name in message.split(":")[1].split(",")]
            shown = [written(name, self.known, self.positional) for name in needed]
            message = f"required: {', '.join(shown)}"
        sys.stderr.write(f"{self.prog}: error: {message}\n(--help explains every option)\n")
        sys.exit(2)


def written(name: str, known: dict[str, Any], positional: str | Sequence[str]) -> str:
    """An option as its user writes it: `--env`, or where it is positional `ENV`."""
    names = [positional] if isinstance(positional, str) else positional
    if name not in names:
        return _option(name)
    return name.removesuffix("s").upper() if _is_list(known[name]) else name.upper()


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The error message for a key that does not exist, with its `suggestion`."""
    key = key.replace("-", "_")
    return f"unknown key {key!r}.{suggestion(key, known)}"


def suggestion(name: str, known: Iterable[str], write: Callable[[str], str] = str) -> str:
    """What to say after an unknown name: the nearest ones, then all, each as `write` has it; where
    there are very many, all only if none is near."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=2)
    hint = f" Did you mean {' or '.join(map(write, near))}?" if near else ""
    if near and len(known) > _MANY:
        return hint
    return f"{hint} There are: {', '.join(map(write, known))}"


def _option(name: str) -> str:
    """A field's name as an option.

    >>> _option("env_args")
    '--env-args'
    """
    return "--" + name.replace("_", "-")


def parse(
    kind: type[C],
    argv: Sequence[str] | None = None,
    *,
    prog: str,
    positional: str | Sequence[str] = (),
    configs: str | None = None,
) -> C:
    """The dataclass `kind`, filled from `argv` (default: the process's own arguments).

    `positional` names the fields that the arguments without dashes go to, in this order, wherever
    they stand; where it is one list, all go there. The package
    `configs` ships configurations that `--config` finds by name. Exits with code 2 and one clear
    message where an option is unknown, missing or of the wrong type.
    """
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = _Parser(
        prog=prog, allow_abbrev=False, description=(kind.__doc__ or "").strip(), epilog=_EPILOG
    )
    parser.known = option_hints(kind)
    parser.positional = [positional] if isinstance(positional, str) else list(positional)
    parser.needed = {
        field.name
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]
        if field.default is field.default_factory is dataclasses.MISSING
    }
    which = ", or the name of a shipped one such as demo" if configs else ""
    parser.add_argument(
        "--config", action="config", help=f"YAML file with any of the options below{which}"
    )
    parser.add_class_arguments(kind, None, sub_configs=False)
    arguments = list(sys.argv[1:] if argv is None else argv)
    arguments = _normalise(arguments, parser.known, parser.positional)
    if configs:
        try:
            arguments = _with_files(arguments, configs, kind)
        except UsageError as error:
            parser.error(str(error))
    return _build(kind, parser.parse_args(_with_deep_keys(parser, arguments)))


def _with_deep_keys(parser: _Parser, argv: list[str]) -> list[str]:
    """The arguments with all of `--args.KEY.A 1 --args.KEY.B 2` in one `--args.KEY={…}`.

    jsonargparse would keep only the last, as a text. What files and other arguments say of KEY
    stays.
    """
    dicts = [name for name, hint in parser.known.items() if _is_dict(hint)]
    rest: list[str] = []
    deep: list[tuple[str, list[str], Any]] = []
    arguments = iter(argv)
    for argument in arguments:
        option, equals, value = argument.partition("=")
        name = next((name for name in dicts if option.startswith(f"--{name}.")), "")
        keys = option.removeprefix(f"--{name}.").split(".") if name else []
        if len(keys) < 2 or not all(keys):
            rest.append(argument)
            continue
        value = value if equals else next(arguments, "null")
        deep.append((name, keys, _read_value(parser, option, value)))
    if not deep:
        return argv
    shown = ("--print_config", "--help", "-h")
    values = parser.parse_args([a for a in rest if not a.startswith(shown)] if rest else [])
    merged: dict[str, Any] = {}
    for name, (first, *others, last), value in deep:
        start = (_plain(values[name]) or {}).get(first)
        node = merged.setdefault(f"{name}.{first}", dict(start) if isinstance(start, dict) else {})
        for key in others:
            node[key] = node = dict(node[key]) if isinstance(node.get(key), dict) else {}
        node[last] = value
    return [*rest, *(f"--{name}={json.dumps(value)}" for name, value in merged.items())]


def _read_value(parser: _Parser, option: str, text: str) -> Any:
    """A value as YAML, in which 1e-4 is a number, too."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        parser.error(f"{option} cannot be {text!r}: it takes YAML")
    return float(value) if isinstance(value, str) and _SCIENTIFIC.fullmatch(value) else value


def _with_files(argv: list[str], package: str, kind: Any) -> list[str]:
    """The arguments with paths in place of the names of shipped configurations."""
    result: list[str] = []
    for argument in argv:
        if argument.startswith("--config="):
            argument = f"--config={_config_file(argument.partition('=')[2], package, kind)}"
        elif result and result[-1] == "--config":
            argument = _config_file(argument, package, kind)
        result.append(argument)
    return result


def _config_file(name: str, package: str, kind: Any) -> str:
    if Path(name).is_file():
        return name
    file = _configs_folder(package) / f"{name}.yaml"
    if not file.is_file():
        shipped = suggestion(name, shipped_configs(package, kind))
        raise UsageError(f"--config {name} is no file and no shipped configuration.{shipped}")
    return str(file)


def _configs_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    return Path(next(iter(spec.submodule_search_locations or ()))) / "configs"


def shipped_configs(package: str, kind: Any) -> list[str]:
    """The names of the configurations of a package that have no other options than `kind`."""
    folder, known = _configs_folder(package), {field.name for field in dataclasses.fields(kind)}
    return [
        file.relative_to(folder).with_suffix("").as_posix()
        for file in sorted(folder.rglob("*.yaml"))
        if set(yaml.safe_load(read_text(file))) <= known
    ]


def _build(kind: Any, values: Any) -> Any:
    """The dataclass from parsed values; nothing but our own dataclasses is ever called."""
    hints, arguments = typing.get_type_hints(kind), {}
    for field in dataclasses.fields(kind):
        hint, value = hints[field.name], values[field.name]
        nested = dataclasses.is_dataclass(hint)
        arguments[field.name] = _build(hint, value) if nested else _plain(value)
    return kind(**arguments)


def _plain(value: Any) -> Any:
    if isinstance(value, jsonargparse.Namespace):
        return _plain(value.as_dict())
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def dump(config: Any) -> str:
    """The dataclass as YAML that `--config` reads back."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


def option_hints(kind: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted name of every option → its type hint."""
    hints = typing.get_type_hints(kind)
    options: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        hint, name = hints[field.name], prefix + field.name
        nested = dataclasses.is_dataclass(hint)
        options |= option_hints(hint, name + ".") if nested else {name: hint}
    return options


def choices(hint: Any) -> list[str]:
    """The values that an option can have, where its type lists them."""
    return [
        str(value)
        for member in _members(hint)
        if typing.get_origin(member) is typing.Literal
        for value in typing.get_args(member)
    ]


def _members(hint: Any) -> tuple[Any, ...]:
    """The members of a union; of any other hint, itself."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _is_dict(hint: Any) -> bool:
    return any(typing.get_origin(member) is dict for member in _members(hint))


def _is_list(hint: Any) -> bool:
    return typing.get_origin(hint) is list


def _in_words(hint: Any) -> str:
    words = []
    for choice in _members(hint):
        if typing.get_origin(choice) is typing.Literal:
            words += [str(value) for value in typing.get_args(choice)]
        elif choice is type(None):
            words.append("null")
        else:
            words.append(choice.__name__ if type(choice) is type else str(choice))
    return " or ".join(words)


def _normalise(argv: list[str], known: dict[str, Any], positional: list[str]) -> list[str]:
    """Positional arguments to options, dashes to underscores, `--x` / `--no-x` to `--x=true` /
    `--x=false`, and a list that is given item by item, `--x A --x B`, to `--x=["A", "B"]`."""
    switches = {name for name, hint in known.items() if bool in _members(hint)}
    if positional:
        argv, alone = _apart(argv, switches)
        if _is_list(known[positional[0]]):
            argv += [f"--{positional[0]}={json.dumps(alone)}"] if alone else []
        else:
            argv += [f"--{name}={value}" for name, value in zip(positional, alone, strict=False)]
            argv += alone[len(positional) :]
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
    for name, hint in known.items():
        if any(choice == list[str] for choice in _members(hint)):
            out = _as_list(out, name)
    return out


def _as_list(argv: list[str], name: str) -> list[str]:
    """The values of an option that stands once or several times, as one list."""
    values: list[str] = []
    rest: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if option == f"--{name}":
            value = value if equals else next(arguments, "")
            values += yaml.safe_load(value) if value.startswith("[") else [value]
        else:
            rest.append(argument)
    if not values or values == ["null"]:
        return argv
    return [*rest, f"--{name}={json.dumps(values)}"]


def _apart(argv: list[str], switches: set[str]) -> tuple[list[str], list[str]]:
    """The options with their values, and the arguments that stand alone."""
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
    return options, alone


def _never(argument: str) -> bool:
    return False


def _always(argument: str) -> bool:
    return True


def _is_truth(argument: str) -> bool:
    return argument.lower() in ("true", "false", "null")
