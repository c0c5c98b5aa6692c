"""Trains a policy: `python -m training.run --config FILE.yaml --key value`.

Expert trajectories → SFT → one method → scores on unseen tasks. The run's directory holds
everything (`training/runs/directory.py`); the same command again resumes a run that was stopped.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from stepagent import command_line
from stepagent.training import methods
from stepagent.training.config import Config


def run(config: Config, console: Console | None = None) -> dict[str, Any]:
    """A complete run; returns what `summary.json` holds. Raises ValueError, RunError, OSError."""
    from stepagent.training.runs import sharding
    from stepagent.training.runs.training_run import TrainingRun

    check(config)
    sharding.check_launch(config.policy.device)
    method = methods.find(config.method)
    training_run = TrainingRun(config, console or Console(quiet=True))
    training_run.check_space(method.policies_on_disk(config))
    method.learn(training_run)
    return training_run.finish()


def check(config: Config) -> None:
    """Raises ValueError for options that cannot work, as far as they alone tell."""
    from stepagent.training.runs.validation import check_options

    check_options(config)
    methods.find(config.method).check(config)


def main(argv: Sequence[str] | None = None) -> int:
    config = command_line.parse(Config, argv, prog="python -m training.run")
    console = Console()
    options = {name.replace("-", "_") for name in _options(argv)}
    has_env_args = any(name.startswith("env_args") for name in options)
    if "env" in options and "config" in options and not has_env_args:
        _drop_foreign_arguments(config, argv, console)
    from stepagent.eval.results import ResultsError
    from stepagent.training.runs.directory import RunError
    from stepagent.training.runs.optimise import TrainingDiverged

    try:
        summary = run(config, console)
    except (ValueError, OSError, RunError, ResultsError, TrainingDiverged) as error:
        print(f"training.run: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command resumes from here", file=sys.stderr)
        return 130
    from stepagent.training.runs import processes

    if not processes.is_main():
        return 0
    console.print(
        f"\nThe run is in {config.output}: final/ (the policy), summary.json, metrics.jsonl, "
        f"TensorBoard events (tensorboard --logdir {config.output}), all episodes under eval/.\n"
        f"It took {summary['seconds'] / 60:.1f} minutes. Next:\n"
        f"  python -m eval.run --env {config.env} --agent hf:{summary['final']} --split dev "
        f"--out {config.output}/eval/dev{_flags(config, summary)}\n"
        f"  python -m training.run --config {config.output}/config.yaml --seed {config.seed + 1} "
        f"--output {config.output}-seed-{config.seed + 1}",
        markup=False,
        soft_wrap=True,
    )
    return 0


def _options(argv: Sequence[str] | None) -> list[str]:
    """The names of the options on a command line."""
    words = sys.argv[1:] if argv is None else argv
    return [word[2:].split("=")[0] for word in words if word.startswith("--")]


def _drop_foreign_arguments(config: Config, argv: Sequence[str] | None, console: Console) -> None:
    """`--env` on the command line: the file's `env_args` belong to another environment."""
    words = list(sys.argv[1:] if argv is None else argv)
    at = next(i for i, word in enumerate(words) if word.split("=")[0] == "--config")
    option = words[at : at + 1] if "=" in words[at] else words[at : at + 2]
    file = command_line.parse(
        Config, [*option, f"--output={config.output}"], prog="python -m training.run"
    )
    if file.env != config.env and config.env_args:
        console.print(
            f"env_args of the file are for {file.env}, and ignored: {config.env_args}", markup=False
        )
        config.env_args = {}


def _flags(config: Config, summary: dict[str, Any]) -> str:
    """The options with which `eval.run` writes its prompts as this run did."""
    flags = [f"--env-args.{k} {v}" for k, v in config.env_args.items()]
    flags += [
        f"--no-{k}" for k in ("instruction", "example", "thoughts") if not getattr(config.prompt, k)
    ]
    if suffix := summary["prompt"]["suffix"]:
        flags.append(f"--agent-args.suffix {shlex.quote(suffix)}")
    return "".join(f" {flag}" for flag in flags)


if __name__ == "__main__":
    sys.exit(main())
