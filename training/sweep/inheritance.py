"""SFT that runs of a sweep share: one run trains it, the others begin with a copy."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

from stepagent import command_line
from stepagent.agents import nano
from stepagent.files import is_file, read_object, read_text
from stepagent.training.config import Config
from stepagent.training.runs.directory import BASE, ORIGIN
from stepagent.training.runs.options import differing

_SFT_OPTIONS = {"env", "env_args", "seed", "prompt", "policy", "expert", "sft", "evaluation"}
"""Options that SFT depends on."""
_UNFINISHED = shutil.ignore_patterns("*.partial", "*.old")
"""What the other run may just be writing."""


def sft_of(config: Config) -> str:
    """A name for the SFT of a run: runs with the same one can share it; "" without any."""
    if not config.sft.epochs:
        return ""
    options = dataclasses.asdict(config)
    return json.dumps({key: options[key] for key in sorted(_SFT_OPTIONS)}, sort_keys=True)


def has_sft(directory: Path) -> bool:
    """Whether the run there is past its SFT."""
    return "sft" in read_object(directory / "stages.json").get("done", ())


def inherit_sft(config: Config, output: Path) -> None:
    """Starts a run from the SFT of another one in this sweep with the same options, if any.

    Copied are the expert's trajectories, the base of a model from scratch, the policy after SFT and
    its scores: bit for bit what the run itself would have produced.
    """
    target = Path(config.output)
    if target.exists() or not config.sft.epochs:
        return
    options = command_line.dump(config)
    for path in sorted((output / "runs").glob("*/stages.json")):
        source = path.parent
        if source.suffix == ".partial" or not is_file(source / "config.yaml"):
            continue  # a run that is still being set up
        changes = differing(read_text(source / "config.yaml"), options)
        if {key.split(".")[0] for key in changes} & _SFT_OPTIONS:
            continue
        if not (source / "policies/sft").is_dir():
            continue
        state = read_object(path)
        if "sft" not in state.get("done", ()):
            continue
        origin = read_object(source / ORIGIN)
        if origin and origin != nano.origin(config.policy.model):
            continue  # another model of the same name
        partial = target.with_name(target.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        for name in ("expert", "expert-dev", BASE, "policies/sft", "eval/sft"):
            if (source / name).is_dir():
                shutil.copytree(source / name, partial / name, ignore=_UNFINISHED)
        if origin:
            (partial / ORIGIN).write_text(json.dumps(origin))
        (partial / "config.yaml").write_text(options)
        after_sft = {"done": ["sft"], "seconds": 0.0} | {
            key: {"sft": state[key]["sft"]}
            for key in ("figures", "budget")
            if "sft" in state.get(key, {})
        }
        (partial / "stages.json").write_text(json.dumps(after_sft))
        os.rename(partial, target)
        return
