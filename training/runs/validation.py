"""Checks before a run starts: what is certain to fail later fails here."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from stepagent import agents, envs
from stepagent.agents import nano
from stepagent.errors import check_range
from stepagent.training.config import Config, OptimiserConfig, ReflectionConfig
from stepagent.training.data import Sample
from stepagent.training.policy import Policy
from stepagent.training.runs import sharding
from stepagent.training.runs.expert import wordings
from stepagent.training.runs.metrics import check_trackers
from stepagent.training.runs.sharding import check_own_loop
from stepagent.training.trees.compat import check_path


def check_options(config: Config) -> None:
    """Raises ValueError for a number out of range, an unknown agent or environment to score.

    The methods check for themselves what only they use (`Method.check`).
    """
    for name, section in _sections(config):
        if isinstance(section, OptimiserConfig):
            _at_least(name, section, learning_rate=0, epochs=0, batch_size=1)
            _at_least(name, section, weight_decay=0, beta2=0, warmup_ratio=0)
            _above(name, section, max_grad_norm=0)
            _below(name, section, beta2=1, warmup_ratio=1)
    check_range(0, seed=config.seed, checkpoint_seconds=config.checkpoint_seconds)
    check_range(0, peak_tflops=config.peak_tflops)
    reflection, evaluation = config.reflection, config.evaluation
    _at_least("reflection", reflection, iterations=0, practice=1, temperature=0, trajectories=0)
    _at_least("reflection", reflection, pack_tokens=0, value_rollouts=1, labels=0, updates=0)
    _at_least("reflection", reflection, sft_weight=0, preference_weight=0, positive_penalty=0)
    _at_least("reflection", reflection, max_tree_tokens=1, off_policy_iterations=0)
    if reflection.states != "expert" and (
        reflection.weights == "value" or reflection.equal == "effect"
    ):
        raise ValueError(
            "reflection.weights 'value' and reflection.equal 'effect' play on from the expert's "
            f"states: they need reflection.states 'expert', not {reflection.states!r}"
        )
    if reflection.states != "expert" and config.inverse.judge in ("valid", "return"):
        raise ValueError(
            f"inverse.judge {config.inverse.judge!r} plays actions behind the expert's steps: it "
            f"needs reflection.states 'expert', not {reflection.states!r}"
        )
    if reflection.states == "successes" and not config.rollouts.unlabelled:
        raise ValueError(
            "reflection.states 'successes' are the agent's own on tasks without a trajectory of "
            "the expert's: set rollouts.unlabelled to how many of them to play"
        )
    _shares("reflection", reflection, "own_share", "expert_acts", "expert_decay", "top_p")
    _above("reflection", reflection, own_share=0, expert_seconds=0, top_p=0)
    _above("reflection", reflection, beta=0, off_policy_limit=0)
    judge = config.inverse.discriminator
    _at_least("inverse.discriminator", judge, rank=0, label_smoothing=0, spectral_norm=0)
    _at_least("inverse.discriminator", judge, pack_tokens=0)
    _below("inverse.discriminator", judge, label_smoothing=0.5)
    _at_least("preference", config.preference, iterations=1, microbatch_size=1, extra_rounds=0)
    _at_least("preference", config.preference, later_learning_rate=0)
    _above("preference", config.preference, beta=0, later_beta=0)
    _at_least("sft", config.sft, microbatch_size=1, tokens=0, patience=0)
    _at_least("rollouts", config.rollouts, workers=1, unlabelled=0)
    _shares("rollouts", config.rollouts, "top_p")
    _above("rollouts", config.rollouts, top_p=0)
    if config.rollouts.samples is not None:
        _at_least("rollouts", config.rollouts, samples=1)
    if config.rollouts.temperature is not None:
        _at_least("rollouts", config.rollouts, temperature=0)
    _at_least("ppo", config.ppo, critic_learning_rate=0, critic_warmup=0)
    _at_least("ppo", config.ppo, kl=0, entropy=0, value_coefficient=0)
    _above("ppo", config.ppo, clip=0, spread_floor=0)
    _shares("ppo", config.ppo, "gamma", "lam")
    _at_least("expert", config.expert, limit=0, workers=1)
    _at_least("evaluation", evaluation, limit=0, workers=1, temperature=0, agreement=0)
    _at_least("policy", config.policy, max_new_tokens=1)
    _at_least("policy.lora", config.policy.lora, r=0, dropout=0)
    _above("policy.lora", config.policy.lora, alpha=0)
    _below("policy.lora", config.policy.lora, dropout=1)
    check_trackers(config.report_to)
    if config.push_to_hub and config.push_to_hub.count("/") != 1:
        raise ValueError(f"push_to_hub is {config.push_to_hub!r}: name it owner/name")
    _at_least("sampler", config.sampler, concurrency=1, patience=0)
    _above("sampler", config.sampler, timeout=0)
    for url in config.sampler.urls:
        if not url.startswith(("http://", "https://")):
            raise ValueError(
                f"sampler.urls has {url!r}: an address begins with http:// or https://"
            )
    if config.expert.wording == "varied":
        wordings(config)
    nano.origin(config.policy.model)  # says what to do where it is missing
    tiny = {f.name: 1 for f in dataclasses.fields(config.policy.tiny)}
    _at_least("policy.tiny", config.policy.tiny, **tiny)
    width, heads = config.policy.tiny.hidden_size, config.policy.tiny.heads
    if width % (2 * heads):
        raise ValueError(
            f"policy.tiny.hidden_size is {width}: with {heads} heads it must be a multiple of "
            f"{2 * heads}"
        )
    for agent in evaluation.agents:
        agents.options_of(agent)
    if config.sft.select == "dev" and sharding.is_fsdp():
        raise ValueError("sft.select: dev does not work under FSDP: take ddp.yaml, or `last`")
    if config.sft.tokens and not config.sft.epochs:
        raise ValueError("sft.tokens is set, but sft.epochs is 0, which leaves SFT out")
    if evaluation.env:
        envs.make(evaluation.env, split=evaluation.split, **evaluation.env_args).close()


def check_episodes_differ(samples: int, temperature: float) -> None:
    """Raises ValueError where several episodes per task are asked for at temperature 0."""
    if temperature == 0 and samples > 1:
        raise ValueError(
            f"rollouts.samples is {samples} at temperature 0, where it must "
            "be 1: all greedy episodes of a task would be the same (method eto explores at "
            "temperature 0 unless rollouts.temperature is set)"
        )


def _sections(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for part in dataclasses.fields(config):
        value = getattr(config, part.name)
        if dataclasses.is_dataclass(value):
            yield f"{path}{part.name}", value
            yield from _sections(value, f"{path}{part.name}.")


def _limits(holds: Callable[[float, float], bool], words: str) -> Callable[..., None]:
    """A check that options of a section stand so to their limits."""

    def check(name: str, section: Any, **limits: float) -> None:
        for key, limit in limits.items():
            if not holds(getattr(section, key), limit):
                raise ValueError(
                    f"{name}.{key} is {getattr(section, key)}, which must be {words} {limit}"
                )

    return check


_at_least = _limits(operator.ge, "at least")
_above = _limits(operator.gt, "above")
_below = _limits(operator.lt, "below")


def _shares(name: str, section: Any, *keys: str) -> None:
    for key in keys:
        if not 0 <= getattr(section, key) <= 1:
            raise ValueError(f"{name}.{key} is {getattr(section, key)}: it must be from 0 to 1")


def check_model(method: str, policy: Policy) -> None:
    """Raises ValueError where the model, or the way it was launched, cannot run step trees."""
    check_own_loop(method)
    _check_kind(method, policy)


def _check_kind(method: str, policy: Policy) -> None:
    if policy.no_step_trees:
        raise ValueError(f"method {method}: {policy.no_step_trees}")


def _longest(samples: Sequence[Sample]) -> int:
    """Tokens of the longest path."""
    return max(sample.encoded.longest for sample in samples)


def check_paths(method: str, policy: Policy, samples: Sequence[Sample]) -> None:
    """Raises ValueError where the model cannot score these samples, however it was launched."""
    _check_kind(method, policy)
    check_path(policy.model, _longest(samples))


def check_episode_trees(
    method: str, policy: Policy, samples: Sequence[Sample], config: ReflectionConfig
) -> None:
    """Raises ValueError where the model cannot run step trees of episodes as long as these samples,
    or as long as those that are learned from may be."""
    check_model(method, policy)
    check_path(policy.model, min(_longest(samples), config.max_tree_tokens))


def check_step_trees(
    method: str, policy: Policy, samples: Sequence[Sample], config: ReflectionConfig
) -> None:
    """Raises ValueError where the model cannot run the step trees of these samples."""
    check_model(method, policy)

    def tokens(sample: Sample) -> int:
        """Of its longest tree, without branches."""
        return max(part.replies[-1][1] for _, part in sample.encoded.parts())

    check_path(policy.model, _longest(samples))
    longest = max(samples, key=tokens)
    end = tokens(longest)
    needed = end + policy.config.max_new_tokens
    if needed > config.max_tree_tokens:
        raise ValueError(
            f"method {method}: the expert's trajectory of task {longest.trajectory.task_id} has "
            f"{end} tokens, with an action of policy.max_new_tokens {needed}, more than "
            f"reflection.max_tree_tokens ({config.max_tree_tokens}): raise that, or lower the other"
        )
