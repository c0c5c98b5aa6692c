"""`stepagent/ALFWorld-v0`: household tasks in text (Shridhar et al., 2021).

Rules of the episode, as in the paper (and in ETO before it):

- The score is 1 once the goal holds, else 0; reaching it ends the episode with success.
- The first observation is the room and the task, without TextWorld's banner. On arrival,
  `You arrive at loc 12. ` is left out, as it means nothing. All else is the game's text.
- At most 40 actions, as in ETO; upstream's own configuration has 50 (`max_steps=50`).
- A command must be written as in the game, otherwise `Nothing happens.` and `valid` is false.
  Unlike upstream, capitals, a final full stop and the other wording (`envs.alfworld.wording`) are
  understood, with either engine.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from stepagent.envs import react
from stepagent.envs.alfworld import data as sources
from stepagent.envs.alfworld import engine as fast
from stepagent.envs.alfworld import expert as experts
from stepagent.envs.alfworld import reference
from stepagent.envs.alfworld.engine import NOTHING, Game
from stepagent.envs.alfworld.explorer import Sightings
from stepagent.envs.alfworld.household import TYPES, read_goal
from stepagent.envs.alfworld.pddl import GameError
from stepagent.envs.alfworld.tools import tools
from stepagent.envs.alfworld.wording import WORDINGS, readings, spoken, spoken_prompt
from stepagent.envs.core import Outcome, Plan, TextEnv, split_names
from stepagent.envs.tools import Tool

ENGINES = ("fast", "textworld")
STEP_LIMIT = 40
CODE = "e6ead588007fb787"
"""Stands for the rules of engine and experts in fingerprints; a test says when to renew it."""
GAMES_KEPT = 16
"""Games that an environment keeps in memory (1 MB each); others are read again when needed."""

_BANNER = "-= Welcome to TextWorld"
_ARRIVAL = re.compile(r"You arrive at loc \d+\. ")
_TASK = re.compile(r"Your task is to: ?(.*)\Z", re.DOTALL)


class ALFWorldEnv(TextEnv):
    """ALFWorld as a text environment; the module's docstring has the rules.

    Parameters
    ----------
    data: None: generated games, in rooms of the installed alfworld package. Else a folder that
        holds ALFWorld's `json_2.1.1` (or is it), an archive of it (`.zip`, `.tar.zst`, …), or the
        folder of the official archives.
    engine: "fast", or "textworld", the reference, which must be installed and is slow.
    wording: of the prompt and the expert: "new" (`move X to Y`, `use X`) or "old" (`put X in/on Y`,
        `toggle X`, as in the paper's prompt); None: that of the games themselves.
        Agents may always use either.
    expert: "explorer" or "planner" (`envs.alfworld.expert` says how they differ).
    sizes: generated games of each type in train, dev and test; None: 500, 40, 40. More of them are
        the same ones and further ones.
    tasks: types to restrict every split to (such as pick_and_place_simple), as a list or a text
        with commas; None: all six.
    split, max_steps, render_mode: as in `TextEnv`.

    Raises MissingPackage for an engine that is not installed, ValueError for an unknown engine,
    wording, expert or type and for wrong sizes, FileNotFoundError and
    PermissionError for data that are missing or cannot be read. `tasks` and `reset` raise
    ValueError for a split without a playable game and for broken games, naming the file.
    """

    prompt_file: ClassVar[Path] = Path(__file__).with_name("prompt.md")

    def __init__(
        self,
        *,
        split: str = "train",
        data: str | os.PathLike[str] | None = None,
        engine: str = "fast",
        wording: str | None = None,
        expert: str = "explorer",
        tasks: str | Iterable[str] | None = None,
        sizes: Sequence[int] | None = None,
        max_steps: int | None = None,
        render_mode: str | None = None,
    ):
        super().__init__(split=split, max_steps=max_steps, render_mode=render_mode)
        for name, value, allowed in (
            ("engine", engine, ENGINES),
            ("wording", wording, (None, *WORDINGS)),
            ("expert", expert, experts.EXPERTS),
        ):
            if value not in allowed:
                raise ValueError(f"unknown {name} {value!r}: choose one of {_list(allowed)}")
        if engine == "textworld":
            reference.require()
        self.engine, self.expert = engine, expert
        self._wording = wording
        self._only = TYPES if tasks is None else split_names(tasks)
        unknown = sorted(set(self._only) - set(TYPES))
        if unknown or not self._only:
            raise ValueError(f"unknown tasks {unknown}: choose from {_list(TYPES)}")
        self._source = sources.open_source(data, sizes)
        self._generated = data is None
        self._games: OrderedDict[str, Game] = OrderedDict()
        self._play: Any = None
        self._commands: list[str] = []
        """Those carried out in the episode."""
        self._sightings: tuple[int, Sightings] | None = None
        """What the first so many of them have shown, as far as the expert was asked."""
        self._reference: tuple[str, Any] | None = None

    @property
    def packages(self) -> tuple[str, ...]:  # type: ignore[override]
        """What can change a result: the rules of generated games, the reference engine."""
        used = ("alfworld",) if self._generated else ()
        return (*used, "textworld", "alfworld") if self.engine == "textworld" else used

    def list_tasks(self) -> Sequence[str]:
        return [t for t in self._source.tasks(self.split) if _type(t) in self._only]

    def step_limit(self, task_id: str) -> int:
        return STEP_LIMIT

    @property
    def task_type(self) -> str:
        """One of ALFWorld's six types, such as pick_and_place_simple."""
        return _type(self.task_id or "")

    def data_notes(self) -> dict[str, int]:
        left_out = self._source.left_out(self.split)
        return {f"games left out: {reason}": count for reason, count in left_out.items()}

    def data_checksum(self) -> str:
        return self._source.checksum()

    @property
    def wording(self) -> str:
        """Of the prompt and the expert: "old" or "new"."""
        if self._wording is None:
            grammar = str(self._source.load(self.tasks[0]).get("grammar"))
            self._wording = "old" if "put {o} in/on {r}" in grammar else "new"
        return self._wording

    @property
    def prompt(self) -> react.Prompt:
        prompt = super().prompt
        return react.Prompt(
            spoken_prompt(prompt.instruction, self.wording),
            tuple(
                (seen, thought, spoken(action, self.wording))
                for seen, thought, action in prompt.example
            ),
            tools=prompt.tools,
        )

    @property
    def tools(self) -> tuple[Tool, ...]:
        return tools(self.wording)

    def fingerprint(self) -> dict[str, str]:
        common = super().fingerprint()
        return {
            **common,
            "engine": self.engine,
            "wording": self.wording,
            "expert": self.expert,
            "code": CODE,
        }

    # Playing ----------------------------------------------------------------------------------

    def begin(self, task_id: str) -> str:
        self._play = None
        self._play = self._start(task_id)
        self._commands, self._sightings = [], None
        text = self._play.intro()
        if text.startswith(_BANNER):
            text = text.partition("\n\n")[2]
        match = _TASK.search(text)
        self.instruction = match[0].strip() if match else text.strip()
        return text

    def _start(self, task_id: str) -> Any:
        if self.engine == "fast":
            return self._game(task_id).start()
        if self._reference is None or self._reference[0] != task_id:
            self._reference = (task_id, reference.load(self._source.load(task_id)))
        return self._reference[1].start()

    def _game(self, task_id: str) -> Game:
        game = self._games.pop(task_id, None)
        if game is None:
            try:
                game = fast.load(self._source.load(task_id))
                read_goal(game)
            except GameError as error:
                raise GameError(f"the game {task_id} cannot be played: {error}") from None
        self._games[task_id] = game
        if len(self._games) > GAMES_KEPT:
            self._games.popitem(last=False)
        return game

    def act(self, action: str) -> Outcome:
        play = self._play
        commands = [text for text in readings(action) if play.knows(text)]
        text = play.step(commands[0]) if commands else None
        self._commands += commands[:1]
        won = play.won()
        return Outcome(
            observation=NOTHING if text is None else _ARRIVAL.sub("", text, count=1),
            score=1.0 if won else 0.0,
            done=won,
            success=won,
            valid=bool(commands),
        )

    def admissible_actions(self) -> list[str]:
        """Upstream's admissible commands, sorted (half a millisecond; textworld has them ready).

        Raises RuntimeError before the first reset.
        """
        if self._play is None:
            raise RuntimeError("no task is running: call reset() first")
        return self._play.admissible()

    def expert_plan(self, *, from_here: bool = False) -> Plan:
        """The expert's plan for the current task from its reset (or from here), in the prompt's
        wording. Not a state is lost as long as there are steps enough.

        Raises RuntimeError before the first reset.
        """
        if self.task_id is None:
            raise RuntimeError("no task is running: call reset() first")
        if from_here:
            return self.plan_onwards(self._plan_from_here)
        limit = self.max_steps or STEP_LIMIT
        return self._spoken(experts.plan(self._game(self.task_id), self.expert, limit))

    def _plan_from_here(self) -> Plan:
        done, sightings = self._sightings or (0, Sightings(self._game(str(self.task_id)).start()))
        for command in self._commands[done:]:
            sightings.follow(command)
        self._sightings = len(self._commands), sightings
        left = self.steps_left
        return self._spoken(experts.plan_onwards(sightings, self.expert, left, self._steps))

    def _spoken(self, steps: Plan) -> Plan:
        return [(thought, spoken(action, self.wording)) for thought, action in steps]

    def close(self) -> None:
        self._play = self._reference = self._sightings = None
        self._games.clear()
        self._ended = True


def _type(task_id: str) -> str:
    """Real ids begin `<type>-`, generated ones `<type>/`."""
    return re.split(r"[-/]", task_id, maxsplit=1)[0]


def _list(values: Sequence[Any]) -> str:
    return ", ".join(str(value) for value in values)
