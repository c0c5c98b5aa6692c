"""Trains a policy: `stepagent train --config FILE.yaml --key value`.

Expert trajectories → SFT → one method → scores on unseen tasks. The run's directory says
everything (`training/rundir.py`); the same command again goes on with a run that was stopped.
"""

from __future__ import annotations

import importlib
import shlex
import sys
from typing import Any

from rich.console import Console

from stepagent import command_line
from stepagent.command_line import Command
from stepagent.errors import UserError
from stepagent.training.config import Config

METHODS = {
    "sft": "stepagent.training.sft:learn",
    "implicit": "stepagent.training.implicit:learn",
    "inverse": "stepagent.training.inverse:learn",
    "ppo": "stepagent.training.ppo:learn",
    "dpo": "stepagent.training.dpo:learn",
    "rft": "stepagent.training.rft:learn",
    "spin": "stepagent.training.spin:learn",
    "nat": "stepagent.training.nat:learn",
    "eto": "stepagent.training.eto:learn",
}
"""Method → its function of a session. One file a method."""
CONFIGS = "stepagent.training"
"""Package with the shipped configurations."""


def run(config: Config, console: Console | None = None) -> dict[str, Any]:
    """A whole run; returns what `summary.json` holds. Raises ValueError, RunError, OSError."""
    from stepagent.training import sharding
    from stepagent.training.session import Session

    check(config)
    sharding.check_launch(config.policy.device)
    module, function = METHODS[config.method].split(":")
    learn = getattr(importlib.import_module(module), function)
    session = Session(config, console or Console(quiet=True))
    learn(session)
    return session.finish()


def check(config: Config) -> None:
    """Raises ValueError for options that cannot work, as far as they alone tell.

    A method's module may have a `check` of its own beside its `learn`.
    """
    from stepagent.training.checks import check_options

    check_options(config)
    module = importlib.import_module(METHODS[config.method].split(":")[0])
    if hasattr(module, "check"):
        module.check(config)


def _train(config: Config) -> int:
    console = Console()
    try:
        summary = run(config, console)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    from stepagent.training import processes

    if not processes.is_main():
        return 0
    console.print(
        f"\nThe run lies in {config.output}: final/ (the policy), summary.json, metrics.jsonl, "
        f"TensorBoard events (tensorboard --logdir {config.output}), all episodes under eval/.\n"
        f"It took {summary['seconds'] / 60:.1f} minutes. Next:\n"
        f"  stepagent eval --env {config.env} --agent hf:{summary['final']} --split dev "
        f"--out {config.output}/eval/dev{_flags(config, summary)}\n"
        f"  stepagent train --config {config.output}/config.yaml --seed {config.seed + 1} "
        f"--output {config.output}-seed-{config.seed + 1}",
        markup=False,
        soft_wrap=True,
    )
    return 0


def _drop_foreign_arguments(config: Config, words: list[str]) -> None:
    """`--env` on the command line: the file's `env_args` were another environment's."""
    names = [word[2:].split("=")[0].replace("-", "_") for word in words if word.startswith("--")]
    if "env" not in names or "config" not in names or any(n.startswith("env_args") for n in names):
        return
    at = next(i for i, word in enumerate(words) if word.split("=")[0] == "--config")
    named = words[at : at + 1] if "=" in words[at] else words[at : at + 2]
    arguments = [*named, f"--output={config.output}"]
    file = command_line.parse(Config, arguments, prog="stepagent train", configs=CONFIGS)
    if file.env != config.env and config.env_args:
        Console().print(
            f"env_args of the file are for {file.env} and left out: {config.env_args}", markup=False
        )
        config.env_args = {}


def _flags(config: Config, summary: dict[str, Any]) -> str:
    """The options that make `eval.run` write its prompts as this run did."""
    flags = [f"--env-args.{k} {v}" for k, v in config.env_args.items()]
    flags += [
        f"--no-{k}" for k in ("instruction", "example", "thoughts") if not getattr(config.prompt, k)
    ]
    if suffix := summary["prompt"]["suffix"]:
        flags.append(f"--agent-args.suffix {shlex.quote(suffix)}")
    return "".join(f" {flag}" for flag in flags)


main = Command(
    "train", Config, _train, resumes=True, configs=CONFIGS, adjust=_drop_foreign_arguments
)


if __name__ == "__main__":
    sys.exit(main())
