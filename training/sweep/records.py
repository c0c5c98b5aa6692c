"""Finished runs as data, so that a sweep goes on where their folders are not.

A sweep writes `finished.jsonl`, a line for each run that is done: its digest, and of its results
what the report reads. Another sweep that has a run of the same digest takes it from there
(`known`), in place of doing it again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stepagent.eval import agreement
from stepagent.eval.agreement import TrajectoryAgreement
from stepagent.files import is_file, parse_json, read_text, write_text
from stepagent.training.sweep.planning import SweepError, SweepRun
from stepagent.training.sweep.results import SUMMARY, TASKS, Result

FINISHED = "finished.jsonl"
"""The file of a sweep's directory."""
FORMAT = 1
"""Version of its lines."""
_DIGITS = 5
"""Of losses, after the point."""


def write(results: Iterable[Result], output: Path) -> None:
    """Writes the runs that are done, each once."""
    lines = {r.run.digest: json.dumps(_line(r)) for r in results if r.final is not None}
    write_text(output / FINISHED, "".join(f"{line}\n" for line in lines.values()))


def _line(result: Result) -> dict[str, Any]:
    scored = [stage for stage in result.stages if stage in result.scores]
    return {
        "format": FORMAT,
        "run": result.run.name,
        "digest": result.run.digest,
        "stepagent": version("stepagent"),
        "summary": {
            "scores": {name: {"reward_mean": s / 100} for name, s in result.scores.items()},
            "figures": {stage: {} for stage in result.stages}
            | ({} if result.dev_draw is None else {"sft": {"dev_draw": float(result.dev_draw)}}),
            "seconds": round(60 * result.minutes, 1),
            "agreement": result.agreement,
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


def adopt(runs: Iterable[SweepRun], files: Sequence[str], output: Path) -> list[str]:
    """Puts what the files know of these runs into the sweep's directory, as if they had been done
    there; those that have a folder are left as they are. Returns the names of those taken.

    Raises SweepError for a file that is missing or damaged, before anything is written.
    """
    known = {line["digest"]: line for file in files for line in _read(Path(file))}
    taken = []
    for run in runs:
        folder = run.directory(output)
        if run.digest in known and not folder.exists():
            _unpack(known[run.digest], folder)
            taken.append(run.name)
    return taken


def _read(path: Path) -> list[dict[str, Any]]:
    if not is_file(path):
        raise SweepError(f"known: {path} does not exist")
    lines = []
    for number, text in enumerate(read_text(path).splitlines(), 1):
        try:
            lines.append(_checked(parse_json(text)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SweepError(f"known: {path}, line {number}, is no run: {error!r}") from None
    return lines


def _checked(line: dict[str, Any]) -> dict[str, Any]:
    """The line, with its agreements read. Raises ValueError, KeyError, TypeError or AttributeError
    where it is none."""
    if line["format"] != FORMAT:
        raise ValueError(f"format {line['format']!r} is not {FORMAT}")
    summary, tasks, agreements = line["summary"], line["tasks"], line["agreement"]
    for stage in (*tasks, *agreements):
        if not re.fullmatch(r"[\w-]+", stage):
            raise ValueError(f"{stage!r} is no stage")
    for number in (summary["seconds"], *(r["reward_mean"] for r in summary["scores"].values())):
        float(number)
    return {
        "digest": str(line["digest"]),
        "summary": {**summary, "figures": dict(summary["figures"])},
        "tasks": {s: {str(t): float(x) for t, x in of.items()} for s, of in tasks.items()},
        "agreement": {s: [_agreement(row) for row in rows] for s, rows in agreements.items()},
    }


def _agreement(row: dict[str, Any]) -> TrajectoryAgreement:
    losses, matches = tuple(map(float, row["losses"])), tuple(map(bool, row["matches"]))
    if not losses or len(losses) != len(matches):
        raise ValueError(f"{row['task_id']!r} has {len(losses)} losses, {len(matches)} matches")
    return TrajectoryAgreement(str(row["task_id"]), losses, matches)


def _unpack(line: dict[str, Any], folder: Path) -> None:
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for stage, scores in line["tasks"].items():
        write_text(partial / "eval" / stage / TASKS, json.dumps(scores))
    for stage, rows in line["agreement"].items():
        agreement.save(partial / "eval" / stage, rows)
    write_text(partial / SUMMARY, json.dumps(line["summary"], indent=1))
    os.rename(partial, folder)
