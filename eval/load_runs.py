"""Loads runs for `eval.view`, `eval.compare` and `eval.replay`: from results files and run folders.

A path may be a results file, a folder of `eval.run`, a folder of `training.run`, which holds the
evaluations of its stages and of its control (SFT on as many tokens), or a folder of such folders:
an entire suite, or one agent's part of it. A damaged file still gives its good lines: lines that
cannot be read are left out, of an episode that was recorded several times one counts, and a file
that mixes the results of several runs is loaded as several. Each of these is reported in a note.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stepagent.envs import trajectory as files
from stepagent.envs.trajectory import BadLine, Trajectory
from stepagent.eval.results import Identity, NoResults, ResultsError
from stepagent.eval.summary import data_notes
from stepagent.files import check_files, is_file, read_object

MATCHED = "sft-matched"
"""The control `evaluation.matched_sft`: its folder in that of a run of `training.run`."""
CONTROL = Path(MATCHED, "eval", "sft")
"""Where its evaluation is in there."""
_MAX_BAD_LINES = 5
"""Bad lines of a file that are reported one by one."""


@dataclass(frozen=True)
class EvaluationRun:
    """The results of one agent on one environment and split."""

    name: str
    """What tables call it: the agent, and the folder where several have the same agent"""
    path: Path
    """Its results file"""
    trajectories: tuple[Trajectory, ...]
    """One for each (task id, seed), in their order; at least one"""
    data_notes: dict[str, int]
    """What of the data was left out, replaced or cut: reason → how often"""

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


def load_runs(
    paths: Sequence[str | Path], notes: list[str], *, everything: bool = False
) -> list[EvaluationRun]:
    """The runs of all paths, each with its own name; oddities go to `notes`.

    `everything` is as in `results_files`. Raises NoResults where a path holds no results, naming
    what was looked for. (A folder of `training.run` without an evaluation so far gives no run.)
    """
    runs: list[EvaluationRun] = []
    seen: set[Path] = set()
    for path in map(Path, paths):
        for file in results_files(path, everything=everything):
            if file.resolve() in seen:
                notes.append(f"{file} is named twice: it is read once")
                continue
            seen.add(file.resolve())
            runs += _load_file(file, notes)
    return with_names(runs)


def results_files(path: Path, *, everything: bool = False) -> list[Path]:
    """The results files that a path stands for. Raises NoResults where there is none.

    With `everything`, all that a folder holds, however deep: of `training.run`'s also the expert's
    episodes, not only the evaluations.
    """
    if is_file(path):
        return [path]
    below = sorted(path.glob("**/results.jsonl"))
    for file in below:
        check_files(file)
    not_empty = [file for file in below if file.stat().st_size]  # a run may have just started
    if everything and not_empty:
        return not_empty
    if path / "results.jsonl" in below:
        return [path / "results.jsonl"]
    stages = sorted((f for f in below if f.parent.parent == path / "eval"), key=_stage_order)
    stages += [f for f in below if f.parent == path / CONTROL]
    if stages or is_file(path / "metrics.jsonl"):
        return stages
    if suite := [file for file in not_empty if path in file.parents[1:3]]:
        return suite
    problem = "is a folder without results" if path.is_dir() else "does not exist"
    raise NoResults(
        f"{path} {problem}: name a results file, a folder that stepagent eval wrote (it holds "
        "results.jsonl, that of a suite AGENT/ENVIRONMENT/results.jsonl), or stepagent train's "
        "(it holds metrics.jsonl or eval/STAGE/results.jsonl)"
    )


def is_suite(path: Path) -> bool:
    """Whether `eval.run --suite` wrote the folder."""
    return "suite" in read_object(path / "summary.json")


def by_entry(runs: Sequence[EvaluationRun]) -> dict[str, list[EvaluationRun]]:
    """The runs of suites by entry (an environment with its settings), with names within each."""
    groups: dict[str, list[EvaluationRun]] = {}
    for run in runs:
        groups.setdefault(run.path.parent.name, []).append(run)
    return {entry: with_names(group) for entry, group in groups.items()}


def _stage_order(file: Path) -> tuple[int, int, str]:
    """Stages in the order of training: what was not trained, SFT, iterations, the rest."""
    name = file.parent.name
    number = re.fullmatch(r"iteration-(\d+)", name)
    if number:
        return 2, int(number.group(1)), name
    return {"random": (0, 0, name), "sft": (1, 0, name), "expert": (4, 0, name)}.get(
        name, (3, 0, name)
    )


def _load_file(file: Path, notes: list[str]) -> list[EvaluationRun]:
    bad: list[BadLine] = []
    try:
        trajectories = files.read(file, bad)
    except OSError as error:
        raise ResultsError(f"{file} cannot be read: {error.strerror or error}") from None
    if bad:
        problems = [str(b) for b in bad[:_MAX_BAD_LINES]]
        if len(bad) > _MAX_BAD_LINES:
            problems.append(f"{file}: {len(bad) - _MAX_BAD_LINES} more like these")
        notes += [f"{problem}; left out" for problem in problems]
    if not trajectories:
        why = f" ({bad[0]})" if bad else " (it is empty)"
        raise NoResults(f"{file} holds no result that can be read{why}")
    groups: dict[str, list[Trajectory]] = {}
    for trajectory in trajectories:
        groups.setdefault(_run_key(trajectory), []).append(trajectory)
    if len(groups) > 1:
        first, *others = [group[0] for group in groups.values()]
        for other in others:
            differing = Identity.of(first).differences(replace(Identity.of(other), seed=first.seed))
            notes.append(
                f"{file} mixes the results of several runs and is loaded as several; they differ "
                f"in {'; '.join(differing)}"
            )
    runs = []
    for group in groups.values():
        kept = _without_repeats(group, file, notes)
        summary = _summary_beside(file) if len(groups) == 1 else {}
        run_notes = {**summary.get("data_notes", {}), **data_notes(kept)}
        runs.append(EvaluationRun(group[0].agent, file, kept, run_notes))
    return runs


def _summary_beside(file: Path) -> dict[str, Any]:
    """The summary that was written with a results file; {} where there is none."""
    summary = read_object(file.with_name("summary.json"))
    return summary if isinstance(summary.get("data_notes", {}), dict) else {}


def _run_key(t: Trajectory) -> str:
    return json.dumps([t.env, t.split, t.agent, t.fingerprint], sort_keys=True)


def _without_repeats(
    group: list[Trajectory], file: Path, notes: list[str]
) -> tuple[Trajectory, ...]:
    """One trajectory for each (task id, seed): the last that did not fail, as in resuming."""
    last: dict[tuple[str, int], Trajectory] = {}
    for trajectory in group:
        key = trajectory.task_id, trajectory.seed
        if key not in last or not trajectory.error or last[key].error:
            last[key] = trajectory
    if len(last) < len(group):
        counts = Counter((t.task_id, t.seed) for t in group)
        (task, seed), most = counts.most_common(1)[0]
        repeated = sum(count > 1 for count in counts.values())
        notes.append(
            f"{file}: {repeated} episodes are recorded more than once (task {task!r} with seed "
            f"{seed}: {most} times); of each the last that did not fail counts"
        )
    return tuple(last[key] for key in sorted(last))


def with_names(runs: Sequence[EvaluationRun]) -> list[EvaluationRun]:
    """The runs with distinct names: the agent, else with its folder, else with a number."""
    names = [MATCHED if _is_control(run.path) else run.agent for run in runs]
    folders = _shortest_distinct([run.path for run in runs])
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


def _is_control(path: Path) -> bool:
    """Whether a results file is of the control `evaluation.matched_sft`."""
    return path.absolute().parts[-4:-1] == CONTROL.parts


def _shortest_distinct(paths: Sequence[Path]) -> list[str]:
    """Each path by as many of its last folders as distinguish all of them."""
    parts = [_identifying_parts(path.absolute()) for path in paths]
    length = 1
    while length < max(map(len, parts), default=0):
        if len({p[-length:] for p in parts}) == len(set(parts)):
            break
        length += 1
    return ["/".join(p[-length:]) for p in parts]


def _identifying_parts(path: Path) -> tuple[str, ...]:
    """The folders of a results file that say whose it is (and the file's own name if unusual)."""
    parts = path.parts[1:]
    parts = parts[:-1] if parts[-1] == "results.jsonl" and len(parts) > 1 else parts
    if len(parts) > 2 and parts[-2] == "eval":  # a stage of training.run
        parts = (*parts[:-2], parts[-1])
    return parts


# Which runs are comparable ------------------------------------------------------------------------


def differences(runs: Sequence[EvaluationRun]) -> list[str]:
    """What keeps runs from being compared: environment, split, and every part of the fingerprint
    that is not the agent's own (data, prompt, arguments, versions). One line each, with its values.
    The prompt and its shots count only for agents that read it.

    Where the environments differ, only environment and split are compared.
    """
    names = sorted({name for run in runs for name in _comparable(run)}, key=_order)
    if len({run.env for run in runs}) > 1:
        names = ["environment", "split"]
    lines = []
    for name in names:
        runs_by_value: dict[str, list[str]] = {}
        for run in runs:
            if name not in _OF_THE_PROMPT or run.agent not in _READS_NO_PROMPT:
                runs_by_value.setdefault(_comparable(run).get(name, "(none)"), []).append(run.name)
        if len(runs_by_value) > 1:
            values = [f"{value} ({_first_three(who)})" for value, who in runs_by_value.items()]
            lines.append(f"{name}: {' | '.join(values)}")
    return lines


_READS_NO_PROMPT = ("expert", "random")
_OF_THE_PROMPT = ("prompt", "shots", "format")


def _first_three(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _comparable(run: EvaluationRun) -> dict[str, str]:
    parts = {k: v for k, v in run.fingerprint.items() if not k.startswith("agent.")}
    return {"environment": run.env, "split": run.split, **parts}


def _order(name: str) -> tuple[int, str]:
    first = ("environment", "split", "data", "prompt", "arguments")
    return (first.index(name) if name in first else len(first)), name
