"""Compares the options of runs: whether a directory holds the run that is to be resumed."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import yaml

from stepagent.training.config import Config

FREE = (
    "checkpoint_seconds",
    "evaluation.agents",
    "evaluation.every_iteration",
    "evaluation.matched_sft",
    "evaluation.workers",
    "expert.workers",
    "keep_policies",
    "output",
    "peak_tflops",
    "push_to_hub",
    "report_to",
    "rollouts.workers",
    "sampler.concurrency",
    "sampler.patience",
    "sampler.shared",
    "sampler.timeout",
)
"""Options that may change between starts of a run: no weight and no score depends on them."""
_IF_ANY = ("sampler.urls",)
"""Lists that may change, but neither become empty nor cease to be."""

FORMER = {"rollouts.samples": 1}
"""Options that are null by default and were this before, which meant the same."""


def differing(old: str, new: str) -> dict[str, tuple[Any, Any]]:
    """The options (by their full names) in which two configurations differ, and both values.

    Those in `FREE` count as equal, as do two ways of writing the same path. An option that did not
    exist yet when the old configuration was written is taken to have had its present default.
    """
    before, now = flat(yaml.safe_load(old)), flat(yaml.safe_load(new))
    before = {**{key: value for key, value in _defaults().items() if key in now}, **before}
    for options in (before, now):
        options |= {key: None for key, value in FORMER.items() if options.get(key) == value}
    return {
        key: (before.get(key), now.get(key))
        for key in sorted(before.keys() | now.keys())
        if key not in FREE
        and not _are_equal(before.get(key), now.get(key))
        and not (key in _IF_ANY and before.get(key) and now.get(key))
    }


def _are_equal(old: Any, new: Any) -> bool:
    if isinstance(old, str) and isinstance(new, str) and old and new:
        return os.path.realpath(old) == os.path.realpath(new)
    return bool(old == new)


def without_defaults(options: dict[str, Any]) -> dict[str, Any]:
    """The options (by their full names) that do not have their default."""
    defaults = _defaults()
    return {
        key: value
        for key, value in flat(options).items()
        if key not in defaults or value != defaults[key]
    }


def _defaults() -> dict[str, Any]:
    return flat(dataclasses.asdict(Config(output="")))


def flat(options: Any, path: str = "") -> dict[str, Any]:
    """Nested options by their full names.

    >>> flat({"sft": {"epochs": 3}, "seed": 1})
    {'sft.epochs': 3, 'seed': 1}
    """
    if not isinstance(options, dict) or not options:
        return {path: options}
    return {
        name: value
        for key, part in options.items()
        for name, value in flat(part, f"{path}.{key}" if path else str(key)).items()
    }
