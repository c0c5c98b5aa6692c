"""Runs as `eval.view` and `eval.compare` read them: from results files and run folders.

A path may be a results file, a folder of `eval.run`, a folder of `training.run`, which holds the
evaluation of each of its stages, or a folder of such folders: a whole suite, or one agent's part of
it. What is wrong with a file does not cost its good lines: lines that cannot be read are left out,
of an episode that stands there several times one counts, and a file that mixes the results of
several runs is read as several. Each of these is told in a note.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stepagent.envs import trajectory as files
from stepagent.envs.trajectory import BadLine, Trajectory
from stepagent.eval.results import Identity, ResultsError

_TOLD = 5
"""Bad lines of a file that are named one by one."""


@dataclass(frozen=True)
class Run:
    """The results of one agent on one environment and split."""

    name: str
    """What tables call it: the agent, and the folder where several have the same agent"""
    path: Path
    """The file that its results stand in"""
    trajectories: tuple[Trajectory, ...]
    """One for each (task id, seed), in their order; at least one"""

    @property
    def env(self) -> str:
        return self.trajectories[0].env

    @property
    def split(self) -> str:
        return self.trajectories[0].split

    @property
    def agent(self) -> str:
        return self.trajectories[0].agent

    @property
    def fingerprint(self) -> dict[str, str]:
        return self.trajectories[0].fingerprint


def read(paths: Sequence[str | Path], notes: list[str]) -> list[Run]:
    """The runs of all paths, each with a name of its own; oddities go to `notes`.

    Raises ResultsError where a path holds no results, naming what was looked for. (A folder of
    `training.run` without an evaluation so far gives no run.)
    """
    found: list[Run] = []
    seen: set[Path] = set()
    for path in map(Path, paths):
        for file in results_files(path):
            if file.resolve() in seen:
                notes.append(f"{file} is named twice: it is read once")
                continue
            seen.add(file.resolve())
            found += _read_file(file, notes)
    return named(found)


def results_files(path: Path) -> list[Path]:
    """The results files that a path stands for. Raises ResultsError where there is none."""
    if path.is_file():
        return [path]
    if (path / "results.jsonl").is_file():
        return [path / "results.jsonl"]
    stages = sorted(path.glob("eval/*/results.jsonl"), key=_stage)
    if stages or (path / "metrics.jsonl").is_file():
        return stages
    below = sorted([*path.glob("*/results.jsonl"), *path.glob("*/*/results.jsonl")])
    if played := [file for file in below if file.stat().st_size]:  # the last may be just begun
        return played
    what = "is a folder without results" if path.is_dir() else "does not exist"
    raise ResultsError(
        f"{path} {what}: name a results file, a folder that eval.run wrote (it holds "
        "results.jsonl, that of a suite AGENT/ENVIRONMENT/results.jsonl), or one of training.run "
        "(it holds metrics.jsonl or eval/STAGE/results.jsonl)"
    )


def is_suite(path: Path) -> bool:
    """Whether `eval.run --suite` wrote the folder."""
    try:
        told = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(told, dict) and "suite" in told


def by_entry(found: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of suites by entry (an environment with its settings), named within each."""
    groups: dict[str, list[Run]] = {}
    for run in found:
        groups.setdefault(run.path.parent.name, []).append(run)
    return {entry: named(group) for entry, group in groups.items()}


def _stage(file: Path) -> tuple[int, int, str]:
    """Stages in the order of training: what was not trained, SFT, iterations, the rest."""
    name = file.parent.name
    number = re.fullmatch(r"iteration-(\d+)", name)
    if number:
        return 2, int(number.group(1)), name
    return {"random": (0, 0, name), "sft": (1, 0, name), "expert": (4, 0, name)}.get(
        name, (3, 0, name)
    )


def _read_file(file: Path, notes: list[str]) -> list[Run]:
    bad: list[BadLine] = []
    try:
        found = files.read(file, bad)
    except OSError as error:
        raise ResultsError(f"{file} cannot be read: {error.strerror or error}") from None
    if bad:
        told = [str(b) for b in bad[:_TOLD]]
        if len(bad) > _TOLD:
            told.append(f"{file}: {len(bad) - _TOLD} more like these")
        notes += [f"{line}; left out" for line in told]
    if not found:
        why = f" ({bad[0]})" if bad else " (it is empty)"
        raise ResultsError(f"{file} holds no result that can be read{why}")
    groups: dict[str, list[Trajectory]] = {}
    for trajectory in found:
        groups.setdefault(_key(trajectory), []).append(trajectory)
    if len(groups) > 1:
        first, *others = [group[0] for group in groups.values()]
        for other in others:
            differing = Identity.of(first).differences(replace(Identity.of(other), seed=first.seed))
            notes.append(
                f"{file} mixes the results of several runs, taken as several here; they differ "
                f"in {'; '.join(differing)}"
            )
    return [Run(g[0].agent, file, _once(g, file, notes)) for g in groups.values()]


def _key(trajectory: Trajectory) -> str:
    t = trajectory
    return json.dumps([t.env, t.split, t.agent, t.fingerprint], sort_keys=True)


def _once(group: list[Trajectory], file: Path, notes: list[str]) -> tuple[Trajectory, ...]:
    """One trajectory for each (task id, seed): the last that did not fail, as in resuming."""
    kept: dict[tuple[str, int], Trajectory] = {}
    for trajectory in group:
        key = trajectory.task_id, trajectory.seed
        if key not in kept or not trajectory.error or kept[key].error:
            kept[key] = trajectory
    if len(kept) < len(group):
        counts = Counter((t.task_id, t.seed) for t in group)
        (task, seed), most = counts.most_common(1)[0]
        several = sum(count > 1 for count in counts.values())
        notes.append(
            f"{file}: {several} episodes stand there more than once (task {task!r} with seed "
            f"{seed}: {most} times); of each the last that did not fail counts"
        )
    return tuple(kept[key] for key in sorted(kept))


def named(runs: Sequence[Run]) -> list[Run]:
    """The runs, each with a name of its own: the agent, else with its folder, else a number."""
    names = [run.agent for run in runs]
    folders = _short([run.path for run in runs])
    shared = {name for name, count in Counter(names).items() if count > 1}
    names = [
        (folder if name in folder.split("/")[-2:] else f"{name} ({folder})")
        if name in shared
        else name
        for name, folder in zip(names, folders, strict=True)
    ]
    seen: Counter[str] = Counter()
    for place, name in enumerate(names):
        seen[name] += 1
        if seen[name] > 1:
            names[place] = f"{name} #{seen[name]}"
    return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]


def _short(paths: Sequence[Path]) -> list[str]:
    """Each path by as many of its last folders as tell all of them apart."""
    parts = [_telling(path.absolute()) for path in paths]
    length = 1
    while length < max(map(len, parts), default=0):
        if len({p[-length:] for p in parts}) == len(set(parts)):
            break
        length += 1
    return ["/".join(p[-length:]) for p in parts]


def _telling(path: Path) -> tuple[str, ...]:
    """The folders of a results file that say whose it is (and the file's own name where odd)."""
    parts = path.parts[1:]
    parts = parts[:-1] if parts[-1] == "results.jsonl" and len(parts) > 1 else parts
    if len(parts) > 2 and parts[-2] == "eval":  # a stage of training.run
        parts = (*parts[:-2], parts[-1])
    return parts


# What may stand side by side ----------------------------------------------------------------------


def differences(runs: Sequence[Run]) -> list[str]:
    """What keeps runs from being compared: environment, split, and every part of the fingerprint
    that is not the agent's own (data, prompt, arguments, versions). One line each, with its values.
    The prompt and its shots count only for agents that read it.

    Where the environments differ already, what else does goes without saying.
    """
    names = sorted({name for run in runs for name in _shared(run)}, key=_importance)
    if len({run.env for run in runs}) > 1:
        names = ["environment", "split"]
    told = []
    for name in names:
        values: dict[str, list[str]] = {}
        for run in runs:
            if name not in _OF_THE_PROMPT or run.agent not in _READS_NO_PROMPT:
                values.setdefault(_shared(run).get(name, "(none)"), []).append(run.name)
        if len(values) > 1:
            told.append(f"{name}: {' | '.join(f'{v} ({_few(who)})' for v, who in values.items())}")
    return told


_READS_NO_PROMPT = ("expert", "random")
_OF_THE_PROMPT = ("prompt", "shots")


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _shared(run: Run) -> dict[str, str]:
    rest = {k: v for k, v in run.fingerprint.items() if not k.startswith("agent.")}
    return {"environment": run.env, "split": run.split, **rest}


def _importance(name: str) -> tuple[int, str]:
    first = ("environment", "split", "data", "prompt", "arguments")
    return (first.index(name) if name in first else len(first)), name
