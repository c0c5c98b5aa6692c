"""The contract that every StepAgent environment keeps: `TextEnv`, and the `FreeText` space.

Text in, text out, behind Gymnasium's `reset` / `step`. An environment writes down only the rules of
its episode (`begin`, `act`, `list_tasks`, `expert_plan`); what they all share is here:
drawing a task from the seed, reading a ReAct reply, counting steps, turning a score into rewards,
the keys of `info`, and the promise that nothing an agent types ever raises.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import string
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, Self

import gymnasium as gym
import numpy as np
from gymnasium.vector.utils import shared_memory as _shm

from stepagent.envs import react
from stepagent.envs.arguments import check as check_types
from stepagent.envs.tools import ACT, BadCall, Tool, action_of, is_call

SPLITS = ("train", "dev", "test")
MAX_TEXT = 65_536
"""Characters that an observation may have. Longer ones are cut, with a note."""
Plan = list[tuple[str, str]]
"""(thought, action) pairs, in order."""


class FreeText(gym.spaces.Space[str]):
    """Any text of up to `max_length` characters.

    `gymnasium.spaces.Text` checks each character against a small alphabet; observations of real
    environments are long and in Unicode, so membership here is a matter of type and length.
    """

    _alphabet = np.array(list(string.ascii_lowercase + "   "))

    def __init__(self, max_length: int = MAX_TEXT, seed: int | np.random.Generator | None = None):
        self.max_length = max_length
        super().__init__(dtype=str, seed=seed)

    @property
    def is_np_flattenable(self) -> bool:
        return False

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """A short random text of letters and blanks (which most environments will not
        understand)."""
        size = int(self.np_random.integers(1, 24))
        return "".join(self.np_random.choice(self._alphabet, size=size))

    def contains(self, x: Any) -> bool:
        return isinstance(x, str) and len(x) <= self.max_length

    def to_jsonable(self, sample_n: Iterable[str]) -> list[str]:
        return list(sample_n)

    def from_jsonable(self, sample_n: list[str]) -> list[str]:
        return list(sample_n)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FreeText) and other.max_length == self.max_length

    def __repr__(self) -> str:
        return f"FreeText({self.max_length})"


# AsyncVectorEnv passes observations in shared memory by default. Four bytes per character hold
# any UTF-8 text of the space; the length comes first.


@_shm.create_shared_memory.register(FreeText)
def _create_text_memory(space: FreeText, n: int = 1, ctx: Any = None) -> Any:
    import multiprocessing

    ctx = ctx or multiprocessing
    return ctx.Array("c", n * (8 + 4 * space.max_length))


@_shm.write_to_shared_memory.register(FreeText)
def _write_text_memory(space: FreeText, index: int, value: str, shared_memory: Any) -> None:
    data, slot = value.encode("utf-8", "replace"), 8 + 4 * space.max_length
    view = memoryview(shared_memory.get_obj()).cast("B")
    start = index * slot
    view[start : start + 8 + len(data)] = len(data).to_bytes(8, "little") + data


@_shm.read_from_shared_memory.register(FreeText)
def _read_text_memory(space: FreeText, shared_memory: Any, n: int = 1) -> _TextView:
    return _TextView(shared_memory, n, 8 + 4 * space.max_length)


class _TextView(Sequence[str]):
    """The texts that n workers last wrote, decoded on access. A copy is a plain tuple."""

    def __init__(self, memory: Any, n: int, slot: int):
        self._memory, self._n, self._slot = memory, n, slot

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(self._n)))
        if not -self._n <= index < self._n:
            raise IndexError(index)
        view = memoryview(self._memory.get_obj()).cast("B")
        start = (index % self._n) * self._slot
        size = int.from_bytes(view[start : start + 8], "little")
        return bytes(view[start + 8 : start + 8 + size]).decode("utf-8")

    def __deepcopy__(self, memo: Any) -> tuple[str, ...]:
        return tuple(self)

    def __repr__(self) -> str:
        return repr(tuple(self))


@dataclass(frozen=True)
class Outcome:
    """The result of one action, as an environment's `act` reports it."""

    observation: str
    score: float
    """Score of the episode so far, in [0, 1], in the benchmark's own measure."""
    done: bool = False
    """The episode has ended by its own rules (not by the step limit)."""
    success: bool = False
    valid: bool = True
    """The action was understood and allowed."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The benchmark's own metrics so far (element accuracy, EM, F1, raw score, …)."""


def own_version() -> str:
    """StepAgent's version, "source" if it is not installed."""
    try:
        return version("stepagent")
    except PackageNotFoundError:
        return "source"


def _is_count(value: object, least: int) -> bool:
    """Whether it is an integer of at most 64 bits, and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**63


class TextEnv(gym.Env[str, str], ABC):
    """Base of all environments. The module's docstring says what a subclass implements.

    Parameters
    ----------
    split: one of "train", "dev", "test".
    max_steps: actions an episode may take before it is truncated; None: the benchmark's own limit
        (`step_limit`).
    render_mode: None or "ansi" (`render()` gives the last observation).

    Raises ValueError for an unknown split, task id or a limit below 1, naming what exists.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"]}
    prompt_file: ClassVar[Path]
    """The environment's `prompt.md` (see `envs.react.Prompt.load`)."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Distributions whose version can change results; they go into the fingerprint."""

    def __new__(cls, *_: Any, **arguments: Any) -> Self:
        check_types(cls, arguments)
        return super().__new__(cls)

    def __init__(
        self, *, split: str = "train", max_steps: int | None = None, render_mode: str | None = None
    ):
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
        if max_steps is not None and not _is_count(max_steps, least=1):
            raise ValueError(f"max_steps is {max_steps!r:.50}: it must be an integer from 1 on")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"unknown render_mode {render_mode!r}: choose None or 'ansi'")
        self.split, self.max_steps, self.render_mode = split, max_steps, render_mode
        self.observation_space = FreeText()
        self.action_space = FreeText()
        self.task_id: str | None = None
        self.instruction = ""
        self.rng = np.random.default_rng(0)
        self._outcome: Outcome | None = None
        self._notes: Counter[str] = Counter()
        self._steps = 0
        self._ended = True
        self._taken: list[str] = []
        """What the agent has done since the reset."""
        self._road: tuple[int, Plan] | None = None
        """The expert's newest plan, and the number of actions after which it begins."""

    # What a subclass writes -------------------------------------------------------------------

    @abstractmethod
    def list_tasks(self) -> Sequence[str]:
        """The ids of this split's tasks, in a fixed order, without loading the simulator."""

    @abstractmethod
    def begin(self, task_id: str) -> str:
        """Starts the task; sets `self.instruction`; returns the first observation.

        All randomness comes from `self.rng`, which depends on (task id, seed) alone.
        """

    @abstractmethod
    def act(self, action: str) -> Outcome:
        """Applies one bare, non-empty action. Must not raise for anything an agent can type."""

    @abstractmethod
    def expert_plan(self, *, from_here: bool = False) -> Plan:
        """(thought, action) pairs that solve the current task from its reset.

        With `from_here`, pairs that reach the best score that the present state still allows,
        within the steps left and by whatever road it was reached; empty where nothing more can be
        gained: the state is lost, or the episode is over. Asking changes nothing. An environment
        may leave this parameter out: then its expert plans from the reset only (`expert_anywhere`).
        Raises RuntimeError before the first reset, and may raise ValueError where `max_steps` is
        too low for any plan.
        """

    def admissible_actions(self) -> list[str]:
        """Actions that the current state allows. Expensive in most environments, so only on
        demand."""
        raise NotImplementedError(f"{type(self).__name__} does not list admissible actions")

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The actions as functions (`envs.tools`): together they stand for every action there is.
        By default one function, whose argument is the action's text."""
        return (ACT,)

    def step_limit(self, task_id: str) -> int:
        """The benchmark's own limit of actions for a task."""
        raise NotImplementedError(f"{type(self).__name__} has no step limit of its own")

    def data_checksum(self) -> str:
        """A checksum of the data the tasks come from ("" if the package versions determine
        it)."""
        return ""

    def data_notes(self) -> dict[str, int]:
        """What of the split's data is left out or replaced, whatever is played: reason → count.

        `info["data_notes"]` has what concerns the episode. Both go into the summary of a run, so
        that no score hides what it was measured on. Raises what `tasks` raises.
        """
        return {}

    # What all share ---------------------------------------------------------------------------

    @property
    def expert_anywhere(self) -> bool:
        """Whether the expert can be asked in any state, not only at the reset."""
        return "from_here" in inspect.signature(self.expert_plan).parameters

    def expert_action(self) -> tuple[str, str] | None:
        """The expert's (thought, action) in the present state; None where nothing more can be
        gained, as in `expert_plan(from_here=True)`.

        Raises NotImplementedError where the expert plans from the reset only (`expert_anywhere`).
        """
        if not self.expert_anywhere:
            raise NotImplementedError(
                f"{type(self).__name__} has no expert for any state: its expert_plan does not take "
                "from_here"
            )
        plan = self.expert_plan(from_here=True)
        return plan[0] if plan else None

    @property
    def steps_left(self) -> int:
        """Actions that the episode may still take; 0 once it is over."""
        if self._ended or self.task_id is None:
            return 0
        return (self.max_steps or self.step_limit(self.task_id)) - self._steps

    def plan_onwards(self, make: Callable[[], Plan]) -> Plan:
        """What `expert_plan(from_here=True)` returns: the rest of the expert's newest plan (at
        first that from the reset) while the agent follows it, else what `make` works out from
        here."""
        if self.task_id is None:
            raise RuntimeError("no task is running: call reset() first")
        if self._ended:
            return []
        here = len(self._taken)
        if self._road is None:
            try:
                self._road = 0, self.expert_plan()
            except ValueError:  # the task cannot be solved within the limit
                self._road = here, make()
        begin, plan = self._road
        since, rest = self._taken[begin:], plan[here - begin :]
        follows = since == [action for _, action in plan[: len(since)]]
        if not follows or (since and not rest) or len(rest) > self.steps_left:
            rest = make()
            self._road = here, rest
        return list(rest)

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """Ids of the split's tasks; never empty."""
        tasks = tuple(self.list_tasks())
        if not tasks:
            raise ValueError(f"{type(self).__name__}: the split {self.split!r} has no task")
        return tasks

    def check_task(self, task_id: object) -> None:
        """Raises ValueError for what is no id of a task of this split."""
        if not isinstance(task_id, str) or task_id not in self._task_set:
            raise ValueError(
                f"no task {task_id!r:.200} in split {self.split!r} of {type(self).__name__}: it "
                f"has {len(self.tasks)}, such as {', '.join(self.tasks[:3])}"
            )

    @cached_property
    def _task_set(self) -> frozenset[str]:
        return frozenset(self.tasks)

    @property
    def prompt(self) -> react.Prompt:
        """Instruction and one-shot example, from the environment's `prompt.md`."""
        return replace(react.Prompt.load(self.prompt_file), tools=self.tools)

    @property
    def task_type(self) -> str:
        """Group of the current task in reports; "" if the tasks have no types."""
        return default_task_type(self.task_id or "")

    def fingerprint(self) -> dict[str, str]:
        """What a result depends on besides task and seed: versions, data, arguments, prompt."""
        fingerprint = {"gymnasium": gym.__version__, "data": self.data_checksum()}
        for package in self.packages:
            try:
                fingerprint[package] = version(package)
            except PackageNotFoundError:
                fingerprint[package] = "missing"
        fingerprint["prompt"] = self.prompt.checksum()
        kwargs = dict(self.spec.kwargs) if self.spec else {}
        kwargs.pop("split", None)
        kwargs.pop("render_mode", None)
        fingerprint["arguments"] = json.dumps(kwargs, sort_keys=True, default=str)
        return fingerprint

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Starts `options["task_id"]`, or a task drawn by the seed.

        The same (task id, seed) gives the same text in every process, whether the id was given or
        drawn. Raises ValueError for an unknown option, a negative seed or a task id that is not of
        this split.
        """
        if seed is not None and not _is_count(seed, least=0):
            raise ValueError(f"the seed is {seed!r:.50}: it must be an integer from 0 on")
        super().reset(seed=seed)
        unknown = set(options or ()) - {"task_id"}
        if unknown:
            raise ValueError(f"unknown reset option {sorted(unknown)}: the only one is 'task_id'")
        task_id = (options or {}).get("task_id")
        drawn = int(self.np_random.integers(len(self.tasks)))
        if task_id is None:
            task_id = self.tasks[drawn]
        else:
            self.check_task(task_id)
        episode_seed = seed if seed is not None else int(self.np_random.integers(2**31))
        # A task id from damaged data may contain a lone surrogate.
        task_seed = zlib.crc32(task_id.encode("utf-8", "surrogatepass"))
        self.rng = np.random.default_rng([episode_seed, task_seed])
        self.task_id, self._steps, self._ended = task_id, 0, False
        self._taken, self._road = [], None
        self._notes.clear()
        self._outcome = Outcome(self._clipped(self.begin(task_id)), score=0.0)
        return self._outcome.observation, self._info()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Applies a bare action or a whole ReAct reply; the reward is the gain in score."""
        if self._ended or self._outcome is None:
            raise gym.error.ResetNeeded("the episode has ended: call reset() first")
        if not isinstance(action, str):
            raise TypeError(f"an action must be a str, not {type(action).__name__}")
        before, reply = self._outcome.score, react.parse(clip(action))
        try:
            outcome = self._carry_out_action(reply.action, before)
        except BaseException:
            self._ended = True  # not the agent's doing, but the episode is over
            raise
        if not outcome.metrics:
            outcome = _replace(outcome, metrics=self._outcome.metrics)
        self._outcome = _replace(outcome, observation=self._clipped(outcome.observation))
        self._steps += 1
        limit = self.max_steps or self.step_limit(str(self.task_id))
        truncated = not outcome.done and self._steps >= limit
        self._ended = outcome.done or truncated
        reward = float(outcome.score - before)
        return self._outcome.observation, reward, outcome.done, truncated, self._info()

    def note(self, reason: str) -> None:
        """Counts something of the episode's data that is missing, replaced or cut."""
        self._notes[reason] += 1

    def _clipped(self, observation: str) -> str:
        if len(observation) > MAX_TEXT:
            self.note(f"observations cut at {MAX_TEXT} characters")
        return clip(observation)

    def _carry_out_action(self, action: str, score: float) -> Outcome:
        """What an action does, or a call of the function that stands for it."""
        problem = ""
        if is_call(action):
            try:
                action = action_of(self.tools, action)
            except BadCall as error:
                problem = str(error)
        self._taken.append(action)
        if problem:
            return Outcome(problem, score, valid=False)
        return self.act(action) if action else Outcome(react.NO_ACTION, score, valid=False)

    def render(self) -> str | None:  # type: ignore[override]
        return self._outcome.observation if self._outcome and self.render_mode == "ansi" else None

    def _info(self) -> dict[str, Any]:
        outcome = self._outcome
        assert outcome is not None
        return {
            "task_id": self.task_id,
            "split": self.split,
            "instruction": self.instruction,
            "score": float(outcome.score),
            "success": outcome.success,
            "valid": outcome.valid,
            "metrics": dict(outcome.metrics),
            "data_notes": dict(self._notes),
        }


def _replace(outcome: Outcome, **changes: Any) -> Outcome:
    return Outcome(**{**outcome.__dict__, **changes})


def default_task_type(task_id: str) -> str:
    """What stands before the first `/` of a task id; "" if there is none.

    >>> default_task_type("find-animal/17"), default_task_type("5a8b57f25542995d1e6f1371")
    ('find-animal', '')
    """
    before, slash, _ = task_id.partition("/")
    return before if slash else ""


def clip(text: str, limit: int = MAX_TEXT) -> str:
    """Text that fits the space and can be written as UTF-8 (lone surrogates become `?`)."""
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode("utf-8")
    if len(text) <= limit:
        return text
    note = f"\n[cut: {len(text)} characters]"
    return text[: limit - len(note)] + note


def checked_sizes(sizes: Any) -> tuple[int, int, int]:
    """The three splits' sizes. Raises ValueError for anything but three numbers of at least 1."""
    numbers = tuple(sizes) if isinstance(sizes, Sequence) else ()
    if len(numbers) != 3 or not all(type(size) is int and size >= 1 for size in numbers):
        raise ValueError(
            f"sizes is {sizes!r}: it must be three numbers (train, dev, test), each at least 1"
        )
    train, dev, test = numbers
    return train, dev, test


def split_names(names: str | Iterable[str]) -> tuple[str, ...]:
    """Names from a list, or from a text with commas."""
    parts = names.split(",") if isinstance(names, str) else names
    return tuple(part.strip() for part in parts if part.strip())


def checksum(*parts: str | bytes) -> str:
    """A short stable checksum (16 hex digits of SHA-256) for fingerprints."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
        digest.update(b"\0")
    return digest.hexdigest()[:16]
