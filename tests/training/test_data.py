"""Trajectories as tokens: what a server's model was shown is compared with what is learned in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from stepagent.envs.trajectory import read, write
from stepagent.training import collect, run
from stepagent.training.config import Config
from stepagent.training.data import Sample, encode, shown_otherwise
from stepagent.training.policy import Policy
from tests.training.test_rewritten_history import (
    NAMES,
    PROMPT,
    STYLE,
    make_policy,
    make_samples,
    trajectories,
)


def with_prompts(samples: list[Sample], extra: int = 0) -> list[Sample]:
    """As a server would have told its prompts, with a token more in the last."""
    told = []
    for sample in samples:
        steps = list(sample.trajectory.steps)
        for i, step in enumerate(steps):
            ids = tuple(sample.encoded.state(i))
            more = (extra,) if extra and i == len(steps) - 1 else ()
            steps[i] = replace(step, prompt_tokens=(*ids[:5], *more, *ids[5:]))
        told.append(replace(sample, trajectory=replace(sample.trajectory, steps=tuple(steps))))
    return told


def test_prompts_that_are_the_policys_own_need_no_word():
    for name in NAMES:
        policy = make_policy(name)
        samples = make_samples(policy, name)
        assert shown_otherwise(samples, policy.codec) == (0, ""), "nothing was recorded"
        assert shown_otherwise(with_prompts(samples), policy.codec) == (0, "")


def test_the_first_difference_is_shown():
    policy = make_policy(NAMES[0])
    samples = with_prompts(make_samples(policy, NAMES[0]), extra=10**6)
    steps, warning = shown_otherwise(samples, policy.codec)
    assert steps == 3
    assert warning.startswith("In 3 of 12 steps a server's model was shown other tokens")
    message, shown, own = warning.split("\n")
    assert "task house/0, step 4, from token 5 on, these differ:" in message
    assert shown.startswith("  shown: [")
    assert "1000000" in shown
    assert own.startswith("  the policy: [")
    assert "1000000" not in own


def test_another_template_is_noticed():
    """The model was served with a template that keeps earlier thoughts."""
    policy = make_policy(NAMES[0])
    served = with_prompts(make_samples(make_policy("Qwen2.5"), NAMES[0]))
    samples, _ = encode([s.trajectory for s in served], policy.codec, PROMPT, STYLE, policy.context)
    steps, warning = shown_otherwise(samples, policy.codec)
    assert steps >= len(trajectories(NAMES[0]))
    assert "step 2, from token" in warning or "step 1, from token" in warning


def test_a_run_says_so_and_counts_it(config: Config, tmp_path: Path):
    played = collect.Config(config.env, tmp_path / "expert", env_args=config.env_args, limit=2)
    expert = read(collect.collect(played))
    config.method, config.evaluation.limit = "sft", 1
    config.expert.trajectories = str(tmp_path / "served.jsonl")
    served = [
        replace(t, steps=tuple(replace(s, prompt_tokens=(1, 2, 3)) for s in t.steps))
        for t in expert
    ]
    write(tmp_path / "served.jsonl", served)
    with (tmp_path / "console").open("w") as file:
        summary = run.run(config, Console(file=file))
    steps = sum(len(t.steps) for t in expert)
    assert summary["data_notes"] == {"steps: a server's model was shown other tokens": steps}
    said = (tmp_path / "console").read_text()
    assert said.count(f"In {steps} of {steps} steps a server's model was shown other tokens") == 1
    assert "step 1, from token" in said


def test_a_tokenizer_without_an_end_token_is_trained_and_played(config: Config, tmp_path: Path):
    """The template's own token ends a turn."""
    policy = make_policy(NAMES[0])
    policy.tokenizer.eos_token = None
    policy.model.config.eos_token_id = policy.model.generation_config.eos_token_id = None
    policy.save(tmp_path / "model")
    config.policy.model, config.method = str(tmp_path / "model"), "implicit"
    config.reflection.iterations, config.evaluation.every_iteration = 1, False
    summary = run.run(config)
    assert summary["figures"]["iteration-1"]["practised"] > 0
    again = Policy.load(replace(config.policy, model=str(tmp_path / "run" / "final")))
    assert again.tokenizer.eos_token is None
    assert again.codec.end_of_turn_id in again.eos_ids
