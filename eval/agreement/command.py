"""The command line: any local models on the expert's episodes of a split."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from stepagent import agents, envs
from stepagent.agents.models import EMBEDDED
from stepagent.command_line import Command
from stepagent.envs.trajectory import Trajectory, read
from stepagent.eval import agreement, tables
from stepagent.eval.agreement.tables import NOTE, differences_table, figures_table
from stepagent.eval.evaluate import EvaluationOptions, evaluate
from stepagent.eval.recorded_env import check_id, recorded_arguments, safe_arguments
from stepagent.eval.results import ResultsError
from stepagent.eval.suite import folder_of
from stepagent.files import read_object, write_text


@dataclass
class Config:
    """Measures how far policies agree with the expert on episodes they have not learned from."""

    policies: list[str]
    """Local models: folders (adapters too), hub ids, smollm2 or nano. Of several, all others are
    compared with the first. The folder of a training run stands for its final policy; env, env_args
    and prompt are then those of the run where no option says otherwise."""
    env: str | None = None
    """Environment whose expert plays; module:Namespace/Name-v0 for a custom one. null: that of the
    trajectories, or of the first training run."""
    trajectories: Path | None = None
    """File with an expert's trajectories, to be read instead of those that the environment's own
    expert plays."""
    split: Literal["train", "dev", "test"] = "dev"
    """Split whose tasks the expert plays. On train, agreement says how much was learned by
    heart."""
    limit: int | None = None
    """Number of tasks, chosen as in `stepagent eval`. null: all."""
    min_reward: float = 1.0
    """Trajectories that scored less are left out."""
    seed: int = 0
    """Seed of the expert's episodes."""
    env_args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the environment."""
    agent_args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the policies, such as --agent-args.device cpu."""
    instruction: bool | None = None
    """Begin with the environment's instruction. null: as the training run did, else on."""
    example: bool | None = None
    """Show the one-shot example. null: as the training run did, else on."""
    thoughts: bool | None = None
    """Replies are a thought and an action. Off: only the action. null: as the training run did,
    else on."""
    out: Path | None = None
    """Directory for the expert's episodes (expert/), table.json, and the figures of every
    trajectory: with one policy in the directory itself, with several in a folder for each. If it is
    a directory of `stepagent eval`, `stepagent compare` shows the figures too. null:
    runs/agreement/ENVIRONMENT-SPLIT."""


@dataclass(frozen=True)
class Policy:
    """What a name on the command line stands for."""

    spec: str
    """As `agents.make_agent` takes it."""
    run: dict[str, Any]
    """Summary of the training run that the folder holds; {} where it is none."""

    @staticmethod
    def of(name: str) -> Policy:
        folder = Path(name.removeprefix("hf:"))
        run = read_object(folder / "summary.json") if (folder / "final").is_dir() else {}
        if name in EMBEDDED:
            return Policy(name, {})
        return Policy(f"hf:{folder / 'final' if run else folder}", run)


def run(config: Config) -> int:
    if not config.policies:
        raise ValueError("name at least one policy: stepagent agreement POLICY … --env ID")
    policies = {name: Policy.of(name) for name in config.policies}
    folders = {folder_of(name): name for name in policies}
    if len(folders) < len(policies):
        raise ValueError(f"two of these policies have the same folder: {', '.join(policies)}")
    held_out = HeldOut.of(config, next((p.run for p in policies.values() if p.run), {}))
    summaries, readings = {}, {}
    for folder, name in folders.items():
        rows, left_out = held_out.read_by(policies[name], config)
        where = held_out.out if config.out and len(policies) == 1 else held_out.out / folder
        summaries[name] = agreement.save(where, rows, left_out)
        readings[name] = {row.task_id: row for row in rows}
    first, *others = readings
    gains = {name: agreement.differences(readings[first], readings[name]) for name in others}
    result = {
        "env": held_out.env,
        "env_args": held_out.env_args,
        "split": config.split,
        "policies": {name: asdict(summary) for name, summary in summaries.items()},
        "compared_with": first,
        "differences": {n: {m: asdict(d) for m, d in of.items()} for n, of in gains.items()},
    }
    table = (where if len(policies) == 1 else held_out.out) / "table.json"
    write_text(table, json.dumps(result, indent=1))
    title = f"{held_out.env}, split {config.split}: agreement with the expert"
    shown = [figures_table(title, summaries)]
    if gains:
        shown.append(differences_table({f"{n} − {first}": of for n, of in gains.items()}))
    tables.terminal(shown, [NOTE], Console())
    tables.tell(Console(stderr=True), f"The figures are in {table.parent}")
    return 0


@dataclass(frozen=True)
class HeldOut:
    """The expert's trajectories that the policies read."""

    env: str
    env_args: dict[str, Any]
    trajectories: list[Trajectory]
    out: Path
    """Where the figures go."""

    @staticmethod
    def of(config: Config, trained: dict[str, Any]) -> HeldOut:
        """What the options say, else the summary of a training run."""
        from_file = _of_file(config, config.trajectories) if config.trajectories else []
        env = config.env or (from_file[0].env if from_file else trained.get("env"))
        if not env:
            raise ValueError(
                f"--env is missing, and {', '.join(config.policies)} is no training run that says "
                "it: the environment whose expert is read"
            )
        if not config.env:
            check_id(env, str(config.trajectories or "the run's summary.json"))
        env_args = config.env_args
        if not env_args and from_file:
            source = str(config.trajectories)
            recorded = recorded_arguments(from_file[0].fingerprint, source)
            env_args = safe_arguments(recorded, source, {})
        elif not env_args and env == trained.get("env"):
            env_args = safe_arguments(trained.get("env_args") or {}, "the run's summary.json", {})
        task_set = re.sub(r"-v\d+$", "", env.rpartition("/")[2])
        out = config.out or Path("runs", "agreement", folder_of(f"{task_set}-{config.split}"))
        trajectories = from_file or _played(config, env, env_args, out / "expert")
        if not trajectories:
            raise ResultsError(
                f"none of the expert's episodes in {out / 'expert'} scored {config.min_reward}: "
                "lower --min-reward"
            )
        return HeldOut(env, env_args, trajectories, out)

    def read_by(
        self, policy: Policy, config: Config
    ) -> tuple[list[agreement.TrajectoryAgreement], int]:
        """As `agreement.measure`."""
        env = envs.make(self.env, **{**self.env_args, "split": config.split})
        model: Any = agents.make_agent(policy.spec, **_options(config, policy))
        try:
            return agreement.measure(
                model.model, model.codec, self.trajectories, env.prompt, model.style, model.context
            )
        finally:
            model.close()
            env.close()


def _options(config: Config, policy: Policy) -> dict[str, Any]:
    """Options of a policy's agent: its prompt as in training, unless the command says otherwise."""
    style = {name: getattr(config, name) for name in ("instruction", "example", "thoughts")}
    chosen = {name: value for name, value in style.items() if value is not None}
    return {"max_new_tokens": 1, **policy.run.get("prompt", {}), **chosen, **config.agent_args}


def _of_file(config: Config, path: Path) -> list[Trajectory]:
    """The file's trajectories of the split. Raises ResultsError where there is none, or where they
    are of several environments."""
    everything = read(path)
    chosen = [
        t
        for t in everything
        if t.split == config.split and t.env == (config.env or t.env) and _is_good(t, config)
    ]
    if not chosen or len({t.env for t in chosen}) > 1:
        names = sorted({f"{t.env}, split {t.split}" for t in everything})
        raise ResultsError(
            f"{path} holds {len(chosen)} trajectories of split {config.split} that scored "
            f"{config.min_reward} or more; it has {'; '.join(names) or 'none at all'}: choose one "
            "environment and split by --env and --split"
        )
    return chosen[: config.limit]


def _played(config: Config, env_id: str, env_args: dict[str, Any], out: Path) -> list[Trajectory]:
    """The episodes of the environment's own expert; a run that was stopped resumes."""
    options = EvaluationOptions(
        split=config.split, limit=config.limit, seed=config.seed, env_args=env_args
    )
    player = agents.make_agent("expert")
    try:
        evaluate(env_id, player, out, options, console=Console(stderr=True))
    finally:
        player.close()
    played = read(out / "results.jsonl")
    return sorted((t for t in played if _is_good(t, config)), key=lambda t: (t.task_id, t.seed))


def _is_good(trajectory: Trajectory, config: Config) -> bool:
    return not trajectory.error and trajectory.reward >= config.min_reward - 1e-9


main = Command("agreement", Config, run, positional="policies", resumes=True)
