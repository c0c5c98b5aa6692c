"""Training methods, one per file, each declared by a `Method`.

`METHODS` registers those of the paper, `BEYOND` others. A custom one is named `module:NAME` in the
configuration.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stepagent.training.config import Config
from stepagent.training.runs.options import flat

if TYPE_CHECKING:
    from stepagent.envs.react import Prompt
    from stepagent.training.runs.training_run import TrainingRun

METHODS = {
    "sft": "stepagent.training.methods.sft:METHOD",
    "implicit": "stepagent.training.methods.implicit:METHOD",
    "inverse": "stepagent.training.methods.inverse:METHOD",
    "ppo": "stepagent.training.methods.ppo:METHOD",
    "dpo": "stepagent.training.methods.dpo:METHOD",
    "rft": "stepagent.training.methods.rft:METHOD",
    "spin": "stepagent.training.methods.spin:METHOD",
    "nat": "stepagent.training.methods.nat:METHOD",
    "eto": "stepagent.training.methods.eto:METHOD",
}
"""Name → where its `Method` is, as `module:NAME`."""

BEYOND = {
    "dagger": "stepagent.training.methods.dagger:METHOD",
    "grpo": "stepagent.training.methods.grpo:METHOD",
    "gigpo": "stepagent.training.methods.gigpo:METHOD",
    "distill": "stepagent.training.methods.distill:METHOD",
}
"""Methods that the paper does not have, in the same form."""
ALL = {**METHODS, **BEYOND}

VARIANTS: dict[str, dict[str, Any]] = {
    "sft-best": {"method": "sft", "sft": {"epochs": 20, "select": "dev"}},
    "implicit-paper": {
        "method": "implicit",
        "reflection": {
            "equal": "tokens",
            "preference": "sigmoid",
            "preference_weight": 1.0,
            "sft_weight": 0.0,
        },
    },
    "anchor-only": {
        "method": "implicit",
        "reflection": {"preference_weight": 0.0, "sft_weight": 1.0},
    },
    "inverse-paper": {
        "method": "inverse",
        "reflection": {"equal": "tokens"},
        "inverse": {
            "demonstrations": False,
            "informative": False,
            "judge_reward": "log_d",
            "discriminator": {"loss": "binary", "label_smoothing": 0.0, "spectral_norm": 0.0},
        },
    },
    "step-grpo": {
        "method": "inverse",
        "inverse": {"judge": "oracle", "demonstrations": False},
        "ppo": {"baseline": "group"},
    },
    "inverse-oracle": {"method": "inverse", "inverse": {"judge": "oracle"}},
}
"""Forms of the methods that sweeps and the command line know by name, with the options that make
them: eq. 6 and algorithm 1 to the letter, and controls."""


def apply_variant(config: Config, chosen: Collection[str]) -> None:
    """Turns the name of a variant into its method and options, in place; those whose full names are
    `chosen` stay as they are."""
    for name, value in flat(VARIANTS.get(config.method, {})).items():
        *sections, last = name.split(".")
        if name == "method" or name not in chosen:
            setattr(functools.reduce(getattr, sections, config), last, value)


@dataclass(frozen=True)
class Method:
    """A training method, as its file declares it."""

    learn: Callable[[TrainingRun], None]
    """Trains the run's policy, stage after stage; most begin with `sft.learn(run)`."""
    check: Callable[[Config], None] = lambda config: None
    """Raises ValueError for options that cannot work with the method, before anything is loaded."""
    check_files: Callable[[Config, Prompt], None] = lambda config, prompt: None
    """Raises ValueError or FileNotFoundError for files that the method cannot learn from, before
    the expert plays."""
    stages: Callable[[Config], int] = lambda config: 1
    """Stages after SFT; each keeps a policy on disk."""
    other_models: Callable[[Config], int] = lambda config: 0
    """Models of the policy's size that it keeps on disk beside the policies."""

    takes_files: bool = False
    """Whether it learns from `preference.trajectories`."""
    practises_ahead: bool = False
    """Whether it knows `reflection.off_policy_iterations`."""
    explores_at: float = 1.0
    """Temperature of its episodes, where `rollouts.temperature` is not set."""
    episodes: int = 1
    """Episodes per task, where `rollouts.samples` is not set."""
    compares: bool = False
    """Whether it compares episodes with the expert's of the same task, and so plays no other."""

    def temperature(self, config: Config) -> float:
        """Temperature of its episodes."""
        own = config.rollouts.temperature
        return self.explores_at if own is None else own

    def samples(self, config: Config) -> int:
        """Episodes that it plays per task."""
        own = config.rollouts.samples
        return self.episodes if own is None else own

    def policies_on_disk(self, config: Config) -> int:
        """Policies, and models as large as one, that a run keeps at most."""
        ahead = config.reflection.off_policy_iterations if self.practises_ahead else 0
        kept = 1 + self.stages(config) if config.keep_policies else 2 + ahead
        kept += config.sft.select == "dev"
        return kept + self.other_models(config)


def find(name: str) -> Method:
    """The method that the configuration names. Raises ValueError where there is none."""
    module, colon, attribute = ALL.get(name, name).partition(":")
    if not colon:
        raise ValueError(
            f"no method {name!r}: choose {', '.join([*ALL, *VARIANTS])}, or module:NAME for a "
            "custom one"
        )
    try:
        method = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        if name in ALL:
            raise
        raise ValueError(f"method {name!r} cannot be loaded: {error}") from error
    if not isinstance(method, Method):
        raise ValueError(f"method {name!r} is not a `Method` but {type(method).__name__}")
    return method
