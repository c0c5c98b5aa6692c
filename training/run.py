"""Trains a policy: `stepagent train --config FILE.yaml --key value`.

Expert trajectories → SFT → one method → scores on unseen tasks. The run's directory holds
everything (`training/runs/directory.py`); the same command again resumes a run that was stopped.
"""

from __future__ import annotations

import copy
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from stepagent import command_line
from stepagent.command_line import Command
from stepagent.training import methods
from stepagent.training.config import Config, PreferenceConfig

if TYPE_CHECKING:
    from stepagent.training.runs.training_run import TrainingRun

CONFIGS = "stepagent.training"
"""Package with the shipped configurations."""


def run(config: Config, console: Console | None = None) -> dict[str, Any]:
    """A complete run; returns what `summary.json` holds. Raises ValueError, RunError, OSError."""
    from stepagent.training.runs import sharding
    from stepagent.training.runs.training_run import TrainingRun

    methods.apply_variant(config, ())
    check(config)
    sharding.check_launch(config.policy.device)
    sharding.check_kept_optimiser(config.preference.keep_optimiser)
    method = methods.find(config.method)
    training_run = TrainingRun(config, console or Console(quiet=True), method.check_files)
    try:
        training_run.check_space(_policies_on_disk(config))
        method.learn(training_run)
        if _has_control(config):
            _train_matched_sft(training_run)
        return training_run.finish()
    finally:
        training_run.close()


def _has_control(config: Config) -> bool:
    return config.evaluation.matched_sft and config.method != "sft"


def _policies_on_disk(config: Config) -> int:
    """Policies that the run keeps at most, those of its control included."""
    kept = methods.find(config.method).policies_on_disk(config)
    if _has_control(config):
        # With a `final` and an `entering`, as they are counted for any run.
        kept += methods.find("sft").policies_on_disk(config) + 2
    return kept


def _train_matched_sft(training_run: TrainingRun) -> None:
    """Trains and scores the control: SFT alone, on the same trajectories and as many tokens. It is
    a run of its own in the run's folder, so it resumes like one."""
    from stepagent.training.runs.directory import RunError
    from stepagent.training.runs.expert import trajectories_file
    from stepagent.training.runs.scores import MATCHED

    used, config = training_run.budget(), copy.deepcopy(training_run.config)
    if used is None:
        raise RunError(
            f"{config.output} does not say on how many tokens it was trained (an earlier version "
            "made it), which evaluation.matched_sft has to know"
        )
    config.expert.trajectories = str(trajectories_file(config, Path(config.output)))
    config.output, config.method = str(Path(config.output) / MATCHED), "sft"
    config.sft.tokens, config.sft.patience = round(used["tokens"]), 0
    config.preference = PreferenceConfig()
    config.evaluation.matched_sft, config.evaluation.agents = False, []
    config.push_to_hub = ""
    if not (Path(config.output) / "summary.json").is_file():
        training_run.console.print(f"{MATCHED}: SFT alone on {config.sft.tokens:,} tokens …")
    run(config)


def check(config: Config) -> None:
    """Raises ValueError for options that cannot work, as far as they alone tell."""
    from stepagent.training.runs.validation import check_episodes_differ, check_options

    check_options(config)
    method = methods.find(config.method)
    check_episodes_differ(method.samples(config), method.temperature(config))
    if config.preference.trajectories and not method.takes_files:
        raise ValueError(
            f"preference.trajectories is for dpo, eto and implicit; {config.method} does not learn "
            "from it"
        )
    if method.compares and config.rollouts.unlabelled:
        raise ValueError(
            f"method {config.method} compares episodes with the expert's of the same task: "
            "rollouts.unlabelled must be 0"
        )
    if config.reflection.off_policy_iterations and not method.practises_ahead:
        raise ValueError(
            f"reflection.off_policy_iterations is for implicit and inverse; {config.method} does "
            "not practise ahead"
        )
    method.check(config)
    if config.evaluation.matched_sft and not config.sft.epochs:
        raise ValueError(
            "evaluation.matched_sft is for methods that go on from SFT (sft.epochs at least 1)"
        )


def _train(config: Config) -> int:
    console = Console()
    summary = run(config, console)
    from stepagent.training.runs import processes

    if not processes.is_main():
        return 0
    console.print(
        f"\nThe run is in {config.output}: final/ (the policy), summary.json, metrics.jsonl, "
        f"TensorBoard events (tensorboard --logdir {config.output}), all episodes under eval/.\n"
        f"It took {summary['seconds'] / 60:.1f} minutes. Next:\n"
        f"  stepagent eval --env {config.env} --agent hf:{summary['final']} --split dev "
        f"--out {config.output}-dev{_flags(config)}\n"
        f"  stepagent train --config {config.output}/config.yaml --seed {config.seed + 1} "
        f"--output {config.output}-seed-{config.seed + 1}",
        markup=False,
        soft_wrap=True,
    )
    return 0


def _adjust(config: Config, words: list[str]) -> None:
    """A variant's name becomes its method and options, which the command line may change."""
    names = [word[2:].split("=")[0].replace("-", "_") for word in words if word.startswith("--")]
    methods.apply_variant(config, names)
    _drop_foreign_arguments(config, words, names)


def _drop_foreign_arguments(config: Config, words: list[str], names: list[str]) -> None:
    """`--env` on the command line: the file's `env_args` belong to another environment."""
    if "env" not in names or "config" not in names or any(n.startswith("env_args") for n in names):
        return
    at = next(i for i, word in enumerate(words) if word.split("=")[0] == "--config")
    option = words[at : at + 1] if "=" in words[at] else words[at : at + 2]
    arguments = [*option, f"--output={config.output}"]
    file = command_line.parse(Config, arguments, prog="stepagent train", configs=CONFIGS)
    if file.env != config.env and config.env_args:
        Console().print(
            f"env_args of the file are for {file.env} and ignored: {config.env_args}", markup=False
        )
        config.env_args = {}


def _flags(config: Config) -> str:
    """The options with which `stepagent eval` plays this run's tasks. How to prompt the policy is
    said beside its weights."""
    return "".join(
        f" --env-args.{k} {shlex.quote(v if isinstance(v, str) else json.dumps(v))}"
        for k, v in config.env_args.items()
    )


main = Command("train", Config, _train, resumes=True, configs=CONFIGS, adjust=_adjust)


if __name__ == "__main__":
    sys.exit(main())
