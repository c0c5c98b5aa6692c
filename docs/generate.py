"""What the pages take from the code while the site is built, so that they cannot drift from it.

A page says `{{ options("sft") }}`, and gets the table of those options with the docstring under
each field. An option, argument or metric without a description raises, which fails the build.
"""

from __future__ import annotations

import ast
import dataclasses
import html
import importlib
import importlib.util
import inspect
import io
import itertools
import json
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import yaml
import ziamath
from docstrings import parameters

from stepagent import agents, cli, command_line, envs
from stepagent.envs import registration
from stepagent.training.sweep import plots, tables

ROOT = Path(__file__).parents[1]
METRICS = ROOT / "docs" / "metrics.yaml"
RESULTS = ROOT / "docs" / "reproduction"
"""`NAME.json`: the `report.json` of a sweep."""


class Undocumented(ValueError):
    """Something that the site has to describe has no description."""


def define_env(env: Any) -> None:
    """Called by the macros plugin: makes the functions below known to the pages."""
    for macro in (options, commands, arguments, rules, prompt, agent_specs, benchmarks):
        env.macro(macro)
    for macro in (metrics, times, method_file, deviations, sweep_results):
        env.macro(macro)
    env.macro(gains_over_longer_sft)


# Options ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Option:
    """A field of a dataclass of options, as the command line names it."""

    name: str
    default: str
    choices: str
    """The values that it may have, where they are few; else its type."""
    help: str


def options_of(kind: type, prefix: str = "") -> list[Option]:
    """All options of a dataclass, those of nested ones by their full names."""
    hints, docs = typing.get_type_hints(kind), field_docs(kind)
    rows: list[Option] = []
    for field in dataclasses.fields(kind):
        name, hint = prefix + field.name, hints[field.name]
        if field.name not in docs:
            raise Undocumented(f"{kind.__module__}.{kind.__name__}.{field.name} has no docstring")
        if dataclasses.is_dataclass(hint):
            rows += options_of(typing.cast(type, hint), f"{name}.")
        else:
            rows.append(Option(name, _default(field), _type(hint), docs[field.name]))
    return rows


@cache
def field_docs(kind: type) -> dict[str, str]:
    """The docstring under each field of a dataclass and of those that it inherits from."""
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        for field, below in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                match below:
                    case ast.Expr(value=ast.Constant(value=str(text))):
                        docs[field.target.id] = " ".join(text.split())
    return docs


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return _value(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return _value(field.default_factory())
    return "required"


def _value(value: Any) -> str:
    names = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return f"`{names[value]}`"
    return f"`{value!r}`" if value == "" else f"`{value}`"


def _type(hint: Any) -> str:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    parts = typing.get_args(hint) if union else (hint,)
    words: list[str] = []
    for part in parts:
        if typing.get_origin(part) is typing.Literal:
            words += [f"`{value}`" for value in typing.get_args(part)]
        elif part is not type(None):
            words.append(part.__name__ if type(part) is type else str(part).replace("typing.", ""))
    return ", ".join(words)


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    head = list(head)
    return "\n".join([line(head), line("---" for _ in head), *map(line, rows)]) + "\n"


def _option_table(rows: Iterable[Option]) -> str:
    cells = ((_breakable(row.name), row.default, _help(row)) for row in rows)
    return _table(("option", "default", "effect and usual range"), cells)


def _breakable(name: str) -> str:
    """A name as code that a narrow page breaks between its words only."""
    parts = re.sub(r"(?<=[a-z0-9])([._-])", r"\g<1><wbr>", name)
    return f"<code>{parts}</code>"


def _help(row: Option) -> str:
    text = re.sub(r"(?<![`\w])--[a-z][\w.-]*\w", r"`\g<0>`", row.help)
    return f"{text} One of {row.choices}." if "`" in row.choices else text


def options(*names: str) -> str:
    """A table of options of `stepagent train`: fields ("reflection.beta"), sections ("sft", without
    the sections below it), or "" for those that belong to no section."""
    return _option_table(row for name in names for row in training_options(name))


def training_options(name: str) -> list[Option]:
    """The option of that name, or those of the section."""
    known = options_of(option_class("train"))
    rows = [o for o in known if o.name == name or o.name.rpartition(".")[0] == name]
    if not rows:
        raise Undocumented(f"stepagent train has no option or section {name!r}")
    return rows


def commands() -> str:
    """Every command: what it does, and the table of its options."""
    sections = []
    for word, (module, _) in cli.COMMANDS.items():
        command = importlib.import_module(module).main
        name = module.removesuffix(".__main__").removesuffix(".command")
        about = f"{inspect.getdoc(command.options)}\n\nThe same: `python -m {name}`."
        known = command_line.option_hints(command.options)
        rows = [
            dataclasses.replace(row, name=command_line.written(row.name, known, command.positional))
            for row in options_of(command.options)
        ]
        sections.append(f"## stepagent {word}\n\n{about}\n\n{_option_table(rows)}")
    return "\n".join(sections)


def option_class(word: str) -> type:
    """The dataclass of a command's options."""
    module, _ = cli.COMMANDS[word]
    return importlib.import_module(module).main.options


# Environments -------------------------------------------------------------------------------------


def env_class(env_id: str) -> type[envs.TextEnv]:
    """The class behind an environment's id."""
    entry = registration.ENTRY_POINTS[env_id]
    entry_point = _load(entry)
    if isinstance(entry_point, type):
        return entry_point
    module = importlib.import_module(entry.partition(":")[0])
    kinds = (kind for kind in vars(module).values() if isinstance(kind, type))
    return next(kind for kind in kinds if issubclass(kind, envs.TextEnv))


def arguments(env_id: str) -> str:
    """A table of the arguments that `gym.make` takes for an environment."""
    kind = env_class(env_id)
    above = reversed(kind.__mro__)
    described = (item for base in above for item in parameters(base.__doc__ or ""))
    docs = {name: text for name, text in described if not text.startswith("as in `")}
    rows = []
    for owner in _constructors(kind):
        for name, parameter in inspect.signature(owner).parameters.items():
            if parameter.kind is not parameter.KEYWORD_ONLY:
                continue
            with_it = next((other for other, text in docs.items() if f"`{name}`" in text), None)
            if name not in docs and not with_it:
                raise Undocumented(f"{kind.__name__} does not describe its argument {name!r}")
            default = parameter.default
            shown = "required" if default is parameter.empty else f"`{default!r}`"
            rows.append((f"`{name}`", shown, docs.get(name, f"See `{with_it}`.")))
    return _table(("argument", "default", "meaning"), dict.fromkeys(rows))


def _constructors(kind: type) -> list[Callable[..., Any]]:
    """The constructor of a class, and those above it that it hands arguments on to."""
    owners: list[Callable[..., Any]] = []
    for base in kind.__mro__:
        if init := vars(base).get("__init__"):
            owners.append(init)
            if all(
                p.kind is not p.VAR_KEYWORD for p in inspect.signature(init).parameters.values()
            ):
                break
    return owners


def rules(env_id: str) -> str:
    """The rules of the episode: the head of the environment's module, less its title."""
    module = importlib.import_module(env_class(env_id).__module__)
    _, _, text = inspect.cleandoc(module.__doc__ or "").partition("\n\n")
    if not text:
        raise Undocumented(f"{module.__name__} does not say the rules of the episode")
    text = text.removeprefix("Rules of the episode").lstrip(":, \n")  # the page's heading says so
    return text[0].upper() + text[1:]


def prompt(env_id: str) -> str:
    """The environment's prompt, in a box that opens."""
    text = textwrap.indent(env_class(env_id).prompt_file.read_text().strip(), "    ")
    title = "The prompt: instruction and one-shot example"
    return f'??? note "{title}"\n\n    ````text\n{text}\n    ````\n'


# Methods ------------------------------------------------------------------------------------------


def _method_source(method: str) -> Path:
    registered = _load("stepagent.training.methods:ALL")[method]
    spec = importlib.util.find_spec(registered.partition(":")[0])  # loads no torch
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).resolve()


def method_file(method: str) -> str:
    """Path of the method's file in the repository."""
    return f"`{_method_source(method).relative_to(ROOT)}`"


def deviations(method: str) -> str:
    """What the method's file says about deviations from the paper and from the original."""
    text = ast.get_docstring(ast.parse(_method_source(method).read_text())) or ""
    match = re.search(r"^Deviations: (.*?)(?:\n\n|\Z)", text, re.DOTALL | re.MULTILINE)
    if not match:
        raise Undocumented(f"the file of {method} names no deviations")
    sentence = " ".join(match.group(1).split())
    return sentence[0].upper() + sentence[1:]


@cache
def metric_groups() -> dict[str, Any]:
    """The content of `metrics.yaml`."""
    return yaml.safe_load(METRICS.read_text())


def logged_by(method: str) -> dict[str, dict[str, str]]:
    """Stage → name → meaning of all that a method logs. A stage is `sft`, `iteration-N`, …; what
    it logs once at its end is under `STAGE, once`."""
    groups = metric_groups()
    return {
        stage: {name: text for group in names for name, text in groups["groups"][group].items()}
        for stage, names in groups["methods"][method].items()
    }


def times() -> str:
    """The table of what each stage says of its time."""
    rows = ((f"`{name}`", text) for name, text in metric_groups()["times"].items())
    return _table(("figure", "meaning"), rows)


def metrics(method: str) -> str:
    """The tables of all metrics that a method logs."""
    parts = []
    for stage, names in logged_by(method).items():
        name, _, once = stage.partition(", ")
        where = f"Stage `{name}`, " + ("once, in `summary.json`" if once else "after each update")
        rows = ((f"`{metric}`", text) for metric, text in names.items())
        parts.append(f"### {where}\n\n{_table(('metric', 'meaning, and what is healthy'), rows)}")
    return "\n".join(parts)


# Results ------------------------------------------------------------------------------------------


def sweep_results(name: str) -> str:
    """Tables and pictures of a sweep, from `docs/reproduction/NAME.json`."""
    sections = []
    for experiment in _results(name):
        sections.append(f"### {experiment['name']}\n\n{tables.about(experiment)}")
        if experiment["kind"] == "models":
            sections += _models(experiment)
        for setting in experiment["settings"]:
            sections += _setting(setting)
    return "\n\n".join(sections)


def _models(experiment: dict[str, Any]) -> list[str]:
    """How the rows' gains depend on the model."""
    pictures = [
        _drawing(plots.model_figure("score", settings), f"Scores and gains by model: {environment}")
        for environment, settings in tables.by_environment(experiment).items()
    ]
    return [*pictures, tables.between_models(experiment)]


def _results(name: str) -> list[dict[str, Any]]:
    """The experiments of a sweep in `docs/reproduction`."""
    file = RESULTS / f"{name}.json"
    if not file.is_file():
        raise Undocumented(f"{file} does not exist: copy a sweep's report.json there")
    return json.loads(file.read_text(encoding="utf-8"))["experiments"]


def _setting(setting: dict[str, Any]) -> list[str]:
    title = f"{setting['environment']}, {setting['model']}"
    parts = [f"**{title}**", tables.overview(setting), tables.chosen(setting)]
    if any(row["gain"] for row in setting["rows"]):
        parts += [
            tables.sees(setting),
            _drawing(plots.gain_figure(title, setting), f"Paired gains: {title}"),
        ]
    below = (tables.agreement, tables.correlations)
    return [*parts, *(text for table in below if (text := table(setting)))]


_SUCCESSES = "implicit-successes"
OVER_LONGER_SFT = {
    "1.5 M weights, from scratch": (
        "few-labels",
        "Confirmation on fresh seeds",
        "llama-1.5M",
        _SUCCESSES,
    ),
    "nano, SFT of 40 passes": ("own-successes", "Where SFT has converged", "nano", _SUCCESSES),
    "nano, best plans on dev": (
        "own-successes",
        "Against the best plan of SFT",
        "nano",
        f"{_SUCCESSES}-tuned",
    ),
    "nano, other trajectories": ("other-labels", "Other labels", "nano", f"{_SUCCESSES}-25"),
    "SmolLM2-135M, two seeds": (
        "evidence-smollm2",
        "Practice in its own successes",
        "SmolLM2-135M",
        _SUCCESSES,
    ),
    "1.5 M weights, other trajectories": ("sizes", "Figure 3", "llama-1.5M", _SUCCESSES),
    "0.5 M weights, other trajectories": ("sizes", "Figure 3", "llama-0.5M", _SUCCESSES),
    "nano, first settings": (
        "few-labels",
        "A policy that can read",
        "nano",
        f"{_SUCCESSES} learning_rate=0.00024",
    ),
}
"""Label → the results, the experiment, the model and the row of a gain over SFT for longer"""


def gains_over_longer_sft() -> str:
    """A picture of such gains from several sweeps."""
    rows: list[dict[str, Any]] = [{"name": "longer", "label": "SFT for longer", "gain": None}]
    for label, (name, title, model, wanted) in OVER_LONGER_SFT.items():
        settings = [s for e in _results(name) if e["name"] == title for s in e["settings"]]
        longer = [
            s
            for s in settings
            if s["model"] == model and s["baseline"].startswith(("sft-matched-", "sft-tuned"))
        ]
        found = [row for setting in longer for row in setting["rows"] if row["name"] == wanted]
        if len(found) != 1 or not found[0]["gain"]:
            raise Undocumented(f"{name}, {title}: {wanted} has no gain over SFT for longer")
        rows.append({**found[0], "label": label, "paper": {}})
    title = "StepAgent-Implicit in its own successes"
    figure = plots.gain_figure(title, {"rows": rows, "baseline": "longer"})
    return _drawing(figure, f"Paired gains: {title}")


def _drawing(figure: Any, label: str) -> str:
    """A figure within the page, in the page's own colour of text; `label` says what it shows."""
    from matplotlib import pyplot, rc_context

    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    pyplot.close(figure)
    text = file.getvalue()
    drawing = re.sub(r">\s+<", "><", text[text.index("<svg") :].strip())
    drawing = re.sub(r"#000000|\bblack\b", "currentColor", drawing)
    drawing = drawing.replace("<svg ", '<svg style="max-width: 100%; height: auto" ', 1)
    drawing = drawing.replace('<text style="', '<text style="fill: currentColor; ')
    return (
        f'<figure role="img" aria-label="{html.escape(label)}">{" ".join(drawing.split())}</figure>'
    )


# Lists --------------------------------------------------------------------------------------------


def agent_specs() -> str:
    """A table of the agents."""
    return _table(("agent", "what it does"), ((f"`{k}`", v) for k, v in agents.SPECS.items()))


def benchmarks() -> str:
    """The names of the benchmarks."""
    module, _ = cli.COMMANDS["bench"]
    return ", ".join(f"`{name}`" for name in importlib.import_module(module).BENCHMARKS)


# Equations ----------------------------------------------------------------------------------------


def equation(source: str, *_: Any, **__: Any) -> str:
    """A fenced block `math` as an SVG: no script and no font is needed to view it."""
    lines = [line for line in source.strip().splitlines() if line.strip()]
    pictures = [ziamath.Latex(line, size=17, color="currentColor").svg() for line in lines]
    rows = "".join(
        f'<div role="img" aria-label="{html.escape(line)}">{picture}</div>'
        for line, picture in zip(lines, pictures, strict=True)
    )
    return f'<div class="equation">{rows}</div>'
