"""Trajectories: what an agent saw and did in one episode, as one JSON object per line.

The same file serves supervised fine-tuning, practice, every baseline, evaluation, resume, replay
and the viewer. Lines are appended and flushed one by one, so a killed process loses at most the
line it was writing; readers keep the good lines and name the bad ones.
"""

from __future__ import annotations

import codecs
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from stepagent.envs import layouts, react
from stepagent.envs.core import MAX_TEXT, clip, default_task_type
from stepagent.envs.tools import BadCall, Tool, action_of, is_call
from stepagent.files import is_file, open_file, write_atomically

VERSION = 1


@dataclass(frozen=True)
class Step:
    """One turn: the observation, the reply and its reward."""

    observation: str
    thought: str
    action: str
    reward: float = 0.0
    valid: bool = True
    reply: str = ""
    """The agent's own words, if they differ from `react.render(thought, action)`."""
    tokens: tuple[int, ...] = ()
    """The ids that the model produced for its reply, end of turn included, where they were
    recorded. What follows the text that was kept is among them."""
    ending: str = ""
    """How the reply ended, if the model did not end it itself: length, refusal, filter or empty
    (see `agents.core.ModelReply`)."""
    prompt_tokens: tuple[int, ...] = ()
    """The ids of the prompt that a server's model was shown, where they were recorded. A file has
    only what follows the part that is shared with the step before: the size of that part, then the
    ids."""

    @staticmethod
    def of(
        observation: str, reply: str, style: react.PromptStyle, tools: Sequence[Tool] = ()
    ) -> Step:
        """The step that an agent's reply takes; its outcome is not known yet.

        Of a call the action is that which it stands for among the environment's functions.
        """
        text = kept(reply)
        parsed = react.parse(text)
        action = parsed.action
        if is_call(action) and tools:
            try:
                action = action_of(tools, action)
            except BadCall:
                pass  # the environment says what is wrong with it
        # Of an `agents.core.ModelReply`.
        ending, tokens = getattr(reply, "ending", ""), getattr(reply, "tokens", ())
        prompt = getattr(reply, "prompt_tokens", ())
        step = Step(
            observation, parsed.thought, action, ending=ending, tokens=tokens, prompt_tokens=prompt
        )
        if step.text(style, tools) != text:
            step = replace(step, reply=text or " ")  # "" would stand for the rendered text
        return step

    def text(
        self, style: react.PromptStyle = react.PromptStyle(), tools: Sequence[Tool] = ()
    ) -> str:
        """The reply as it appears in a conversation of that style."""
        return self.reply or react.render(self.thought, self.action, style, tools)


def kept(reply: str) -> str:
    """What conversations and trajectories keep of a reply, and environments get: `react.cut`, in at
    most `MAX_TEXT` characters. Of a thought that is longer the end is left out, not the action."""
    text = react.cut(reply)
    if len(text) <= MAX_TEXT:
        return clip(text)
    parsed = react.parse(text)
    if not 0 < len(parsed.action) < MAX_TEXT // 2:
        return clip(text)
    return clip(react.render(clip(parsed.thought, MAX_TEXT // 4), parsed.action))


@dataclass(frozen=True)
class Trajectory:
    """One episode. `reward` is the score in [0, 1], the sum of the steps' rewards."""

    env: str
    task_id: str
    split: str
    agent: str
    seed: int
    steps: tuple[Step, ...]
    final_observation: str = ""
    reward: float = 0.0
    success: bool = False
    truncated: bool = False
    metrics: dict[str, float] = field(default_factory=dict)
    fingerprint: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""
    """Why the episode could not be finished (the environment or agent failed); else empty."""
    task_type: str = ""
    """`TextEnv.task_type`; if it is missing, as in older files, the start of the task id."""
    data_notes: dict[str, int] = field(default_factory=dict)
    """`info["data_notes"]`: what of the episode's data was missing, replaced or cut."""
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.task_type == "":
            object.__setattr__(self, "task_type", default_task_type(str(self.task_id)))

    def messages(self, prompt: react.Prompt, style: react.PromptStyle) -> list[react.Message]:
        """The complete conversation: system message, then observations and replies in turn.

        Replies that were recorded in another format (`PromptStyle.format`) are written in this one.
        """
        recorded = self.fingerprint.get("format", "react")
        messages = react.opening(prompt, self.steps[0].observation if self.steps else "", style)
        for i, step in enumerate(self.steps):
            if i:
                messages.append({"role": "user", "content": step.observation})
            if recorded != style.format and step.action:
                step = replace(step, reply="")
            text = step.text(style, prompt.tools)
            messages.append({"role": "assistant", "content": text})
        return messages

    def to_json(self) -> str:
        """One line of JSON; `from_json` returns the same trajectory."""
        fields = asdict(self)
        # Versions of StepAgent without these fields read the line, too.
        if not self.data_notes:
            del fields["data_notes"]
        before: tuple[int, ...] = ()
        for step in fields["steps"]:
            if prompt := step["prompt_tokens"]:
                pairs = zip(before, prompt, strict=False)
                shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
                step["prompt_tokens"] = [shared, *prompt[shared:]]
                before = prompt + step["tokens"]
            for name in ("tokens", "ending", "prompt_tokens"):
                if not step[name]:
                    del step[name]
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))

    @staticmethod
    def from_json(line: str) -> Trajectory:
        """Raises ValueError that says what is wrong with the line."""
        try:
            data = json.loads(line)
            if not isinstance(data, dict):
                raise ValueError(f"a JSON object was expected, not {type(data).__name__}")
            layout = layouts.layout_of(data)
            if layout not in (None, "trajectories"):
                what = layouts.LAYOUTS[str(layout)]
                raise ValueError(f"{what}, not a trajectory (see `stepagent convert`)")
            if data.get("version") != VERSION:
                raise ValueError(
                    f"schema version {data.get('version')!r}, but this StepAgent reads {VERSION}: "
                    "regenerate the file, or install the version that wrote it"
                )
            if not isinstance(data["steps"], list):
                raise TypeError("steps must be a list")
            steps = tuple(_steps(data.pop("steps")))
            return _typed(Trajectory(steps=steps, **_known(Trajectory, data)))
        except json.JSONDecodeError as error:
            raise ValueError(f"not JSON ({error.msg} at character {error.pos})") from None
        except RecursionError:
            raise ValueError("not a trajectory: its JSON is nested too deeply") from None
        except (KeyError, TypeError, OverflowError) as error:  # the last: a number of 400 digits
            raise ValueError(f"not a trajectory: {error}") from None


def _steps(items: list[dict[str, Any]]) -> Iterator[Step]:
    before: tuple[int, ...] = ()
    for data in items:
        if not isinstance(data, dict):
            raise TypeError("a step must be an object")
        tokens, prompt = _token_ids(data, "tokens"), _token_ids(data, "prompt_tokens")
        if prompt:
            shared, *rest = prompt
            if shared > len(before):
                raise ValueError("prompt_tokens share more than the step before has")
            prompt = (*before[:shared], *rest)
            before = prompt + tokens
        yield Step(**{**_known(Step, data), "tokens": tokens, "prompt_tokens": prompt})


def _token_ids(data: dict[str, Any], name: str) -> tuple[int, ...]:
    tokens = data.get(name, [])
    if not (
        isinstance(tokens, list) and all(type(token) is int and token >= 0 for token in tokens)
    ):
        raise TypeError(f"{name} must be a list of token ids")
    return tuple(tokens)


def _known(kind: Any, data: dict[str, Any]) -> dict[str, Any]:
    unknown = set(data) - set(kind.__dataclass_fields__)
    if unknown:
        raise TypeError(f"unknown {kind.__name__} keys {sorted(unknown)}")
    return data


def _typed(trajectory: Trajectory) -> Trajectory:
    """Raises TypeError if the type of a value is not the one that its field declares."""
    for holder, kinds in (
        (trajectory, _KINDS),
        *((step, _STEP_KINDS) for step in trajectory.steps),
    ):
        for name, kind in kinds:
            if not isinstance(getattr(holder, name), kind):
                raise TypeError(f"{name} must be {_WORDS[kind]}")
    for name, values, kind in (
        ("metrics", trajectory.metrics.values(), _NUMBER),
        ("fingerprint", trajectory.fingerprint.values(), str),
        ("data_notes", trajectory.data_notes.values(), int),
    ):
        if not all(isinstance(value, kind) for value in values):
            raise TypeError(f"each of {name} must be {_WORDS[kind]}")
    numbers = (trajectory.reward, trajectory.seconds, *(s.reward for s in trajectory.steps))
    if not all(map(math.isfinite, (*numbers, *trajectory.metrics.values()))):
        raise TypeError("rewards, seconds and metrics must be finite numbers")
    return trajectory


_NUMBER = int | float
_WORDS: dict[Any, str] = {
    str: "a str",
    int: "an int",
    bool: "true or false",
    dict: "an object",
    _NUMBER: "a number",
}
_TEXTS = ("env", "task_id", "split", "agent", "final_observation", "error", "task_type")
_KINDS: tuple[tuple[str, Any], ...] = (
    *((name, str) for name in _TEXTS),
    *((name, bool) for name in ("success", "truncated")),
    *((name, dict) for name in ("metrics", "fingerprint", "data_notes")),
    *((name, _NUMBER) for name in ("reward", "seconds")),
    ("seed", int),
)
_STEP_KINDS: tuple[tuple[str, Any], ...] = (
    *((name, str) for name in ("observation", "thought", "action", "reply", "ending")),
    ("reward", _NUMBER),
    ("valid", bool),
)


@dataclass(frozen=True)
class BadLine:
    """A line of a file that cannot be read, and why."""

    path: Path
    number: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.number}: {self.reason}"


def read(path: str | Path, bad: list[BadLine] | None = None) -> list[Trajectory]:
    """All good trajectories of a JSON-lines file, in order.

    Bad lines are appended to `bad`; if that is None, they raise a ValueError that lists them.
    Raises FileNotFoundError that names the path, and ValueError for a file of a foreign layout
    (`envs.layouts`), naming the layout and the command that converts it.
    """
    path, trajectories, broken = Path(path), [], []
    if not is_file(path):
        raise FileNotFoundError(f"no trajectory file at {path.absolute()}")
    if (layout := layouts.layout_of_file(path)) not in (None, "trajectories"):
        raise ValueError(layouts.not_ours(path, str(layout)))
    for number, line in _lines(path):
        try:
            trajectories.append(Trajectory.from_json(line))
        except ValueError as error:
            broken.append(BadLine(path, number, str(error)))
    if broken and bad is None:
        listed = "\n".join(f"  {b}" for b in broken[:10])
        advice = (
            "a cut last line is what a killed run leaves; delete the lines named to go on"
            if trajectories
            else "`stepagent convert` reads JSON lists and other layouts"
        )
        lines = f"{len(broken)} of {len(broken) + len(trajectories)} lines"
        raise ValueError(f"{lines} cannot be read ({advice}):\n{listed}")
    if bad is not None:
        bad.extend(broken)
    return trajectories


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with open_file(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            if number == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            if raw.strip():
                yield number, raw.decode("utf-8", "replace")


class Writer:
    """Appends trajectories to a file, flushing each. A truncated last line is ended first."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open_file(self.path, "ab")
        if self.path.stat().st_size:
            with open_file(self.path, "rb") as file:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    self._file.write(b"\n")

    def write(self, trajectory: Trajectory) -> None:
        """Raises OSError (disk full, say) that names the file; nothing written before is lost."""
        try:
            self._file.write(trajectory.to_json().encode("utf-8", "replace") + b"\n")
            self._file.flush()
        except OSError as error:
            raise OSError(error.errno, f"cannot append to {self.path}: {error.strerror}") from error

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def write(path: str | Path, trajectories: Iterable[Trajectory]) -> None:
    """Writes a new file: complete, or not there at all."""

    def save(partial: Path) -> None:
        with partial.open("w", encoding="utf-8", errors="replace") as file:
            for trajectory in trajectories:
                file.write(trajectory.to_json() + "\n")

    write_atomically(Path(path), save)
