"""Scores agents on environments: `stepagent eval --env ID --agent SPEC [--out DIR]`.

`DIR/results.jsonl` gets one trajectory per line as episodes end, `DIR/summary.json` the scores
(`eval.summary` says how they are computed). With `--suite paper` instead of `--env` it plays all
the paper's data sets, with one agent or several, and makes one table of them (`eval.suite`).
Running the same command again resumes, after Ctrl-C, a kill or a full disk. The exit code is 0 if
all episodes were played, 1 if some failed or it had to give up, 2 for wrong options, 130 if it was
interrupted.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from rich.console import Console

from stepagent import agents
from stepagent.agents.core import Agent
from stepagent.command_line import Command
from stepagent.errors import UsageError, UserError, check_range
from stepagent.eval import report, suite, tables
from stepagent.eval.evaluate import EvaluationOptions, LocalPlayer, Player, evaluate_by
from stepagent.files import cache_folder


@dataclass
class Config:
    """Scores an agent on an environment, or several on a suite, and writes results and summary to a
    directory."""

    agent: str | None = None
    """Agent to score: expert, random, human, smollm2, nano, hf:PATH (such as hf:RUN/final) or
    openai:MODEL. A suite takes several, separated by commas: expert,random,smollm2. null:
    expert,random, for a suite only."""
    out: Path | None = None
    """Directory for results.jsonl and summary.json. (With a suite it holds
    AGENT/ENVIRONMENT/results.jsonl, and one summary.json and table.md for all.) If it holds
    results, the run resumes. null: runs/AGENT/ENVIRONMENT-SPLIT (with a suite: runs/SUITE)."""
    env: str | None = None
    """Environment id, such as stepagent/ScienceWorld-v0, or module:Namespace/Name-v0 for a custom
    one."""
    suite: str | None = None
    """Instead of env: paper (the seven data sets of the paper's table 2, with their test splits and
    metrics), quick (a smoke test: four short tasks of each), or a YAML file like
    eval/suites/paper.yaml."""
    data: Path | None = None
    """Folder of the benchmarks' own files, for the suite paper. Its subfolders are webshop,
    mind2web, alfworld, hotpotqa, 2wikimultihopqa and musique. null: $STEPAGENT_DATA. What is
    missing there is played from the bundled data, and the table says so."""
    split: Literal["train", "dev", "test"] = "test"
    """Split whose tasks are played."""
    limit: int | None = None
    """Number of tasks: the first of a fixed shuffle of the split, so a larger number includes the
    tasks of a smaller one. null: all."""
    task_ids: list[str] | None = None
    """Play only these tasks, a list such as '[a/1, b/2]'."""
    seed: int = 0
    """Seed of every episode and, together with the task id, of what the agent draws at random."""
    workers: int | None = None
    """Episodes played at the same time (with ray: by each worker process). null: as many as the
    agent prefers."""
    launch: Literal["local", "ray"] = "local"
    """Where episodes are played: local (this process), or ray (worker processes of a Ray cluster,
    each with its own agent and environments)."""
    ray: dict[str, Any] = field(default_factory=dict)
    """For ray: what each worker process takes, such as {num_cpus: 8, num_gpus: 1}. Default: one
    CPU."""
    ray_address: str = ""
    """For ray: address of the cluster, such as head:6379; local starts one on this machine. Empty:
    $RAY_ADDRESS, else the cluster that this machine is part of."""
    ray_workers: int | None = None
    """For ray: number of worker processes. null: as many as the cluster has room for."""
    env_args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the environment (with a suite, of every environment), such as
    --env-args.max-steps 30."""
    agent_args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the agent (with several agents, of those that take them), such as
    --agent-args.batch-size 8."""
    max_new_tokens: int | None = None
    """Maximum length of a reply, including its thinking, in tokens (models only). null: 256, or
    4,096 for models that think."""
    temperature: float | None = None
    """Sampling temperature (models only); 0 is greedy. null: the agent's own default."""
    instruction: bool | None = None
    """Begin with the environment's instruction. null: the agent's own default, on. A policy
    hf:RUN/final takes this default from its training, like those of example, shots, thoughts and
    max_new_tokens."""
    example: bool | None = None
    """Show the one-shot example. null: the agent's own default."""
    shots: int | None = None
    """Worked examples in the prompt: 0 for none, 1 for the environment's own, more for further ones
    that its expert plays on training tasks. null: as `example` says."""
    thoughts: bool | None = None
    """Replies are a thought and an action. Off: only the action. null: the agent's own default."""
    cache: bool = True
    """Cache the replies of openai: agents in $STEPAGENT_CACHE/replies.sqlite, so that repeating a
    run costs nothing. Switch it off if the model behind a name changes."""
    time_limit: float | None = 1800.0
    """Seconds that the agent may take for a reply, or the environment for a step. After that the
    episode counts as failed. (A human has no limit.) null: no limit."""
    max_failures: int = 10
    """Give up after this many failed episodes in a row, as when a server is down."""
    regret: bool = False
    """Afterwards ask the environment's expert at which step each episode was lost, and add that to
    summary.json (see `stepagent regret`). ScienceWorld's expert takes up to half a second per
    step."""
    overwrite: bool = False
    """Delete the results in the directory first."""


def agent_options(config: Config, spec: str) -> dict[str, Any]:
    """The options in a configuration that are for an agent."""
    names = ("max_new_tokens", "temperature", "instruction", "example", "thoughts")
    options = {name: getattr(config, name) for name in names}
    options = {name: value for name, value in options.items() if value is not None}
    if config.shots is not None:
        options["example"] = config.shots > 0
    if config.cache and spec.startswith("openai:"):
        options["cache"] = cache_folder() / "replies.sqlite"
    return {**options, **config.agent_args}


class Players(Protocol):
    """Play with one agent, in one evaluation after another."""

    def player(self, env_id: str, options: EvaluationOptions, console: Console) -> Player: ...

    def close(self) -> None: ...


class LocalPlayers:
    """An agent in this process, for one evaluation after another."""

    def __init__(self, agent: Agent):
        self.agent = agent

    def player(self, env_id: str, options: EvaluationOptions, console: Console) -> Player:
        return LocalPlayer(env_id, self.agent, options)

    def close(self) -> None:
        self.agent.close()


@contextlib.contextmanager
def launched(config: Config) -> Iterator[Callable[[str, dict[str, Any]], Players]]:
    """What makes players of an agent and its options: `LocalPlayers`, or `RayPlayers`."""
    if config.launch == "local":
        yield lambda spec, options: LocalPlayers(agents.make_agent(spec, **options))
        return
    from stepagent import ray_cluster
    from stepagent.eval.ray_players import RayPlayers

    check_range(1, ray_workers=config.ray_workers)
    needs = ray_cluster.resources(config.ray)
    with ray_cluster.connected(config.ray_address) as ray:

        def make(spec: str, options: dict[str, Any]) -> RayPlayers:
            if spec == "human":
                raise UsageError("a human plays here: leave out --launch ray")
            return RayPlayers(ray, spec, options, needs, config.ray_workers)

        yield make


def folder(config: Config) -> Path:
    """Where the results go: `out`, or a folder below `runs` named after what is played."""
    if config.out is not None:
        return config.out
    if config.suite is not None:
        return Path("runs", suite.folder_of(Path(config.suite).stem))
    name = re.sub(r"-v\d+$", "", str(config.env).rpartition("/")[2])
    tasks = suite.folder_of(f"{name}-{config.split}")
    return Path("runs", suite.folder_of(str(config.agent)), tasks)


def run(config: Config) -> int:
    console, out = Console(stderr=True), folder(config)
    if (config.env is None) == (config.suite is None):
        raise UsageError("name either --env or --suite")
    try:
        return (_run_suite if config.suite else _run_one)(config, out, console)
    except KeyboardInterrupt:
        tables.tell(console, f"\nThe episodes played so far are in {out}")
        raise
    except RuntimeError as error:  # what environments and agents break with
        raise error if isinstance(error, UserError) else UserError(str(error)) from error


def _run_one(config: Config, out: Path, console: Console) -> int:
    if config.data is not None:
        raise ValueError("--data goes with --suite; an environment takes --env-args.data")
    if config.agent is None:
        raise ValueError("--env needs --agent: expert, random, human, smollm2, hf:PATH, …")
    given = agent_options(config, config.agent)
    _tell_training(config.agent, given, console)
    with (
        launched(config) as make,
        contextlib.closing(make(config.agent, given)) as players,
    ):
        options = evaluation_options(config)
        summary = _evaluate(players, str(config.env), out, options, console)
    Console().print(report.summary_table(summary))
    for note in summary["notes"]:
        tables.tell(console, note)
    tables.tell(console, f"The results are in {out}")
    if summary["failed"]:
        console.print(
            f"{summary['failed']} episodes failed (they count as 0): the same command tries them "
            "again.",
            markup=False,
        )
    return 1 if summary["failed"] else 0


def evaluation_options(config: Config) -> EvaluationOptions:
    """The options in a configuration that are for `evaluate`."""
    options = {f.name: getattr(config, f.name) for f in fields(EvaluationOptions)}
    return EvaluationOptions(**options)


def _evaluate(
    players: Players, env: str, out: Path, options: EvaluationOptions, console: Console
) -> dict[str, Any]:
    """An evaluation. A person has no time limit and sees no progress between the observations."""
    if isinstance(players, LocalPlayers) and players.agent.name == "human":
        options, console = replace(options, time_limit=None), Console(quiet=True)
    return evaluate_by(players.player(env, options, console), out, console)


# Suites -----------------------------------------------------------------------------------------


def _run_suite(config: Config, out: Path, console: Console) -> int:
    names = config.agent if config.agent is not None else "expert,random"
    specs = list(dict.fromkeys(spec.strip() for spec in names.split(",") if spec.strip()))
    options = suite.accepted_options({spec: agent_options(config, spec) for spec in specs})
    if config.task_ids is not None or config.split != "test":
        raise ValueError("--task-ids and --split go with --env: a suite decides what it plays")
    environments = suite.load(str(config.suite))
    with_files = any(entry.data for entry in environments.entries)
    if config.data is not None and not with_files:
        raise ValueError(f"the suite {environments.name} plays bundled data only: leave --data out")
    environ = os.environ.get("STEPAGENT_DATA")
    root = config.data or (Path(environ) if environ else None)
    if root is not None and with_files and not root.is_dir():
        source = "--data" if config.data else "STEPAGENT_DATA"
        raise UsageError(f"{source} is {root}, which is no folder: leave it out for bundled data")
    board = suite.Board(environments, specs, out)
    live: dict[str, Players] = {}

    def play(spec: str, entry: suite.Entry, env_args: dict[str, Any], out: Path) -> dict[str, Any]:
        if spec not in live:
            _close(live)  # one at a time: models need memory
            _tell_training(spec, options[spec], console)
            live[spec] = make(spec, options[spec])
        limit = config.limit if config.limit is not None else entry.limit
        evaluation = replace(
            evaluation_options(config), split=entry.split, limit=limit, env_args=env_args
        )
        return _evaluate(live[spec], entry.env, out, evaluation, console)

    try:
        with launched(config) as make:
            try:
                board.play(root, config.env_args, play)
            finally:
                _close(live)
    finally:
        if board.cells:
            tables.terminal([board.table()], board.notes(), Console())
            tables.tell(console, f"The results are in {out}")
    if not board.complete:
        console.print("Incomplete: the same command tries the rest again.", markup=False)
    return 0 if board.complete else 1


def _tell_training(spec: str, given: dict[str, Any], console: Console) -> None:
    """Says how a trained policy is prompted, as far as nobody has chosen it."""
    if spec.startswith("hf:"):  # else a model library may not be installed
        from stepagent.agents import trained

        if note := trained.note(spec, given):
            tables.tell(console, note)


def _close(live: dict[str, Players]) -> None:
    while live:
        live.popitem()[1].close()


main = Command("eval", Config, run, resumes=True)


if __name__ == "__main__":
    sys.exit(main())
