"""Finished runs as data, so that a sweep can continue without their folders.

A sweep writes `finished.jsonl`, a line for each run that is done: its digest, and of its results
what the report reads. Another sweep that has a run of the same digest takes it from there
(`known`), in place of doing it again.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stepagent.eval import agreement
from stepagent.eval.agreement import MEASURES, TrajectoryAgreement
from stepagent.files import is_file, parse_json, read_text, write_text
from stepagent.training.runs.budget import Budget
from stepagent.training.sweep.job import SUMMARY
from stepagent.training.sweep.planning import Sweep, SweepError, all_runs
from stepagent.training.sweep.results import TASKS, Result, of_dev, read

FINISHED = "finished.jsonl"
"""The file of a sweep's directory."""
FORMAT = 1
"""Version of its lines."""
_DIGITS = 5
"""Decimal places of losses."""
_WRONG = (ValueError, KeyError, TypeError, AttributeError, OverflowError)
"""What reading a line that is damaged may raise."""


def write(sweep: Sweep) -> None:
    """Adds the runs that are done to the file, each once. Lines of runs that are no longer in the
    sweep, or whose folder is gone, stay."""
    output = Path(sweep.output)
    lines = {}
    if is_file(path := output / FINISHED):
        lines = {line["digest"]: line for line in _whole_lines(path)}
    for run in all_runs(sweep):
        result = read(run, output)
        if result.final is not None:
            lines[run.digest] = _line(result)
    write_text(path, "".join(f"{json.dumps(line)}\n" for line in lines.values()))


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The lines that can be read."""
    lines = []
    for text in read_text(path, errors="replace").splitlines():
        try:
            _checked(line := parse_json(text))
        except _WRONG:
            continue
        lines.append(line)
    return lines


def _line(result: Result) -> dict[str, Any]:
    scored = [stage for stage in result.stages if stage in result.scores]
    dev = {"sft": dict(result.dev)} if result.dev else {}
    return {
        "format": FORMAT,
        "run": result.run.name,
        "digest": result.run.digest,
        "stepagent": version("stepagent"),
        "summary": {
            "scores": {stage: {"reward_mean": result.scores[stage] / 100} for stage in scored},
            "figures": {stage: {} for stage in result.stages} | dev,
            "seconds": round(60 * result.minutes, 1),
            "agreement": {
                stage: {measure: figures[measure] for measure in MEASURES}
                for stage, figures in result.agreement.items()
                if stage in scored
            },
            "budget": result.budget,
            "origin": result.origin,
        },
        "tasks": {stage: result.task_scores(stage) for stage in scored},
        "agreement": {
            stage: [
                {**asdict(row), "losses": [round(loss, _DIGITS) for loss in row.losses]}
                for row in rows.values()
            ]
            for stage in scored
            if (rows := result.readings(stage))
        },
    }


def adopt(sweep: Sweep) -> list[str]:
    """Puts what the sweep's `known` files hold of its runs into its directory, as if they had been
    done there. Runs that have a folder are left as they are. Returns the names of those taken.

    Raises SweepError for a file that is missing or damaged, before anything is written.
    """
    output = Path(sweep.output)
    known = {line["digest"]: line for file in sweep.known for line in _read(Path(file))}
    taken = []
    for run in all_runs(sweep) if known else ():
        folder = run.directory(output)
        if run.digest in known and not folder.exists() and _unpack(known[run.digest], folder):
            taken.append(run.name)
    return taken


def _read(path: Path) -> list[dict[str, Any]]:
    if not is_file(path):
        raise SweepError(f"known: {path} does not exist")
    lines = []
    for number, text in enumerate(read_text(path, errors="replace").splitlines(), 1):
        try:
            lines.append(_checked(parse_json(text)))
        except _WRONG as error:
            raise SweepError(f"known: {path}, line {number}, is not a run: {error!r}") from None
    return lines


def _checked(line: dict[str, Any]) -> dict[str, Any]:
    """The line with every value converted. Raises one of `_WRONG` where one cannot be."""
    if line["format"] != FORMAT:
        raise ValueError(f"format {line['format']!r} is not {FORMAT}")
    summary, figures = line["summary"], line["summary"]["figures"]
    stages = [_stage(stage) for stage in figures]
    scores = {
        s: {"reward_mean": _number(row["reward_mean"])} for s, row in summary["scores"].items()
    }
    if not scores or not {*scores, *line["tasks"], *line["agreement"]} <= {*stages}:
        raise ValueError(f"scores of {sorted(scores)} with the stages {stages}")
    dev = {name: _number(value) for name, value in of_dev(figures).items()}
    budget = summary["budget"]
    return {
        "digest": str(line["digest"]),
        "summary": {
            "scores": scores,
            "figures": {stage: {} for stage in stages} | ({"sft": dev} if dev else {}),
            "seconds": _number(summary["seconds"]),
            "agreement": {
                _stage(stage): {measure: _number(of[measure]) for measure in MEASURES}
                for stage, of in summary["agreement"].items()
            },
            "budget": budget and asdict(Budget(**{k: _number(v) for k, v in budget.items()})),
            "origin": {str(key): str(value) for key, value in summary["origin"].items()},
        },
        "tasks": {
            s: {str(t): _number(x) for t, x in of.items()} for s, of in line["tasks"].items()
        },
        "agreement": {s: [_agreement(row) for row in of] for s, of in line["agreement"].items()},
    }


def _stage(name: Any) -> str:
    if not re.fullmatch(r"[\w-]{1,80}", name):
        raise ValueError(f"{name!r} is not a stage")
    return str(name)


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a number")
    return value


def _agreement(row: dict[str, Any]) -> TrajectoryAgreement:
    return TrajectoryAgreement.of({**row, "losses": [_number(loss) for loss in row["losses"]]})


def _unpack(line: dict[str, Any], folder: Path) -> bool:
    """Makes the run's folder. False where another process was faster."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".known-", dir=folder.parent))
    try:
        for stage, scores in line["tasks"].items():
            write_text(partial / "eval" / stage / TASKS, json.dumps(scores))
        for stage, rows in line["agreement"].items():
            agreement.save(partial / "eval" / stage, rows)
        write_text(partial / SUMMARY, json.dumps(line["summary"], indent=1))
        partial.chmod(0o755)  # temporary folders are the user's alone
        os.rename(partial, folder)
    except OSError:
        if not folder.exists():
            raise
        return False
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True
