"""The agent at the keyboard."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from stepagent.agents.core import Agent, Turn
from stepagent.envs.react import PromptStyle

HELP = "Type an action. `?` lists the admissible ones (`? door`: those with door), `quit` ends."
_MAX_LISTED = 200
"""Admissible actions listed at once."""


class HumanAgent(Agent):
    """Shows each observation and reads the action from standard input, terminal or pipe.

    The line is the reply, unchanged: a bare action, or a full `Thought: … Action: …`.
    `quit` and the end of the input raise KeyboardInterrupt, as Ctrl-C does.
    Parameters: input and output, streams in place of the standard ones; the others are the style
    of conversations.
    """

    name = "human"
    batch_size = 1

    def __init__(
        self,
        *,
        input: TextIO | None = None,
        output: TextIO | None = None,
        instruction: bool = True,
        example: bool = True,
        thoughts: bool = False,
    ):
        self._input = input
        self._console = Console(file=output, highlight=False)
        self.style = PromptStyle(instruction, example, thoughts)

    def act(self, turns: Sequence[Turn]) -> list[str]:
        return [self._ask(turn) for turn in turns]

    def _ask(self, turn: Turn) -> str:
        if sum(message["role"] == "user" for message in turn.messages) == 1:
            self._console.print(
                Panel(
                    Text(turn.env.instruction or "A new task"),
                    title=Text(str(turn.env.task_id or "")),
                )
            )
            self._console.print(Text(HELP, style="dim"))
        self._console.print(Text(turn.messages[-1]["content"]))
        while True:
            line = self._read_line()
            if line.lower() == "quit":
                raise KeyboardInterrupt("quit was typed")
            if line.startswith("?"):
                self._list_actions(turn, line[1:].strip().lower())
            elif line:
                return line

    def _read_line(self) -> str:
        self._console.print(Text("> ", style="bold"), end="")
        if self._input is None and sys.stdin.isatty():
            try:
                return input().strip()  # with the line editing of the terminal
            except EOFError:
                line = ""
        else:
            line = (self._input or sys.stdin).readline()
        if not line:
            self._console.print()
            raise KeyboardInterrupt("the input has ended")
        return line.strip()

    def _list_actions(self, turn: Turn, pattern: str) -> None:
        try:
            actions = sorted(a for a in set(turn.env.admissible_actions()) if pattern in a.lower())
        except NotImplementedError as error:
            self._console.print(Text(str(error), style="yellow"))
            return
        self._console.print(Text("\n".join(f"  {a}" for a in actions[:_MAX_LISTED]) or "  none"))
        if len(actions) > _MAX_LISTED:
            more = len(actions) - _MAX_LISTED
            self._console.print(Text(f"  … and {more} more: `? word` narrows down"))

    def fingerprint(self) -> dict[str, str]:
        return {"style": str(self.style)}
