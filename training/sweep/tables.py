"""The figures of a report as Markdown, from the data in `report.json`: for the report itself, and
for documentation pages (`docs/generate.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stepagent.agents import nano
from stepagent.errors import UsageError
from stepagent.eval.agreement import MEASURES
from stepagent.eval.tables import p_value
from stepagent.training.sweep import paper
from stepagent.training.sweep.statistics import FEW_SEEDS

NAMES = {"loss": "loss", "step_match": "step match", "trajectory_match": "trajectory match"}
Row = Mapping[str, Any]


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def about(experiment: Row) -> str:
    """What is to be known before its tables: which runs are missing, what they began from, where
    SFT could not be chosen."""
    return missing(experiment) + origins(experiment) + dev_draws(experiment)


def missing(experiment: Row) -> str:
    """How many runs are done, and which are not, by the reason."""
    lines = []
    by_reason: dict[str, dict[str, list[str]]] = {}
    for run in experiment["missing"]:
        why = " ".join(run["why"].replace("|", "\\|").replace("`", "'").split())
        row, _, seed = run["run"].rpartition("-seed")  # and a digest
        by_reason.setdefault(why, {}).setdefault(row, []).append(seed.rpartition("-")[0])
    for why, of_reason in by_reason.items():
        names = [f"`{row}` ({_seeds(seeds)})" for row, seeds in of_reason.items()]
        lines.append(f"- **Missing**, {why}: {', '.join(names)}")
    return "\n".join([f"{experiment['done']} of {experiment['runs']} runs are done.\n", *lines, ""])


def _seeds(seeds: Sequence[object]) -> str:
    """Which seeds, in words."""
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def origins(experiment: Row) -> str:
    """Which `nano` the runs began from, and a warning where they do not have one in common or it is
    not the one that is installed; "" where none began from it."""
    models = experiment.get("origins", [])
    if not models:
        return ""
    if len(models) > 1:
        lines = [
            f"- {m['model']} `{m['digest']}`, runs: {len(m['runs'])}, such as `{m['runs'][0]}`"
            for m in models
        ]
        warning = "**These runs began from different models**, so their rows cannot be compared:\n"
        return "\n".join(["", warning, *lines, ""])
    name, digest = models[0]["model"], models[0]["digest"]
    text = f"\nAll runs began from {name} `{digest}`"
    try:
        here = nano.digest()
    except UsageError:
        return f"{text}, which is not installed here.\n"
    return f"{text}.\n" if here == digest else f"{text}; **the one installed here is `{here}`**.\n"


def dev_draws(experiment: Row) -> str:
    """A warning where dev trajectories were too few to choose SFT's pass by; "" where none were."""
    runs = experiment.get("dev_draws", [])
    if not runs:
        return ""
    return (
        f"\n**The dev split was too small** to choose SFT's pass by in {len(runs)} of "
        f"{experiment['chosen_by_dev']} runs, such as `{runs[0]}`: the chosen pass is told apart "
        "from no other (`dev_sees` in a run's `summary.json` is what it could see).\n"
    )


def overview(setting: Row) -> str:
    """One table of what counts: a row per method."""
    head = [
        "method",
        "step match",
        "trajectory match",
        "score",
        f"gain over {base(setting)} [95 %]",
    ]
    head += ["p (Holm)", *BUDGET]
    rows = []
    for row in setting["rows"]:
        matches = [_mean(row["agreement"].get(m, {}).get("score")) for m in MEASURES[1:]]
        gain = row["gain"]
        cells = [interval(gain), p_value(gain["p_holm"])] if gain else ["", ""]
        rows.append([name(row), *matches, _mean(row["score"]), *cells, *_budget(row)])
    return markdown(_without_empty(head, rows), _without_empty(rows, rows))


def _without_empty(of: Any, rows: Sequence[Sequence[str]]) -> Any:
    """A row, or all of them, without the columns in which no row has anything."""
    used = [i for i in range(len(rows[0])) if any(row[i] for row in rows)]
    if of is rows:
        return [[row[i] for i in used] for row in rows]
    return [of[i] for i in used]


def gains(setting: Row) -> str:
    """Paired gains of the score, and what the table could have seen; "" where no run has any."""
    rows = [row for row in setting["rows"] if row["gain"]]
    if not rows:
        return ""
    reported = list(dict.fromkeys(b for row in setting["rows"] for b in row["paper"]))
    head = ["method", "paired gain [95 %]", "p", "p (Holm)", "", "can see", "by seed", "tasks"]
    head += [f"**Paper:** gain, {backbone}" for backbone in reported]
    body = []
    for row in rows:
        gain = row["gain"]
        body.append(
            [
                name(row),
                interval(gain),
                p_value(gain["p"]),
                p_value(gain["p_holm"]),
                "\\*" if gain["p_holm"] < 0.05 and len(gain["seeds"]) >= FEW_SEEDS else "",
                f"{gain['detectable_holm']:.1f}",
                ", ".join(f"{value:+.1f}" for value in gain["by_seed"]),
                str(gain["tasks"]),
                *(_paper_gain(setting, row, backbone) for backbone in reported),
            ]
        )
    title = f"Gains over {base(setting)}, same seeds and tasks, percentage points:\n"
    return "\n".join(["", title, markdown(head, body), sees(setting)])


def by_environment(experiment: Row) -> dict[str, list[Row]]:
    """Environment → its settings, one per model."""
    found: dict[str, list[Row]] = {}
    for setting in experiment["settings"]:
        found.setdefault(setting["environment"], []).append(setting)
    return found


def between_models(experiment: Row) -> str:
    """How much more the rows gain with one model than with another; "" where none can be paired."""
    found = experiment.get("between", [])
    if not found:
        return ""
    head = ["row", "models", "difference of gains [95 %]", "p", "p (Holm)", "can see", "by seed"]
    head += ["seeds", "tasks"]
    body = []
    for row in found:
        gain = row["gain"]
        body.append(
            [
                f"{row['label']}, {row['environment']}",
                f"{row['model']} minus {row['than']}",
                interval(gain),
                p_value(gain["p"]),
                p_value(gain["p_holm"]),
                f"{gain['detectable_holm']:.1f}",
                ", ".join(f"{value:+.1f}" for value in gain["by_seed"]),
                ", ".join(map(str, gain["seeds"])),
                str(gain["tasks"]),
            ]
        )
    text = (
        f"How much more a row gains over {base(experiment['settings'][0])} with one model than "
        f"with {found[0]['than']}, same seeds and tasks, percentage points:\n"
    )
    few = _few(min(len(row["gain"]["seeds"]) for row in found)).strip()
    return "\n".join(["", text, markdown(head, body), *[f"{few}\n"] * bool(few)])


def sees(setting: Row) -> str:
    """What gain a table of these rows, seeds and tasks can see."""
    compared = [row["gain"] for row in setting["rows"] if row["gain"]]
    seeds = max(len(gain["seeds"]) for gain in compared)
    bounds = [gain["detectable_holm"] for gain in compared]
    alone = [gain["detectable"] for gain in compared]
    if not max(bounds):
        return "What this table can see is unknown: the scores do not differ between tasks.\n"
    several = (
        f" (5 % over all {len(compared)} rows; for one row chosen beforehand {_range(alone)})"
        if len(compared) > 1
        else ""
    )
    return (
        f"What this table can see: with {seeds} seed{'s' * (seeds != 1)}, {compared[0]['tasks']} "
        f"tasks and the spread measured here, a true gain of {_range(bounds)} points is called "
        f"significant with a probability of 80 %{several}. Intervals: bootstrap over seeds and "
        f"tasks, not corrected.{_few(seeds)}\n"
    )


def _few(seeds: int) -> str:
    """A warning where too few seeds were run."""
    if seeds == 1:
        return " **With one seed they are about the tasks alone**: other seeds may differ by more."
    few = " **With so few seeds they are too narrow**: other seeds may differ by more."
    return few if seeds < FEW_SEEDS else ""


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} to {high}"


def chosen(setting: Row) -> str:
    """What the rows that are chosen on dev consist of; "" where there is none."""
    lines = []
    for row in setting["rows"]:
        seeds: dict[str, list[str]] = {}
        for seed, of in row.get("chosen", {}).items():
            seeds.setdefault(of, []).append(str(seed))
        taken = [f"`{of}` ({_seeds(s)})" for of, s in seeds.items()]
        if taken:
            lines.append(f"{row['label']}, the best on dev: {', '.join(taken)}. ")
    return "".join([*lines, "Budgets are those of all that were tried.\n"]) if lines else ""


def agreement(setting: Row) -> str:
    """Agreement with the expert on dev trajectories; "" where no run has any."""
    rows = [row for row in setting["rows"] if row["agreement"]]
    if not rows:
        return ""
    head, body = ["method"], []
    paired = any(row["agreement"][m]["gain"] for row in rows for m in MEASURES)
    for measure in MEASURES:
        unit = "nats" if measure == "loss" else "%"
        head += [f"{NAMES[measure]}, {unit}", *["gain [95 %]"] * paired]
    for row in rows:
        cells = [name(row)]
        for measure in MEASURES:
            digits, figures = 3 if measure == "loss" else 1, row["agreement"][measure]
            cells.append(_mean(figures["score"], digits))
            cells += [interval(figures["gain"], digits) if figures["gain"] else ""] * paired
        body.append(cells)
    text = f"Agreement with the expert on dev trajectories, gains over {base(setting)}:\n"
    return "\n".join(["", text, markdown(head, body)])


def correlations(setting: Row) -> str:
    """How agreement goes with the score; "" where there are too few runs."""
    if not setting["correlations"]:
        return ""
    body = []
    for measure, figures in setting["correlations"].items():
        for name, title in (("all", "all runs"), ("within_seeds", "within seeds")):
            if (c := figures[name]) is not None:
                pair = [_correlation(c, kind) for kind in ("pearson", "spearman")]
                body.append([NAMES[measure], title, *pair, str(c["policies"])])
    head = ["agreement (dev)", "with the score of", "Pearson [95 %]", "Spearman [95 %]", "runs"]
    text = (
        "Correlation of agreement with the score over the runs' final policies (within seeds: "
        "each seed's means are taken off; intervals: bootstrap over runs, which share their "
        "seed's SFT):\n"
    )
    return "\n".join(["", text, markdown(head, body)])


BUDGET = ("expert labels", "episodes", "draws", "tokens", "minutes")


def budgets(setting: Row) -> str:
    """What each row has used, per run; "" where no run recorded it."""
    rows = [row for row in setting["rows"] if row["budget"]]
    if not rows:
        return ""
    body = [[name(row), *_budget(row), f"{row['budget']['updates']:,.0f}"] for row in rows]
    text = "What a run of each row has used (mean over seeds), SFT included:\n"
    return "\n".join(["", text, markdown(["method", *BUDGET, "updates"], body)])


def _budget(row: Row) -> list[str]:
    used = row["budget"]
    if not used:
        return [""] * len(BUDGET)
    counts = [used[name] for name in ("expert_labels", "episodes", "draws", "tokens")]
    return [*(f"{count:,.0f}" for count in counts), f"{used['seconds'] / 60:.1f}"]


def name(row: Row) -> str:
    """The row's label; where runs are missing, with the seeds that there are."""
    if not row["missing_seeds"]:
        return row["label"]
    if not row["seeds"]:
        return f"{row['label']} (not done)"
    return f"{row['label']} ({_seeds(row['seeds'])} only)"


def base(setting: Row) -> str:
    """What gains are counted from."""
    names = {row["name"]: row["label"] for row in setting["rows"]}
    return names.get(setting["baseline"], "its own SFT")


def paper_gain(setting: Row, row: Row, backbone: str) -> float | None:
    """The paper's gain over its SFT; None where it reports none, and for variants and controls."""
    plain = paper.table2("sft", setting["env"]).get(backbone)
    published = paper.has(row["name"].split(" ")[0], row["method"])
    if row["method"] == "sft" or not published or plain is None or backbone not in row["paper"]:
        return None
    return row["paper"][backbone] - plain


def _paper_gain(setting: Row, row: Row, backbone: str) -> str:
    gain = paper_gain(setting, row, backbone)
    return "" if gain is None else f"{gain:+.1f}"


def interval(gain: Row, digits: int = 1) -> str:
    low, high = (f"{gain[bound]:+.{digits}f}" for bound in ("low", "high"))
    return f"{gain['mean']:+.{digits}f} [{low}, {high}]"


def _correlation(figures: Row, kind: str) -> str:
    low, high = figures[f"{kind}_ci95"]
    return f"{figures[kind]:.2f} [{low:.2f}, {high:.2f}]"


def _mean(estimate: Row | None, digits: int = 1) -> str:
    return "" if estimate is None else f"{estimate['mean']:.{digits}f}"
