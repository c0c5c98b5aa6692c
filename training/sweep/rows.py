"""The rows of a sweep's tables as data: scores, paired gains, agreement, budgets.

Scores and matches are in percent, losses in nats; gains are in percentage points, or nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from stepagent.eval import agreement
from stepagent.eval.agreement import MEASURES, Measure
from stepagent.eval.paired import holm
from stepagent.eval.paper import LABELS
from stepagent.training.runs.budget import Budget
from stepagent.training.sweep import paper
from stepagent.training.sweep.planning import Experiment, matched_row
from stepagent.training.sweep.results import Result
from stepagent.training.sweep.statistics import Gain, correlation, estimate, gain

Values = Mapping[str, float]
Before = Mapping[int, tuple[Result, str | None]]
"""Seed → run and stage that a row's run of that seed is compared with."""


@dataclass(frozen=True)
class Group:
    """The runs of one row, one per seed."""

    name: str
    results: Sequence[Result]

    @property
    def done(self) -> dict[int, Result]:
        return {r.run.seed: r for r in self.results if r.final is not None}


def label(method: str) -> str:
    """A method of a sweep as tables call it.

    >>> label("inverse-paper"), label("sft-matched-implicit"), label("grpo")
    ('StepAgent-Inverse, paper', 'SFT, tokens of StepAgent-Implicit', 'GRPO')
    """
    if row := matched_row(method):
        return f"{LABELS['sft']}, tokens of {label(row)}"
    kind, dash, variant = method.partition("-")
    if kind not in LABELS:
        return method
    return f"{LABELS[kind]}{dash and ', '}{variant}"


def groups(results: Sequence[Result]) -> list[Group]:
    """The rows of a setting: a method, with what the experiment varies."""
    rows: dict[str, list[Result]] = {}
    for result in results:
        rows.setdefault(result.run.row, []).append(result)
    return [Group(name, of_row) for name, of_row in rows.items()]


def best_on_dev(experiment: Experiment, results: Sequence[Result]) -> list[Result]:
    """The runs of the rows that `experiment.best_on_dev` adds. Where one of those to choose among
    is missing, so is the best of them."""
    found = []
    for name, tried in experiment.best_on_dev.items():
        alike: dict[tuple[str, str, int], list[Result]] = {}
        for result in (r for r in results if r.run.row in tried):
            run = result.run
            alike.setdefault((run.environment, run.model, run.seed), []).append(result)
        found += [_best(name, among) for among in alike.values()]
    return found


def _best(name: str, among: Sequence[Result]) -> Result:
    run = replace(among[0].run, method=name, varied=(), matches=None)
    for result in among:
        if result.final is None:
            return Result(run, {}, (), 0.0, missing="one of those to choose among is missing")
        if not {"dev_step_match", "dev_loss"} <= result.dev.keys():
            why = f"{result.run.name} does not say how it agrees on dev: an earlier version made it"
            return Result(run, {}, (), 0.0, missing=why)
    measure = agreement.deciding(run.options.get("expert", {}).get("wording", "fixed"))

    def place(result: Result) -> tuple[float, float]:
        return agreement.order(measure, result.dev["dev_step_match"], result.dev["dev_loss"])

    best = min(among, key=place)
    minutes, budget = sum(r.minutes for r in among), _total(among)
    if budget and best.budget:  # all have learned from the same labels
        budget["expert_labels"] = best.budget["expert_labels"]
    return replace(best, run=run, minutes=minutes, budget=budget, chosen=best.run.row)


def setting(experiment: Experiment, results: Sequence[Result]) -> dict[str, Any]:
    """All figures of an experiment in one environment with one model."""
    rows, first = groups(results), results[0]
    base, before = baseline(experiment, rows), _befores(experiment, rows)
    figures = [
        _row(row, name, before[row.name]) for row, name in zip(rows, labels(rows), strict=True)
    ]
    _correct([row["gain"] for row in figures])
    for measure in MEASURES:
        _correct([row["agreement"].get(measure, {}).get("gain") for row in figures])
    return {
        "environment": first.run.environment,
        "model": first.run.model,
        "env": first.env,
        "split": first.run.options.get("evaluation", {}).get("split", "test"),
        "baseline": base.name if base else None,
        "rows": figures,
        "correlations": _correlations(
            [r for row in rows for r in row.done.values() if not r.chosen]
        ),
    }


def baseline(experiment: Experiment, rows: Sequence[Group]) -> Group | None:
    """The row that gains are counted from; None: the SFT that each run itself began with."""
    if name := experiment.baseline:
        return next(row for row in rows if name in (row.name, row.results[0].run.method))
    return next((row for row in rows if row.results[0].run.options["method"] == "sft"), None)


def labels(rows: Sequence[Group]) -> list[str]:
    """What tables call the rows: the method, and the varied options in which rows differ."""
    varied = [row.name.split(" ")[1:] for row in rows]
    differ = [set(of_row) for of_row in varied if of_row]  # a row that is chosen on dev has none
    shared = set.intersection(*differ) if differ else set()
    return [
        " ".join([label(row.results[0].run.method), *(o for o in of_row if o not in shared)])
        for row, of_row in zip(rows, varied, strict=True)
    ]


def _row(row: Group, name: str, before: Before) -> dict[str, Any]:
    """`before`: with what its gains are counted; {} for none."""
    run, done = row.results[0].run, row.done
    score = estimate([r.final for r in done.values() if r.final is not None])
    return {
        "name": row.name,
        "label": name,
        "method": run.options["method"],
        "matches": run.matches.method if run.matches else None,
        "seeds": sorted(done),
        "missing_seeds": sorted(r.run.seed for r in row.results if r.final is None),
        "score": _estimate(score),
        "chosen": {r.run.seed: r.chosen for r in done.values() if r.chosen},
        "gain": _score_gain(done, before),
        "agreement": _agreement(done, before),
        "budget": _budget([*done.values()]),
        "paper": paper.table2(run.options["method"], row.results[0].env),
    }


def _befores(experiment: Experiment, rows: Sequence[Group]) -> dict[str, Before]:
    """Row → what its gains count from; {} for the baseline, and for what it is chosen from."""
    base = baseline(experiment, rows)
    own = [base.name, *experiment.best_on_dev.get(base.name, [])] if base else []
    return {row.name: {} if row.name in own else _before(row, base) for row in rows}


def _before(row: Group, base: Group | None) -> Before:
    if base is None:
        return {seed: (r, "sft") for seed, r in row.done.items() if r.final_stage != "sft"}
    return {seed: (r, r.final_stage) for seed, r in base.done.items()}


def _score_gain(done: Mapping[int, Result], before: Before) -> dict[str, Any] | None:
    return _mean_gain(_differences(done, before))


def _differences(done: Mapping[int, Result], before: Before) -> dict[int, dict[str, float]]:
    """Seed → task → how far the score is above the one before; {} where a run recorded none."""
    seeds = [seed for seed in sorted(done) if seed in before]
    first = [before[seed][0].task_scores(before[seed][1]) for seed in seeds]
    second = [done[seed].task_scores(done[seed].final_stage) for seed in seeds]
    if not seeds or not all([*first, *second]):
        return {}
    return {seed: _minus(b, a) for seed, a, b in zip(seeds, first, second, strict=True)}


def _minus(of: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {task: of[task] - other[task] for task in of if task in other}


def _mean_gain(differences: Mapping[int, Mapping[str, float]]) -> dict[str, Any] | None:
    """The gain over the seeds and the tasks that all of them have."""
    if not differences:
        return None
    tasks = sorted(set.intersection(*(set(of_seed) for of_seed in differences.values())))
    table = [[of_seed[task] for task in tasks] for of_seed in differences.values()]
    return _gain(gain(table), [*differences])


def between_models(
    experiment: Experiment, by_setting: Mapping[tuple[str, str], Sequence[Result]]
) -> list[dict[str, Any]]:
    """How much more each row gains with a later model of the experiment than with its first: per
    environment, over the seeds that both have and the tasks that both played. Only for experiments
    of kind `models`; the results are those of each (environment, model)."""
    if experiment.kind != "models":
        return []
    found: list[dict[str, Any]] = []
    for environment in experiment.environments:
        of_models = []
        for model in experiment.models:
            rows = groups(by_setting[environment, model])
            before = _befores(experiment, rows)
            named = zip(rows, labels(rows), strict=True)
            of_models.append({n: _differences(r.done, before[r.name]) for r, n in named})
        first, *later = of_models
        for model, gains in zip(experiment.models[1:], later, strict=True):
            for name in [name for name in gains if gains[name] and first[name]]:
                both = [seed for seed in gains[name] if seed in first[name]]
                more = {seed: _minus(gains[name][seed], first[name][seed]) for seed in both}
                row = {"environment": environment, "label": name, "model": model}
                if (of_row := _mean_gain(more)) is not None:
                    found.append({**row, "than": experiment.models[0], "gain": of_row})
    _correct([row["gain"] for row in found])
    return found


def _agreement(done: Mapping[int, Result], before: Before) -> dict[str, Any]:
    """Measure → its mean over seeds, and the gain where every trajectory was recorded."""
    measured = {s: r.agreement.get(str(r.final_stage)) for s, r in sorted(done.items())}
    of_seeds = [figures for figures in measured.values() if figures]
    if not of_seeds:
        return {}
    seeds = [seed for seed in sorted(done) if seed in before]
    first = [before[seed][0].readings(before[seed][1]) for seed in seeds]
    second = [done[seed].readings(done[seed].final_stage) for seed in seeds]
    tasks = agreement.common(*first, *second) if seeds and all([*first, *second]) else []
    result: dict[str, Any] = {}
    for measure in MEASURES:
        scale = _scale(measure)
        values = [scale * figures[measure] for figures in of_seeds]
        result[measure] = {"score": _estimate(estimate(values)), "gain": None}
        if not tasks:
            continue
        readings = [[side[task] for task in tasks] for side in (*first, *second)]
        totals = scale * np.array([agreement.totals(rows, measure) for rows in readings])
        gains = totals[len(seeds) :] - totals[: len(seeds)]
        weights = agreement.weights(readings[0], measure)
        result[measure]["gain"] = _gain(gain(gains.tolist(), weights.tolist()), seeds)
    return result


def _scale(measure: Measure) -> float:
    return 1.0 if measure == "loss" else 100.0


def _budget(done: Sequence[Result]) -> dict[str, float] | None:
    """The mean over the runs; None where one of them recorded none."""
    total = _total(done)
    return total and {name: value / len(done) for name, value in total.items()}


def _total(done: Sequence[Result]) -> dict[str, float] | None:
    """The sum over the runs; None where one of them recorded none."""
    budgets: list[Any] = [result.budget for result in done]
    if not budgets or not all(budgets):
        return None
    return asdict(sum((Budget(**budget) for budget in budgets), Budget()))


def _estimate(found: Any) -> dict[str, Any] | None:
    if found is None:
        return None
    half = None if math.isnan(found.half_width) else found.half_width
    return {"mean": found.mean, "half_width": half, "values": list(found.values)}


def _gain(result: Gain | None, seeds: Sequence[int]) -> dict[str, Any] | None:
    return {**asdict(result), "seeds": list(seeds)} if result else None


def _correct(gains: Sequence[dict[str, Any] | None]) -> None:
    """Adds to each gain Holm's p-value over all of them, and what it could have seen."""
    compared = [of_row for of_row in gains if of_row]
    for of_row, p in zip(compared, holm([g["p"] for g in compared]), strict=True):
        of_row["p_holm"] = p
        figures = Gain(**{name: of_row[name] for name in Gain.__dataclass_fields__})
        of_row["detectable"] = figures.detectable()
        of_row["detectable_holm"] = figures.detectable(len(compared))


def _correlations(results: Sequence[Result]) -> dict[str, Any]:
    """Measure → its correlation with the score over the final policies of all runs: as they are,
    and with each seed's means taken off both, which leaves the difference between the rows."""
    measured = [r for r in results if r.agreement.get(str(r.final_stage))]
    seeds = [r.run.seed for r in measured]
    scores = np.array([r.final for r in measured], dtype=float)

    def over(of: Callable[[np.ndarray], np.ndarray], values: np.ndarray) -> dict[str, Any] | None:
        found = correlation(of(values).round(9).tolist(), of(scores).round(9).tolist())
        return asdict(found) if found else None

    def within(values: np.ndarray) -> np.ndarray:
        means = {seed: values[[s == seed for s in seeds]].mean() for seed in set(seeds)}
        return values - np.array([means[seed] for seed in seeds])

    result: dict[str, Any] = {}
    for measure in MEASURES:
        values = np.array([r.agreement[str(r.final_stage)][measure] for r in measured])
        figures = {"all": over(np.array, values), "within_seeds": over(within, values)}
        if figures["all"]:
            result[measure] = figures
    return result
