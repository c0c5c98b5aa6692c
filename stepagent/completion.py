"""Completion of `stepagent` in a shell: `eval "$(stepagent completion bash)"`."""

from __future__ import annotations

import importlib
import shlex
import sys
import typing
from dataclasses import dataclass
from typing import Literal

from stepagent import command_line
from stepagent.cli import COMMANDS
from stepagent.command_line import Command

_SCRIPT = """\
_stepagent() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" words=""
  if ((COMP_CWORD == 1)); then
    words={commands}
  else
    case "${{COMP_WORDS[1]}} ${{COMP_WORDS[COMP_CWORD-1]}}" in
{values}
    *) if [[ $current == -* ]]; then
      case "${{COMP_WORDS[1]}}" in
{options}
      esac
    fi ;;
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _stepagent stepagent
"""
_ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"


@dataclass
class Config:
    """Prints the script that completes commands, options and their values in a shell.

    bash: add the line `eval "$(stepagent completion bash)"` to ~/.bashrc. zsh: add the same line,
    with zsh in place of bash, to ~/.zshrc.
    """

    shell: Literal["bash", "zsh"]
    """Shell that the script is for."""


def script() -> str:
    """For bash; zsh reads it by its bashcompinit. Without a value to offer, files are completed."""
    values, options = [], []
    for word, (module, _) in COMMANDS.items():
        command: Command = importlib.import_module(module).main
        fields = command_line.option_hints(command.options)
        names = {name: "--" + name.replace("_", "-") for name in ["config", *fields]}
        options.append(_case(word, [*names.values(), "--help"]))
        for name, hint in fields.items():
            if choices := command_line.choices(hint):
                values.append(_case(f'"{word} {names[name]}"', choices))
        if command.configs:
            shipped = command_line.shipped_configs(command.configs, command.options)
            values.append(_case(f'"{word} --config"', shipped))
    return _SCRIPT.format(
        commands=shlex.quote(" ".join(COMMANDS)),
        values="\n".join(values),
        options="\n".join(options),
    )


def _case(pattern: str, words: typing.Iterable[str]) -> str:
    return f"    {pattern}) words={shlex.quote(' '.join(words))} ;;"


def complete(config: Config) -> int:
    sys.stdout.write((_ZSH if config.shell == "zsh" else "") + script())
    return 0


main = Command("completion", Config, complete, positional="shell")

if __name__ == "__main__":
    sys.exit(main())
