"""Other words for the experts' thoughts.

An environment's expert says the same thing in one or a few ways. A folder with an environment may
hold `wordings.yaml`: lists of forms that say the same, each with the same {slots}. A thought is
taken apart into such forms, and each piece written in a form drawn from its list; what a slot holds
is taken over as it is, so that a thought says neither more nor less than before. What fits no form,
and what the environment has shown in these words (a page that is quoted), stays.

`{Slot}` is a slot at the beginning of a sentence, with a capital letter.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path

import yaml

from stepagent.envs.core import TextEnv, checksum
from stepagent.envs.trajectory import Trajectory
from stepagent.errors import UsageError
from stepagent.files import read_text

WORDINGS = "wordings.yaml"
_SLOT = re.compile(r"\{(\w+)\}")
_END = re.compile(r"(?<=[.?!:”\"])(?:\s+|$)")


@dataclass(frozen=True)
class Form:
    """One way to say something."""

    text: str
    shortest: re.Pattern[str]
    longest: re.Pattern[str]
    """Patterns of it, in which the first slots hold as little, or as much, as they can."""
    alike: tuple[str, ...]
    """All ways to say it."""

    def slots(self, sentence: str) -> dict[str, str] | None:
        """What the slots hold, by their names in lower case; None where it is another sentence, or
        where it is unclear which slot holds what."""
        match, other = (p.fullmatch(sentence) for p in (self.shortest, self.longest))
        if match is None or other is None or match.groupdict() != other.groupdict():
            return None
        return {
            name.lower(): value[:1].lower() + value[1:] if name[0].isupper() else value
            for name, value in match.groupdict().items()
        }


def file_of(env: TextEnv) -> Path:
    """The environment's `wordings.yaml`. Raises UsageError where it has none."""
    path = Path(inspect.getfile(type(env.unwrapped))).with_name(WORDINGS)
    if not path.is_file():
        raise UsageError(
            f"the expert of {type(env).__name__} has one wording only: a list of others is looked "
            f"for in {path} (see envs/wording.py), or set expert.wording to fixed"
        )
    return path


def reworded(file: Path, thought: str, shown: Sequence[str], key: str) -> str:
    """The thought in words that are drawn by `key`.

    Parameters
    ----------
    file: the environment's `wordings.yaml`.
    shown: the observations so far.
    """
    pieces = []
    for number, (piece, form) in enumerate(_pieces(file, thought, tuple(shown))):
        if form is None:
            pieces.append(piece)
            continue
        slots = form.slots(piece) or {}
        drawn = form.alike[int(checksum(f"{key}/{number}"), 16) % len(form.alike)]
        pieces.append(_written(drawn, slots))
    return " ".join(pieces)


def reword(file: Path, trajectory: Trajectory, seed: int) -> Trajectory:
    """The trajectory with other words in its thoughts, drawn by (seed, task, step); a step with a
    reply of its own stays."""
    steps, shown = [], []
    for number, step in enumerate(trajectory.steps):
        shown.append(step.observation)
        if step.thought and not step.reply:
            key = f"{seed}/{trajectory.task_id}/{number}"
            step = replace(step, thought=reworded(file, step.thought, shown, key), tokens=())
        steps.append(step)
    return replace(trajectory, steps=tuple(steps))


def _written(form: str, slots: Mapping[str, str]) -> str:
    def content(match: re.Match[str]) -> str:
        name = match[1]
        value = slots[name.lower()]
        return value[:1].upper() + value[1:] if name[0].isupper() else value

    return _SLOT.sub(content, form)


def _pieces(file: Path, thought: str, shown: tuple[str, ...]) -> list[tuple[str, Form | None]]:
    """The thought as pieces with their forms: as much of it as possible, in as many as possible."""
    thought = thought.strip()
    ends = [0, *(match.end() for match in _END.finditer(thought))]
    if ends[-1] < len(thought):
        ends.append(len(thought))
    sentences = [thought[i:j].strip() for i, j in pairwise(ends)]
    quoted = [any(sentence in text for text in shown) for sentence in sentences]
    # Behind the i-th end: (characters without a form, -pieces, the pieces).
    best: list[tuple[int, int, list[tuple[str, Form | None]]]] = [(0, 0, [])]
    for j in range(1, len(ends)):
        options = []
        for i in range(j):
            piece = thought[ends[i] : ends[j]].strip()
            form = None if quoted[i] else _form(file, piece)
            if form is None and i < j - 1:
                continue
            missed, count, before = best[i]
            missed += 0 if form else len(piece)
            options.append((missed, count - 1, [*before, (piece, form)]))
        best.append(min(options, key=lambda option: option[:2]))
    return best[-1][2]


@lru_cache(maxsize=100_000)
def _form(file: Path, piece: str) -> Form | None:
    return next((form for form in forms(file) if form.slots(piece) is not None), None)


@cache
def forms(file: Path) -> tuple[Form, ...]:
    """All forms of a file, those with the longest text around their slots first. Raises UsageError
    for lists that are none, or whose forms have different slots."""
    loaded = yaml.safe_load(read_text(file))
    result = list(_checked(file, loaded))
    return tuple(sorted(result, key=lambda form: -len(_SLOT.sub("", form.text))))


def _checked(file: Path, groups: object) -> Iterator[Form]:
    if not isinstance(groups, list):
        raise UsageError(f"{file} must hold a list of lists of forms")
    for group in groups:
        if not isinstance(group, list) or not all(isinstance(form, str) for form in group):
            raise UsageError(f"{file}: {str(group)[:80]!r} is not a list of texts")
        slots = {frozenset(name.lower() for name in _SLOT.findall(form)) for form in group}
        if len(slots) > 1:
            raise UsageError(f"{file}: forms of one list with different slots: {group}")
        for form in group:
            yield Form(form, _pattern(form, ".+?"), _pattern(form, ".+"), tuple(group))


def _pattern(form: str, content: str) -> re.Pattern[str]:
    """The form as a pattern; a slot that occurs again holds the same."""
    parts, end, names = [], 0, set()
    for match in _SLOT.finditer(form):
        name = match[1]
        parts += [
            re.escape(form[end : match.start()]),
            f"(?P={name})" if name in names else f"(?P<{name}>{content})",
        ]
        names.add(name)
        end = match.end()
    return re.compile("".join([*parts, re.escape(form[end:])]), re.DOTALL)
