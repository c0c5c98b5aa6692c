"""Trains a policy: `python -m training.run --config FILE.yaml --key value`.

Expert trajectories → SFT → one method → scores on unseen tasks. The run's directory says
everything (`training/rundir.py`); the same command again goes on with a run that was stopped.
"""

from __future__ import annotations

import importlib
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from stepagent import command_line
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


def main(argv: Sequence[str] | None = None) -> int:
    config = command_line.parse(Config, argv, prog="python -m training.run")
    console = Console()
    given = {name.replace("-", "_") for name in _options(argv)}
    if "env" in given and "config" in given and not any(n.startswith("env_args") for n in given):
        _drop_foreign_arguments(config, argv, console)
    from stepagent.eval.results import ResultsError
    from stepagent.training.loop import TrainingDiverged
    from stepagent.training.rundir import RunError

    try:
        summary = run(config, console)
    except (ValueError, OSError, RunError, ResultsError, TrainingDiverged) as error:
        print(f"training.run: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    from stepagent.training import processes

    if not processes.is_main():
        return 0
    console.print(
        f"\nThe run lies in {config.output}: final/ (the policy), summary.json, metrics.jsonl, "
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
    """`--env` on the command line: the file's `env_args` were another environment's."""
    words = list(sys.argv[1:] if argv is None else argv)
    at = next(i for i, word in enumerate(words) if word.split("=")[0] == "--config")
    named = words[at : at + 1] if "=" in words[at] else words[at : at + 2]
    file = command_line.parse(
        Config, [*named, f"--output={config.output}"], prog="python -m training.run"
    )
    if file.env != config.env and config.env_args:
        console.print(
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


if __name__ == "__main__":
    sys.exit(main())
