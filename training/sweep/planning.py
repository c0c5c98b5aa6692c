"""What a sweep consists of: its experiments, and every run that they need."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from stepagent import command_line
from stepagent.envs.core import checksum
from stepagent.errors import UsageError
from stepagent.training.methods import ALL, VARIANTS
from stepagent.training.runs.options import without_defaults

KINDS = ("methods", "rewards", "models", "iterations", "practice")
"""How an experiment is reported: as table 2, as table 3, as figures 3, 4(a) and 4(b)."""
REPORTED_OVER = {"rewards": "inverse.reward", "practice": "reflection.practice"}
"""Kind → the option over whose values it is reported."""


@dataclass
class Experiment:
    """One table or plot: all combinations of its lists."""

    name: str
    """Heading of its section in the report, such as Table 2."""
    methods: list[str]
    """Names of methods, or of entries under `methods`."""
    environments: list[str]
    """Names under `environments`."""
    models: list[str]
    """Names under `models`."""
    kind: str = "methods"
    """How it is reported: `methods` (like table 2), `rewards` (table 3), `models` (figure 3),
    `iterations` or `practice` (figure 4)."""
    vary: dict[str, list[Any]] = field(default_factory=dict)
    """Options of `stepagent train` to vary → their values, such as reflection.practice: [1, 2, 3,
    4, 5]."""
    seeds: list[int] = field(default_factory=list)
    """Seeds of this experiment. Empty: those of the sweep."""
    baseline: str = ""
    """Row over which gains are counted. Empty: the first of method `sft`; where there is none, the
    SFT that each run began with."""
    best_on_dev: dict[str, list[str]] = field(default_factory=dict)
    """New row → the rows that it is chosen from. These may differ in `sft` alone (passes or
    learning rate, say) and need `sft.select: dev`. For each seed, the new row is the run whose SFT
    agrees best with the expert on dev. Its budget is that of all of them together."""

    @property
    def variations(self) -> list[tuple[tuple[str, Any], ...]]:
        """All combinations of what it varies: (option, value) of each."""
        options = [[(key, value) for value in values] for key, values in self.vary.items()]
        return list(itertools.product(*options))

    @property
    def trained_rows(self) -> list[str]:
        """The names of its rows, without those of `best_on_dev`."""
        return [row_name(method, varied) for method in self.methods for varied in self.variations]

    @property
    def rows(self) -> list[str]:
        """The names of all its rows."""
        return [*self.trained_rows, *self.best_on_dev]


SWEEP = "sweep.yaml"
"""The file of a sweep's directory that holds the sweep."""


@dataclass
class Sweep:
    """Does all runs of a table of experiments, one after another or in parallel, and reports
    them."""

    output: str
    """Directory for all runs and the report."""
    experiments: list[dict[str, Any]] = field(default_factory=list)
    """The experiments, each a mapping: name, methods, environments, models, and optionally kind,
    vary, seeds, baseline, best_on_dev. Empty: the sweep that the directory `output` already holds;
    options that are given change it."""
    common: dict[str, Any] = field(default_factory=dict)
    """Options of `stepagent train` that all runs share."""
    methods: dict[str, Any] = field(default_factory=dict)
    """Name → its options. `method` must be among them if the name is not that of a method or
    variant. The name `sft-matched-ROW` is SFT on as many tokens as the row ROW was trained on."""
    environments: dict[str, Any] = field(default_factory=dict)
    """Name → env, env_args and other options that belong to it."""
    models: dict[str, Any] = field(default_factory=dict)
    """Name → policy and other options that belong to it."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Seeds with which every combination is run."""
    launch: Literal["local", "submitit", "ray"] = "local"
    """Where the runs are done: local (processes on this machine), submitit (jobs of Slurm) or ray
    (tasks of a Ray cluster). `output` must be on a file system that all machines share."""
    slurm: dict[str, Any] = field(default_factory=dict)
    """For submitit: parameters of each job, such as {partition: gpu, gpus_per_node: 1, mem_gb: 64,
    timeout_min: 600}. By default a job may take a day. A run that is not done by the end of its job
    continues in the next one."""
    ray: dict[str, Any] = field(default_factory=dict)
    """For ray: what each run takes, such as {num_cpus: 8, num_gpus: 1}. Default: one CPU."""
    ray_address: str = ""
    """For ray: address of the cluster, such as head:6379; local starts one on this machine. Empty:
    $RAY_ADDRESS, else the cluster that this machine is part of."""
    workers: int | None = None
    """Runs at a time. Each uses all cores, unless `threads` is set. null: 1 for local; elsewhere as
    many as there is room for."""
    lost_after: float = 60.0
    """Seconds without a sign of life from a run's machine, after which another may take up the
    run."""
    threads: int = 0
    """Threads per run (OMP_NUM_THREADS); 0: no limit."""
    share_sft: bool = True
    """Train SFT only once for all runs that start from the same one."""
    hours: float = 0.0
    """Start no new run after this many hours; the same command resumes later. 0: no limit."""
    known: list[str] = field(default_factory=list)
    """Files `finished.jsonl` of the same sweep on other machines. Runs in them are not done again,
    unless they have begun here."""
    report_only: bool = False
    """Train nothing; only report the runs that are done."""
    baseline: str = ""
    """With --report-only: row over which gains are counted in the experiments that have it, in
    place of their own baseline."""


@dataclass(frozen=True)
class SweepRun:
    """One combination of an experiment."""

    method: str
    environment: str
    model: str
    seed: int
    varied: tuple[tuple[str, Any], ...]
    options: dict[str, Any] = field(compare=False)
    """Of training.run, without `output`"""
    matches: SweepRun | None = field(default=None, compare=False)
    """The run whose tokens it trains on as many of"""

    @property
    def digest(self) -> str:
        """Of its options, those that have their default left out."""
        options = without_defaults(self.options)
        if self.matches:
            options["matches"] = self.matches.digest
        return checksum(json.dumps(options, sort_keys=True))[:8]

    @property
    def phase(self) -> int:
        """Of a seed, runs of a later one may need those of an earlier one."""
        return 2 if self.matches else int(self.options["method"] != "sft")

    @property
    def name(self) -> str:
        """Readable, a file's name, and different where any option differs."""
        varied = "".join(f"-{key.rsplit('.', 1)[-1]}={value}" for key, value in self.varied)
        name = f"{self.environment}-{self.model}-{self.method}{varied}-seed{self.seed}"
        return f"{name}-{self.digest}".replace("/", "-")

    @property
    def row(self) -> str:
        """The row of a table that it belongs to."""
        return row_name(self.method, self.varied)

    def directory(self, output: Path) -> Path:
        """Its directory: that of an equal run of another table or name, if there is one."""
        equal = (p for p in (output / "runs").glob(f"*-{self.digest}") if p.is_dir())
        return next(equal, output / "runs" / self.name)


class SweepError(UsageError):
    """A sweep that makes no sense; the message says what is wrong, and what exists."""


def row_name(method: str, varied: Sequence[tuple[str, Any]]) -> str:
    """A method, with what the experiment varies.

    >>> row_name("implicit", [("reflection.practice", 3)])
    'implicit practice=3'
    """
    return " ".join([method, *(f"{key.rpartition('.')[2]}={value}" for key, value in varied)])


def merged(*parts: dict[str, Any]) -> dict[str, Any]:
    """Mappings merged deeply; later ones win.

    >>> merged({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})
    {'a': {'b': 3, 'c': 2}}
    """
    result: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merged(result[key], value) if both else copy.deepcopy(value)
    return result


def nested(key: str, value: Any) -> dict[str, Any]:
    """`a.b` and 1 as {'a': {'b': 1}}."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def experiments(sweep: Sweep) -> list[Experiment]:
    """Raises SweepError for a key that does not exist or one that is missing, and for what the
    report could not show."""
    known = [f.name for f in dataclasses.fields(Experiment)]
    parsed = []
    for row in sweep.experiments:
        for key in row:
            if key not in known:
                raise SweepError(
                    f"experiment {row.get('name')!r}: {command_line.unknown_key(key, known)}"
                )
        try:
            experiment = Experiment(**row)
        except TypeError as error:
            raise SweepError(f"experiment {row.get('name')!r}: {error}") from None
        if problem := _problem(experiment):
            raise SweepError(f"experiment {experiment.name!r}: {problem}")
        parsed.append(experiment)
    return parsed


def with_baseline(sweep: Sweep) -> list[Experiment]:
    """The experiments as they are reported: those that have the row `sweep.baseline` count gains
    over it. Raises SweepError where none has it, and what `experiments` raises."""
    parsed, row = experiments(sweep), sweep.baseline
    if not row:
        return parsed
    known = dict.fromkeys(name for experiment in parsed for name in experiment.rows)
    if row not in known:
        raise SweepError(f"no experiment has a row {row!r}.{command_line.suggestion(row, known)}")
    return [dataclasses.replace(e, baseline=row) if row in e.rows else e for e in parsed]


def _problem(experiment: Experiment) -> str:
    """Why an experiment cannot be reported; "" where it can."""
    kind, methods, baseline = experiment.kind, experiment.methods, experiment.baseline
    lists = {name: getattr(experiment, name) for name in ("methods", "environments", "models")}
    lists |= {f"vary.{option}": values for option, values in experiment.vary.items()}
    for name, values in lists.items():
        if not isinstance(values, list) or not values:
            return f"{name} is {values!r}, which must be a list of one or more"
        if len({str(value) for value in values}) < len(values):
            return f"{name} is {values!r}: one that is there twice is no further evidence"
    if kind not in KINDS:
        return f"kind is {kind!r}, which must be one of {', '.join(KINDS)}"
    option = REPORTED_OVER.get(kind)
    if option and not experiment.vary.get(option):
        return f"kind {kind!r} is reported over {option}: name its values under `vary`"
    if kind == "models" and len(experiment.models) < 2:
        return f"kind {kind!r} compares models: name two or more"
    if problem := _problem_of_chosen(experiment):
        return f"best_on_dev: {problem}"
    if baseline and baseline not in [*experiment.rows, *methods]:
        return f"its baseline {baseline!r} is no row: there are {', '.join(experiment.rows)}"
    return ""


def _problem_of_chosen(experiment: Experiment) -> str:
    """Why the rows of `best_on_dev` cannot be; "" where they can."""
    chosen, rows = experiment.best_on_dev, experiment.trained_rows
    if not isinstance(chosen, dict):
        return f"it is {chosen!r}, which must map a new row to two or more of {', '.join(rows)}"
    if chosen and experiment.kind not in ("methods", "models"):
        return f"experiments of kind {experiment.kind!r} have no such rows"
    for name, tried in chosen.items():
        if not (isinstance(name, str) and re.fullmatch(r"[\w.-]+", name)) or matched_row(name):
            return f"{name!r} is no name for a row: use letters, digits and hyphens"
        if name in [*rows, *experiment.methods]:
            return f"{name!r} is a row already"
        named = [row for row in rows if isinstance(tried, list) and row in tried]
        if len(named) < 2 or len(named) < len(tried):
            return f"{name!r} must choose among two or more of {', '.join(rows)}, not {tried!r}"
    return ""


def runs(sweep: Sweep, experiment: Experiment) -> Iterator[SweepRun]:
    """All combinations of an experiment. Raises SweepError for unknown names, repeated seeds, and
    rows of `best_on_dev` that cannot be compared."""
    seeds, found = experiment.seeds or sweep.seeds, []
    if len(set(seeds)) < len(seeds):
        raise SweepError(f"seeds are {seeds}: one that is there twice is no further evidence")
    for environment, model, seed, method, options in itertools.product(
        experiment.environments,
        experiment.models,
        seeds,
        experiment.methods,
        experiment.variations,
    ):
        parts = [sweep.common]
        for kind, name in (("environments", environment), ("models", model)):
            known = getattr(sweep, kind)
            if name not in known:
                raise SweepError(f"no {name!r} under {kind}: there are {', '.join(known)}")
            parts.append(known[name])
        run = SweepRun(method, environment, model, seed, options, merged(*parts))
        found.append(_with_method(sweep, run))
    for tried in experiment.best_on_dev.values():
        _check_chosen(experiment.name, [run for run in found if run.row in tried])
    yield from found


def _check_chosen(name: str, tried: Sequence[SweepRun]) -> None:
    """Raises SweepError for runs that dev cannot choose among."""
    first: dict[tuple[str, str, int], SweepRun] = {}
    for run in tried:
        other = first.setdefault((run.environment, run.model, run.seed), run)
        if run.options.get("sft", {}).get("select") != "dev":
            problem = f"{run.row!r} is not measured on dev: set its sft.select to dev"
        elif {**run.options, "sft": {}} != {**other.options, "sft": {}}:
            problem = f"{run.row!r} and {other.row!r} differ in more than `sft`"
        elif run is not other and run.digest == other.digest:
            problem = f"{run.row!r} and {other.row!r} are the same"
        else:
            continue
        raise SweepError(f"experiment {name!r}: best_on_dev: {problem}")


def _with_method(sweep: Sweep, run: SweepRun) -> SweepRun:
    """The run with the options of its method, and the run that it matches."""
    chosen = [nested(key, value) for key, value in run.varied]
    of_method = _method_options(sweep, run.method)
    options = merged({"method": run.method}, run.options, of_method, *chosen, {"seed": run.seed})
    row = matched_row(run.method)
    if not row:
        return replace(run, options=options)
    if matched_row(row):
        raise SweepError(f"{run.method!r} matches a row that itself matches another: name that one")
    return replace(run, options=options, matches=_with_method(sweep, replace(run, method=row)))


MATCHED = "sft-matched-"


def matched_row(method: str) -> str:
    """The row whose tokens a method trains on as many of; "" for any other method.

    >>> matched_row("sft-matched-implicit"), matched_row("sft")
    ('implicit', '')
    """
    return method.removeprefix(MATCHED) if method.startswith(MATCHED) else ""


def _method_options(sweep: Sweep, name: str) -> dict[str, Any]:
    """The options of a method by its name in the sweep; a variant has those of its method, too.

    Raises SweepError where there is none of that name.
    """
    variant, own = VARIANTS.get(name, {}), sweep.methods.get(name, {})
    if matched_row(name):
        variant = {"method": "sft"}
    if "method" not in {**variant, **own} and name not in ALL:
        known = ", ".join(dict.fromkeys([*sweep.methods, *ALL, *VARIANTS]))
        raise SweepError(f"no method {name!r}: choose {known}")
    base = sweep.methods.get(variant["method"], {}) if variant else {}
    return merged(base, variant, own)


def all_runs(sweep: Sweep) -> list[SweepRun]:
    """Every run once, in the order in which they are done: experiment by experiment, in each of
    them seed by seed, so that a sweep which is stopped has whole seeds to compare. Of a seed, SFT
    comes first, then the methods that start from it, then what matches these."""
    by_digest: dict[str, SweepRun] = {}
    for experiment in experiments(sweep):
        seeds: dict[int, list[SweepRun]] = {}
        for run in runs(sweep, experiment):
            both = [one for one in (run.matches, run) if one]
            seeds.setdefault(run.seed, []).extend(both)
        for of_seed in seeds.values():
            for run in sorted(of_seed, key=lambda run: run.phase):
                by_digest.setdefault(run.digest, run)
    return list(by_digest.values())
