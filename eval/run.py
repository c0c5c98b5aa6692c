"""Scores agents on environments: `stepagent eval --env ID --agent SPEC [--out DIR]`.

`DIR/results.jsonl` gets a trajectory a line as episodes end, `DIR/summary.json` the scores
(`eval.summary` says how they are counted). With `--suite paper` in place of `--env` it plays all
the paper's data sets, with one agent or several, and makes one table of them (`eval.suite`).
Running the same command again continues where it was left, after Ctrl-C, a kill or a full disk; it
ends with exit code 0 where all episodes were played, 1 where some failed or it had to give up, 2
for wrong options, 130 where it was interrupted.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from stepagent import agents, envs
from stepagent.agents.core import Agent
from stepagent.command_line import Command
from stepagent.envs.core import TextEnv, checksum
from stepagent.errors import UsageError, UserError
from stepagent.eval import report, suite, tables
from stepagent.eval.results import Identity, ResultsDir, ResultsError
from stepagent.eval.rollout import fingerprint, run_episodes
from stepagent.eval.shots import few_shot_prompt
from stepagent.eval.summary import summarise
from stepagent.files import cache_folder


@dataclass
class Config:
    """Scores an agent on an environment and writes results and summary to a directory."""

    agent: str | None = None
    """Who acts: expert, random, human, smollm2, hf:PATH or openai:MODEL. For a suite also several,
    with commas between them: expert,random,smollm2. null: of a suite expert,random."""
    out: Path | None = None
    """Directory for results.jsonl and summary.json (of a suite: AGENT/ENVIRONMENT/results.jsonl and
    one summary.json and table.md for all). One that holds results is continued. null:
    runs/AGENT/ENVIRONMENT-SPLIT (of a suite: runs/SUITE)."""
    env: str | None = None
    """Environment id, such as stepagent/ScienceWorld-v0, or module:Namespace/Name-v0 for one of
    your own."""
    suite: str | None = None
    """In place of env: paper (the seven data sets of its table 2, their test splits and metrics),
    quick (four short tasks of each, a smoke run), or a YAML file such as eval/suites/paper.yaml."""
    data: Path | None = None
    """Folder of the benchmarks' own files for the suite paper: webshop, mind2web, alfworld,
    hotpotqa, 2wikimultihopqa and musique below it. null: $STEPAGENT_DATA. What is missing there is
    played from the bundled data, and the table says so."""
    split: Literal["train", "dev", "test"] = "test"
    """Which tasks."""
    limit: int | None = None
    """Number of tasks: the first ones of a fixed shuffle of the split, so that a small number sees
    every kind of task and a larger one adds to it. null: all."""
    task_ids: list[str] | None = None
    """Only these tasks, as a list: '[a/1, b/2]'."""
    seed: int = 0
    """Seed of every episode and, with the task id, of the agent's own draws."""
    workers: int | None = None
    """Episodes played at the same time. null: as many as the agent likes to answer at once."""
    env_args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the environment (of each one of a suite), such as
    --env-args.max-steps 30."""
    agent_args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the agent (of several: of those that take them), such as
    --agent-args.batch-size 8."""
    max_new_tokens: int | None = None
    """Length of a reply at most, in tokens (models only). null: the agent's own default."""
    temperature: float | None = None
    """Sampling temperature (models only); 0 is greedy. null: the agent's own default."""
    instruction: bool | None = None
    """Open with the environment's instruction. null: as the agent likes it (most do)."""
    example: bool | None = None
    """Show the one-shot example. null: as the agent likes it (most do)."""
    shots: int | None = None
    """Worked examples in the prompt: 0 none, 1 the environment's own, more: further ones by its
    expert on training tasks. null: as `example` says."""
    thoughts: bool | None = None
    """Replies are a thought and an action; off: the action alone. null: as the agent likes it."""
    cache: bool = True
    """Keep the replies of openai: agents in $STEPAGENT_CACHE/replies.sqlite and ask for none twice,
    so that the same run again costs nothing. Off where one name stands for changing models."""
    time_limit: float | None = 1800.0
    """Seconds that the agent may take for a reply, or the environment for a step, before the
    episode counts as failed (human: any time). null: for ever."""
    max_failures: int = 10
    """Give up after so many failed episodes in a row (a server that went away, say)."""
    overwrite: bool = False
    """Throw away the results that the directory holds."""


def evaluate(
    env_id: str,
    agent: Agent,
    out: str | Path,
    *,
    split: str = "test",
    limit: int | None = None,
    task_ids: Sequence[str] | None = None,
    seed: int = 0,
    workers: int | None = None,
    env_args: dict[str, Any] | None = None,
    shots: int | None = None,
    time_limit: float | None = None,
    max_failures: int = 10,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Plays the tasks that `out` has no result for yet and returns the summary (also written).

    The arguments are those of `Config`; `agent` is a live one (its `style` is used as it stands)
    and is not closed. Without a `time_limit` it acts in the caller's own thread.
    Progress goes to `console` (None: nowhere).
    Raises ValueError for unknown names, ResultsError where the directory cannot be used or too many
    episodes fail in a row, KeyboardInterrupt after writing the summary of what there is.
    """
    console = console or Console(quiet=True)
    begun, arguments = time.monotonic(), {**(env_args or {}), "split": split}
    prompt = few_shot_prompt(env_id, shots or 0, env_args)
    env = envs.make(env_id, **arguments)
    try:
        tasks, repeated = choose(env, limit, task_ids), len(env.tasks) - len(set(env.tasks))
        identity = Identity(env_id, agent.name, split, seed, fingerprint(env, agent, prompt))
    finally:
        env.close()  # before the workers' own: a server may have no more places than these need
    if repeated:
        told = f"note: {env_id} repeats {repeated} of its task ids: each task is played once"
        console.print(told, markup=False)
    with ResultsDir(Path(out), identity, overwrite=overwrite) as results:
        for note in results.notes:
            console.print(f"note: {note}", markup=False)
        before, counted = _earlier(results.summary), agent.statistics()
        todo = [task for task in tasks if task not in results.done]
        played = run_episodes(
            env_id,
            agent,
            todo,
            seed=seed,
            workers=workers,
            split=split,
            env_kwargs=env_args,
            prompt=prompt,
            time_limit=time_limit,
        )
        score = report.RunningScore(
            f"{agent.name} on {env_id}", len(tasks), results.chosen(tasks), console=console
        )
        row = 0
        try:
            with score:
                for trajectory in played:
                    results.append(trajectory)
                    score.add(trajectory)
                    row = row + 1 if trajectory.error else 0
                    if row >= max_failures:
                        raise ResultsError(
                            f"gave up after {row} failed episodes in a row, the last one with: "
                            f"{trajectory.error}\nWhat was played is kept: mend it and run "
                            "again to continue."
                        )
        finally:
            played.close()
            found = results.chosen(tasks)
            if found:
                seconds = _number(before.get("seconds")) + time.monotonic() - begun
                summary = summarise(found, seconds=seconds)
                summary["complete"] = len(found) == len(tasks) and not summary["failed"]
                summary["agent_statistics"] = _total(
                    before.get("agent_statistics"), counted, agent.statistics()
                )
                results.save(summary)
    return summary


def choose(env: TextEnv, limit: int | None, task_ids: Sequence[str] | None) -> list[str]:
    """The tasks to play, each once; at least one.

    Raises ValueError for a limit below 1, an id that does not exist, and an empty list of ids.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}: it must be at least 1")
    tasks = dict.fromkeys(env.tasks)
    if task_ids is None:
        return list(tasks) if limit is None else sorted(tasks, key=checksum)[:limit]
    if not task_ids:
        raise ValueError("task_ids names no task: name at least one, or leave it out to play all")
    if unknown := [task for task in task_ids if task not in tasks]:
        raise ValueError(
            f"unknown task id {unknown[0]!r}: the split {env.split!r} has {len(tasks)}, "
            f"such as {', '.join([*tasks][:3])}"
        )
    return list(dict.fromkeys(task_ids))[:limit]


def _earlier(summary: Path) -> dict[str, Any]:
    """What earlier runs in this directory summed up; nothing where they did not come to it."""
    try:
        found = json.loads(summary.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _total(earlier: Any, before: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
    """An agent's counts of this directory: those of earlier runs, and what has come since."""
    told = earlier if isinstance(earlier, dict) else {}
    return {
        name: _number(told.get(name)) + value - before.get(name, 0.0) for name, value in now.items()
    }


def agent_options(config: Config, spec: str) -> dict[str, Any]:
    """The options that a configuration has for an agent."""
    named = ("max_new_tokens", "temperature", "instruction", "example", "thoughts")
    options = {name: getattr(config, name) for name in named}
    options = {name: value for name, value in options.items() if value is not None}
    if config.shots is not None:
        options["example"] = config.shots > 0
    if config.cache and spec.startswith("openai:"):
        options["cache"] = cache_folder() / "replies.sqlite"
    return {**options, **config.agent_args}


def make_agent(config: Config) -> Agent:
    """The agent that a configuration names, with its decoding and its conversations' style."""
    if config.agent is None:
        raise ValueError("--env needs --agent: expert, random, human, smollm2, hf:PATH, …")
    return agents.make_agent(config.agent, **agent_options(config, config.agent))


def folder(config: Config) -> Path:
    """Where the results go: `out`, or a folder of its own below `runs` for what is played."""
    if config.out is not None:
        return config.out
    if config.suite is not None:
        return Path("runs", suite.folder_of(Path(config.suite).stem))
    name = re.sub(r"-v\d+$", "", str(config.env).rpartition("/")[2])
    played = suite.folder_of(f"{name}-{config.split}")
    return Path("runs", suite.folder_of(str(config.agent)), played)


def run(config: Config) -> int:
    console, out = Console(stderr=True), folder(config)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cluster's kill, as a Ctrl-C
    if (config.env is None) == (config.suite is None):
        raise UsageError("name either --env or --suite")
    try:
        return (_run_suite if config.suite else _run_one)(config, out, console)
    except KeyboardInterrupt:
        tables.tell(console, f"\nThe episodes played so far are in {out}")
        raise
    except RuntimeError as error:  # what environments and agents break with
        raise UserError(str(error)) from error


def _run_one(config: Config, out: Path, console: Console) -> int:
    if config.data is not None:
        raise ValueError("--data goes with --suite; an environment takes --env-args.data")
    agent = make_agent(config)
    try:
        summary = _evaluate(config, agent, str(config.env), out, console)
    finally:
        agent.close()
    Console().print(report.table(summary))
    tables.tell(console, f"The results are in {out}")
    if summary["failed"]:
        console.print(
            f"{summary['failed']} episodes failed (they count as 0): the same command tries them "
            "again.",
            markup=False,
        )
    return 1 if summary["failed"] else 0


def _evaluate(
    config: Config, agent: Agent, env: str, out: Path, console: Console, **changes: Any
) -> dict[str, Any]:
    """`evaluate` as the configuration says, but for the changes."""
    human = agent.name == "human"
    arguments: dict[str, Any] = {
        "split": config.split,
        "limit": config.limit,
        "task_ids": config.task_ids,
        "seed": config.seed,
        "workers": config.workers,
        "env_args": config.env_args,
        "shots": config.shots,
        "time_limit": None if human else config.time_limit,
        "max_failures": config.max_failures,
        "overwrite": config.overwrite,
        "console": None if human else console,
    }
    return evaluate(env, agent, out, **{**arguments, **changes})


# Suites -----------------------------------------------------------------------------------------


def _run_suite(config: Config, out: Path, console: Console) -> int:
    named = config.agent if config.agent is not None else "expert,random"
    specs = list(dict.fromkeys(spec.strip() for spec in named.split(",") if spec.strip()))
    options = suite.share({spec: agent_options(config, spec) for spec in specs})
    if config.task_ids is not None or config.split != "test":
        raise ValueError("--task-ids and --split go with --env: a suite says itself what it plays")
    wanted = suite.load(str(config.suite))
    if config.data is not None and not any(entry.data for entry in wanted.entries):
        raise ValueError(f"the suite {wanted.name} plays bundled data only: leave --data out")
    environ = os.environ.get("STEPAGENT_DATA")
    root = config.data or (Path(environ) if environ else None)
    board = suite.Board(wanted, specs, out)
    live: dict[str, Agent] = {}

    def play(spec: str, entry: suite.Entry, env_args: dict[str, Any], out: Path) -> dict[str, Any]:
        if spec not in live:
            _close(live)  # one at a time: models take room
            live[spec] = agents.make_agent(spec, **options[spec])
        limit = config.limit if config.limit is not None else entry.limit
        changes = {"split": entry.split, "limit": limit, "env_args": env_args}
        return _evaluate(config, live[spec], entry.env, out, console, **changes)

    try:
        board.play(root, config.env_args, play)
    finally:
        _close(live)
        if board.cells:
            tables.terminal([board.table()], board.notes(), Console())
            tables.tell(console, f"The results are in {out}")
    if not board.complete:
        console.print("Not all is there: the same command tries the rest again.", markup=False)
    return 0 if board.complete else 1


def _close(live: dict[str, Agent]) -> None:
    while live:
        live.popitem()[1].close()


main = Command("eval", Config, run, resumes=True)


if __name__ == "__main__":
    sys.exit(main())
