"""`stepagent convert FILE … --out FILE`: trajectories of other projects, and for them.

Reads every layout of `envs.layouts`, recognised by its contents, and writes our trajectories or one
of the layouts of `training.convert.exports`. What comes from others is played again where its task
can be found. Beside the output, `OUT.report.json` says of every record that could not be
understood which it was and why, and where replays differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from stepagent.command_line import Command
from stepagent.errors import check_range
from stepagent.eval.recorded_env import import_modules
from stepagent.files import write_text
from stepagent.training.convert.converter import Converter
from stepagent.training.convert.exports import EXPORTS, Conversations, write_rows
from stepagent.training.convert.options import Config
from stepagent.training.convert.report import Report, show
from stepagent.training.convert.step_pairs import step_pairs


def convert(config: Config) -> Report:
    """Converts; returns the report, which is also written.

    Raises ValueError for what cannot be read or converted at all (nothing is written then).
    """
    import_modules(config.modules)
    out, converter = _checked_out(config), Converter(config)
    trajectories = converter.trajectories(config.files)
    rows: Iterator[dict[str, Any]]
    try:
        if config.to == "step-pairs":
            rows = (row for folder in config.files for row in step_pairs(Path(folder)))
        elif config.to == "trajectories":
            rows = (asdict(t) for t in trajectories)
        else:
            conversations = Conversations(config.prompt, config.env_args)
            rows = EXPORTS[config.to](trajectories, conversations)
        converter.report.rows = write_rows(out, _at_least_one(rows, converter.report))
    finally:
        converter.close()
    path = config.report or out.with_name(out.name + ".report.json")
    text = json.dumps(vars(converter.report), indent=2, ensure_ascii=False)
    write_text(path, text + "\n")
    return converter.report


def _checked_out(config: Config) -> Path:
    if not config.files or config.out is None:
        raise ValueError("name the files to read and the one to write: FILE … --out FILE.jsonl")
    suffixes = (".jsonl",) if config.to == "trajectories" else (".jsonl", ".parquet")
    if config.out.suffix not in suffixes:
        raise ValueError(f"out is {config.out}: it must end in {' or '.join(suffixes)}")
    if config.out.resolve() in (Path(name).resolve() for name in config.files):
        raise ValueError(f"{config.out} is to be read and written: choose another --out")
    check_range(1, limit=config.limit)
    if config.reward is not None and not 0 <= config.reward <= 1:
        raise ValueError(f"reward is {config.reward}: it must be from 0 to 1")
    return config.out


def _at_least_one(rows: Iterator[dict[str, Any]], report: Report) -> Iterator[dict[str, Any]]:
    """The rows. Raises ValueError where there is none, with the reasons."""
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty and not report.records:
        raise ValueError("the runs hold no pair: the agent acts as the expert everywhere")
    if empty:
        reasons = "; ".join(f"{n}× {reason}" for reason, n in report.not_understood.most_common(3))
        raise ValueError(f"none of {report.records} records could be converted: {reasons}")


def run(config: Config) -> int:
    report = convert(config)
    show(report, Path(str(config.out)), Console())
    return 1 if report.not_understood else 0


main = Command("convert", Config, run, positional="files")
