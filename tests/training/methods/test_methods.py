"""Every method end to end on a toy world: it runs, and a run that was stopped ends the same."""

from __future__ import annotations

import gc
import json
import operator
import shutil
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from stepagent import command_line, files
from stepagent.envs.trajectory import Step, Trajectory, read, write
from stepagent.eval import agreement
from stepagent.training import methods, run
from stepagent.training.data import Sample
from stepagent.training.methods import (
    actor_critic,
    discriminator,
    eto,
    find,
    inverse,
    nat,
    ppo,
    rollouts,
    successes,
)
from stepagent.training.methods.episode_advantages import token_rewards
from stepagent.training.methods.practice import Practice, practice_trees
from stepagent.training.runs.directory import RunError
from stepagent.training.runs.metrics import Metrics
from stepagent.training.runs.optimise import TrainingDiverged
from stepagent.training.runs.selection import Selection
from stepagent.training.runs.training_run import TrainingRun
from tests import toy_env

LAST = {
    "ppo": "iteration-2",
    "dagger": "iteration-2",
    "grpo": "iteration-2",
    "gigpo": "iteration-2",
    "dpo": "dpo",
    "rft": "rft",
    "spin": "iteration-2",
    "nat": "nat",
    "eto": "iteration-2",
    "inverse": "iteration-2",
}
"""Method → the last stage of its run."""


@pytest.fixture
def config(config):
    """The run of conftest, on a world of several steps with rewards between 0 and 1."""
    config.env, config.env_args = toy_env.ID, {"size": 6}
    config.policy.max_new_tokens = 4
    config.sft.epochs, config.sft.learning_rate = 2, 1e-2
    config.checkpoint_seconds = 0.0
    config.evaluation.limit, config.evaluation.every_iteration = 2, False
    config.reflection.batch_size = 8
    config.inverse.discriminator.learning_rate = 1e-2
    config.inverse.discriminator.batch_size = 16
    config.inverse.discriminator.max_accuracy = 1.1
    config.inverse.discriminator.chance_margin = -1.0  # so small a one may know nothing
    config.ppo.baseline, config.ppo.entropy = "group", 0.01  # moves even who earns nothing
    config.rollouts.samples, config.rollouts.temperature = 2, 1.0
    preference = config.preference
    preference.batch_size, preference.epochs, preference.iterations = 4, 1, 2
    preference.learning_rate = preference.later_learning_rate = 1e-3
    return config


def _weights(path):
    return load_file(Path(path) / "final" / "model.safetensors")


def _after_sft(path):
    return load_file(Path(path) / "policies" / "sft" / "model.safetensors")


def _play_as_the_expert(monkeypatch):
    monkeypatch.setattr(
        rollouts, "play", lambda run, stage, tasks: [[task.expert.trajectory] for task in tasks]
    )


def _same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def _lines(out):
    return [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def some_succeed(monkeypatch):
    """Every other episode scores 1, whatever it did: a policy this small never does by itself."""
    play = rollouts.play

    def lucky(*args):
        return [[replace(t, reward=float(k % 2)) for k, t in enumerate(row)] for row in play(*args)]

    monkeypatch.setattr(rollouts, "play", lucky)


@pytest.mark.usefixtures("some_succeed")
@pytest.mark.parametrize("method", ["grpo", "gigpo"])
def test_a_group_whose_episodes_differ_is_learned_from(config, method):
    config.method, config.reflection.iterations = method, 1
    summary = run.run(config)
    assert summary["figures"]["iteration-1"]["groups_with_spread"] == 1.0
    assert 0 < summary["figures"]["iteration-1"]["tokens_shared"] < 0.5, "two episodes per task"
    assert not _same(_weights(config.output), _after_sft(config.output))


def test_groups_without_a_spread_leave_the_policy(config):
    config.method, config.reflection.iterations = "grpo", 1
    summary = run.run(config)  # nobody scores
    assert summary["figures"]["iteration-1"]["groups_with_spread"] == 0.0
    assert _same(_weights(config.output), _after_sft(config.output))


@pytest.mark.parametrize("method", list(LAST))
def test_a_stopped_run_ends_with_the_same_weights(
    config, tmp_path, monkeypatch, watch_updates, method, request
):
    config.method = method
    if method in ("grpo", "gigpo"):
        request.getfixturevalue("some_succeed")
    whole = replace(config, output=str(tmp_path / "whole"))
    summary = run.run(whole)
    assert list(summary["scores"]) == [LAST[method]]
    if summary["figures"][LAST[method]].get("kept") != 0:  # RFT without a success is SFT again
        assert not _same(_weights(whole.output), _after_sft(whole.output))

    stopped = replace(config, output=str(tmp_path / "stopped"))
    log = Metrics.log

    def stop_at_the_second_update(self, stage, update, **figures):
        log(self, stage, update, **figures)
        if stage == LAST[method] and update == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Metrics, "log", stop_at_the_second_update)
    try:
        run.run(stopped)
        pytest.fail("the run was over before it could be stopped")
    except KeyboardInterrupt:
        pass
    monkeypatch.setattr(Metrics, "log", log)
    gc.collect()  # frees the lock on the run's directory, as the end of a process does
    assert not (tmp_path / "stopped/policies" / LAST[method]).exists()
    updates = watch_updates()
    run.run(stopped)
    assert updates[0] == (LAST[method], 2), "the stage resumes from its checkpoint"
    assert _same(_weights(whole.output), _weights(stopped.output))
    keys = [(line["stage"], line["update"]) for line in _lines(stopped.output)]
    assert len(set(keys)) == len(keys), "an update is in metrics.jsonl twice"
    assert "loss" in _lines(whole.output)[-1]


def test_inverse_logs_its_health(config):
    config.method, config.inverse.discriminator.epochs = "inverse", 8
    run.run(config)
    lines = _lines(config.output)
    first = next(line for line in lines if line["stage"] == "iteration-1")
    assert first["ratio"] == pytest.approx(1, abs=1e-4), "before the first step"
    assert first["clip_fraction"] == 0
    assert {"kl", "entropy", "surrogate"} <= set(first)
    judges = [line for line in lines if line["stage"] == "iteration-1-discriminator"]
    assert judges[0]["loss"] == pytest.approx(2 * 0.693147, abs=0.3), "a new D knows little"
    assert judges[-1]["loss"] < judges[0]["loss"]
    assert {"agent_accuracy", "expert_accuracy", "entropy"} <= set(judges[0])
    summary = json.loads((Path(config.output) / "summary.json").read_text())
    figures = summary["figures"]["iteration-2"]
    assert figures["reward_gap"] == pytest.approx(
        figures["expert_reward"] - figures["agent_reward"]
    )
    assert figures["expert_reward"] > figures["agent_reward"]


@pytest.mark.parametrize("reward", ["final", "both"])
def test_reward_types(config, monkeypatch, reward):
    config.method, config.inverse.reward = "inverse", reward
    config.reflection.iterations, config.ppo.entropy = 1, 0.0
    step_policy, play, seen = inverse.step_policy, rollouts.play, []

    def half_of_them_succeed(*args):
        return [[replace(t, reward=float(k)) for k, t in enumerate(row)] for row in play(*args)]

    def watched(stage, actor, items, *rest):
        seen.extend(items)
        return step_policy(stage, actor, items, *rest)

    monkeypatch.setattr(rollouts, "play", half_of_them_succeed)
    monkeypatch.setattr(inverse, "step_policy", watched)
    figures = run.run(config)["figures"]["iteration-1"]
    assert figures["episodes"] == 12
    assert ("reward_gap" in figures) == (reward == "both")
    episodes = [item for item in seen if not item.tree.branches][-12:]
    assert len(episodes) == 12
    assert (len(seen) > 12) == (reward == "both")
    signs = {float(item.advantages.sign().unique()) for item in episodes}
    assert signs == {-1.0, 1.0}, "better and worse than the mean of their task"
    assert not _same(_weights(config.output), _after_sft(config.output))


def test_inverse_warms_its_value_head_up_before_the_first_advantages(config, monkeypatch):
    """The first baselines are then near the mean reward of a state, not 0."""
    config.method, config.ppo.baseline, config.inverse.judge = "inverse", "value", "oracle"
    config.ppo.critic_warmup, config.ppo.critic_learning_rate = 8, 0.1
    real, baselines = inverse.practice_advantages, []

    def watched(actor, practices, *rest):
        values = [actor.outputs(item.tree) for item in practices]
        baselines.append(torch.cat([out.values[out.first] for out in values]))
        return real(actor, practices, *rest)

    monkeypatch.setattr(inverse, "practice_advantages", watched)
    run.run(config)
    lines = _lines(config.output)
    errors = [line["value_error"] for line in lines if line["stage"] == "iteration-1-critic"]
    assert len(errors) == 8
    assert min(errors) < errors[0]
    assert not any(line["stage"] == "iteration-2-critic" for line in lines), "it is new only once"
    assert [float(values.abs().max()) > 0 for values in baselines] == [False, True, True]
    first = next(line for line in lines if line["stage"] == "iteration-1")
    assert first["ratio"] == pytest.approx(1, abs=1e-4), "the policy did not move"


@pytest.mark.parametrize(("max_accuracy", "chance_margin"), [(0.0, 0.0), (1.1, 1.0)])
def test_a_discriminator_that_says_nothing_stops_the_run(config, max_accuracy, chance_margin):
    config.method = "inverse"
    judge = config.inverse.discriminator
    judge.max_accuracy, judge.chance_margin = max_accuracy, chance_margin
    config.inverse.demonstrations = False
    summary = run.run(config)
    assert summary["figures"]["iteration-1"]["stopped"] == 1
    assert "iteration-2" not in summary["figures"]
    run.run(config)  # a stopped run is done


@pytest.mark.parametrize("keep", [True, False])
def test_a_run_that_a_later_stage_has_stopped_ends_the_same_again(config, monkeypatch, keep):
    reasons = iter(["", "nothing is left to learn"])
    monkeypatch.setattr(inverse.discriminator, "verdict", lambda *_: next(reasons))
    config.method, config.reflection.iterations, config.keep_policies = "inverse", 3, keep
    summary = run.run(config)
    final = _weights(config.output)
    assert list(summary["figures"]) == ["sft", "iteration-1", "iteration-2"]
    again = run.run(config)
    assert _same(_weights(config.output), final)
    assert again["scores"] == summary["scores"]
    if keep:
        assert not _same(final, _after_sft(config.output)), "the first iteration has moved it"


@pytest.mark.parametrize("method", ["inverse", "ppo"])
def test_an_iteration_with_nothing_to_learn_costs_no_value_head_and_no_judge(
    config, tmp_path, monkeypatch, method
):
    module, name = {
        "inverse": (inverse, "step_advantages"),
        "ppo": (ppo, "episode_advantages"),
    }[method]
    real, heads, judges = getattr(module, name), [], []

    def nothing_in_the_second(run, stage, *rest):
        return [] if stage.name == "iteration-2" else real(run, stage, *rest)

    monkeypatch.setattr(module, name, nothing_in_the_second)
    for kind, loader, paths in (
        (actor_critic.ActorCritic, "load_head", heads),
        (discriminator.Discriminator, "load", judges),
    ):
        load = getattr(kind, loader)

        def watched(self, path, load=load, paths=paths):
            paths.append(path)
            load(self, path)

        monkeypatch.setattr(kind, loader, watched)
    config.method, config.ppo.baseline, config.reflection.iterations = method, "value", 3
    run.run(config)
    first = Path(config.output) / "artifacts/iteration-1"
    kept = [path for path in heads if path.name == actor_critic.HEAD]
    assert kept == [first / actor_critic.HEAD] * 2
    assert judges == [first / discriminator.WEIGHTS] * (method == "inverse")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "ppo", "rollouts.samples": 1}, "rollouts.samples 1"),
        ({"method": "ppo", "rollouts.temperature": 0.0}, "at temperature 0"),
        ({"method": "inverse", "reflection.practice": 1}, "one practice action"),
        ({"method": "eto", "rollouts.temperature": None}, "at temperature 0"),
        ({"method": "ppo", "ppo.spread_floor": 0.0}, "spread_floor is 0.0"),
        ({"method": "rft", "sft.epochs": 0}, "sft.epochs"),
        ({"method": "eto", "rollouts.samples": 0}, "at least 1"),
        ({"method": "eto", "rollouts.unlabelled": 3}, "unlabelled must be 0"),
        ({"method": "implicit", "reflection.practice": 0}, "reflection.practice is 0"),
        ({"method": "implicit", "reflection.beta": 0.0}, "reflection.beta is 0.0"),
        ({"method": "implicit", "reflection.max_tree_tokens": 20}, "reflection.max_tree_tokens"),
        ({"method": "implicit", "reflection.max_grad_norm": 0.0}, "max_grad_norm is 0.0"),
        ({"method": "inverse", "inverse.discriminator.backbone": "/nowhere"}, "/nowhere"),
        ({"method": "inverse", "inverse.discriminator.batch_size": 0}, "discriminator.batch_size"),
        ({"method": "sft", "evaluation.agents": ["randm"]}, "unknown agent 'randm'"),
        ({"method": "sft", "evaluation.env": "stepagent/Nowhere-v0"}, "no environment"),
    ],
)
def test_what_cannot_work_is_said_before_training(config, change, message):
    for key, value in change.items():
        *path, last = key.split(".")
        holder = config
        for name in path:
            holder = getattr(holder, name)
        setattr(holder, last, value)
    with pytest.raises(ValueError, match=message):
        run.run(config)
    assert not (Path(config.output) / "policies").exists()


def test_trajectories_of_another_prompt_or_environment_are_refused(config, tmp_path):
    config.method, config.sft.epochs = "sft", 1
    run.run(config)
    good = read(Path(config.output) / "expert" / "trajectories.jsonl")
    for name, change, message in (
        ("prompt", {"fingerprint": {**good[0].fingerprint, "prompt": "0123"}}, "another prompt"),
        ("env", {"env": "tests/Other-v0"}, "holds trajectories of tests/Other-v0"),
    ):
        write(tmp_path / "bad.jsonl", [*good[1:], replace(good[0], **change)])
        bad = replace(config, output=str(tmp_path / name))
        bad.expert = replace(config.expert, trajectories=str(tmp_path / "bad.jsonl"))
        with pytest.raises(RunError, match=message):
            run.run(bad)
        gc.collect()


def test_pairs_without_a_difference_are_counted_and_the_policy_stays(config, monkeypatch):
    """The agent equals the expert everywhere: its episodes are the expert's own trajectories."""
    config.method, config.keep_policies = "dpo", True
    _play_as_the_expert(monkeypatch)
    figures = run.run(config)["figures"]["dpo"]
    assert figures["pairs"] == 0
    assert figures["pairs_without_difference"] == 6
    assert _same(_weights(config.output), _after_sft(config.output))


def test_ties_alone_leave_the_policy_as_it_is(config, monkeypatch):
    config.method, config.preference.iterations = "eto", 1
    _play_as_the_expert(monkeypatch)
    figures = run.run(config)["figures"]["iteration-1"]
    assert (figures["ties"], figures["pairs"]) == (6, 0)
    assert _same(_weights(config.output), _after_sft(config.output))


def test_implicit_with_an_agent_that_is_the_expert_leaves_the_policy(config, monkeypatch):
    def copies(model, jobs, sampling):
        return [[[job.ids[a:b]] * 2 for a, b in job.replies] for job, _ in jobs]

    config.method, config.reflection.iterations = "implicit", 1
    monkeypatch.setattr("stepagent.training.sampler.local.practices", copies)
    config.reflection.weights = "value"  # with nothing to play either
    console = Console(record=True, width=200, file=open("/dev/null", "w"))
    figures = run.run(config, console)["figures"]["iteration-1"]
    assert (figures["same_as_expert"], figures["pairs"]) == (1, 0)
    assert "acts as the expert everywhere; nothing to learn" in console.export_text()
    assert _same(_weights(config.output), _after_sft(config.output))


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_a_loss_that_is_no_number_stops_trls_trainers_too(config, method):
    config.method = method
    (config.sft if method == "sft" else config.preference).learning_rate = 1e30
    config.sft.epochs = config.preference.epochs = 4
    with pytest.raises(TrainingDiverged, match="lower the learning rate"):
        run.run(config)
    assert not (Path(config.output) / "policies" / method).exists()


def test_failed_episodes_are_not_played_again(config, monkeypatch):
    """Else a later iteration would play them anew, with another policy."""
    played, real = [], rollouts.run_from

    def failing(env, player, starts, **options):
        played.append(len(starts))
        for i, (place, trajectory) in enumerate(real(env, player, starts, **options)):
            yield place, (replace(trajectory, error="broke") if i == 2 else trajectory)

    monkeypatch.setattr(rollouts, "run_from", failing)
    config.method, config.rollouts.samples = "spin", 1
    run.run(config)
    assert played == [6, 6]


def test_an_expert_too_long_for_nats_suffix_is_left_out(config, monkeypatch):
    encode = rollouts.encode

    def tight(run, trajectories, style=None):
        samples, lost = encode(run, trajectories, style)
        own = [t for t in trajectories if t.agent == "expert"]
        return ([], len(own)) if own and own[0].task_id.endswith("1") else (samples, lost)

    monkeypatch.setattr(rollouts, "encode", tight)
    config.method = "nat"
    assert run.run(config)["figures"]["nat"]["good"] >= 4


def test_inverse_with_an_agent_that_is_the_expert_keeps_the_policy(config, monkeypatch):
    def copies(stage, policy, samples, config, by_effect):
        return [
            practice_trees(s.encoded, [[s.encoded.ids[a:b]] for a, b in s.encoded.replies], 9999)
            for s in samples
        ]

    config.method = "inverse"
    monkeypatch.setattr(inverse, "practise", copies)
    console = Console(record=True, width=200, file=open("/dev/null", "w"))
    figures = run.run(config, console)["figures"]["iteration-1"]
    assert figures["same_as_expert"] == 1
    assert "acts as the expert everywhere" in console.export_text()
    out = Path(config.output)
    assert _same(_weights(out), _after_sft(out))


def test_a_reference_of_another_architecture_is_refused(config, tmp_path):
    from stepagent.agents.models import ModelError
    from stepagent.training.policy import Policy

    policy = Policy.tiny(config.policy, ["add 1 2 3"], 0)
    config.policy.tiny = replace(config.policy.tiny, hidden_size=16)
    Policy.tiny(config.policy, ["add 1 2 3"], 0).save(tmp_path / "other")
    before = {n: p.clone() for n, p in policy.model.named_parameters()}
    with pytest.raises(ModelError, match="another architecture"), policy.as_in(tmp_path / "other"):
        pass
    assert all(torch.equal(p, before[n]) for n, p in policy.model.named_parameters())


def test_every_episode_of_a_task_is_drawn_anew(config, monkeypatch):
    """In an iteration and in the next one; the same again where a run is made again."""
    played = {}

    def play(run, stage, tasks):
        played[stage.name] = real(run, stage, tasks)
        return played[stage.name]

    real = rollouts.play
    monkeypatch.setattr(rollouts, "play", play)
    config.method, config.rollouts.samples, config.reflection.learning_rate = "ppo", 3, 0.0
    run.run(config)
    assert list(played) == ["iteration-1", "iteration-2"]
    drawn = [
        [tuple(step.action for step in t.steps) for episodes in row for t in episodes]
        for row in zip(*played.values(), strict=True)
    ]
    assert all(len(row) == 6 for row in drawn)
    assert sum(len(set(row)) for row in drawn) > 4 * len(drawn), drawn


# The methods' own rules ---------------------------------------------------------------------------


def _sample(actions, reward, agent="expert"):
    from stepagent.agents.chat import Encoded

    steps = tuple(Step("o", "", a) for a in actions)
    trajectory = Trajectory("e", "t/1", "train", agent, 0, steps, reward=reward)
    n = len(actions)
    return Sample(
        trajectory, Encoded(list(range(3 * n)), [(3 * i + 1, 3 * i + 3) for i in range(n)])
    )


def test_eto_pairs():
    expert, worse = _sample("ab", 0.8), _sample("abcdefghij", 0.2, "eto")
    pair = eto.compare(expert, worse, 5)
    assert pair.chosen is expert
    assert len(pair.rejected.encoded.replies) == len(pair.rejected.trajectory.steps) == 7
    assert pair.rejected.encoded.ids[-1] == 20, "cut at the end of the seventh reply"
    better = _sample("c", 0.9, "eto")
    swapped = eto.compare(expert, better, 5)
    assert swapped.chosen is better
    assert swapped.rejected.encoded.replies == expert.encoded.replies
    long_expert = _sample("abcdefghij", 0.8)
    assert eto.compare(long_expert, better, 5).rejected is long_expert, "nothing is cut here"
    assert eto.compare(expert, worse, None).rejected is worse
    assert eto.compare(expert, _sample("c", 0.8, "eto"), 5) is None, "ties are skipped"


def test_eto_explores_greedily_and_cuts_nothing_on_alfworld(config):
    config.rollouts.temperature = None
    assert find("eto").temperature(config) == 0
    assert find("dpo").temperature(config) == 1
    config.rollouts.temperature = 0.7
    assert find("eto").temperature(config) == 0.7
    assert eto.extra_rounds(config) == 5
    config.preference.cut = "never"
    assert eto.extra_rounds(config) is None
    config.env = "stepagent/ALFWorld-v0"
    for choice, rounds in (("auto", None), ("always", 5), ("never", None)):
        config.preference.cut = choice
        assert eto.extra_rounds(config) == rounds


def test_rft_drops_lucky_successes(config, monkeypatch):
    play = rollouts.play

    def lucky(*args):
        def episode(t, k):
            steps = [replace(s, valid=k > 0, action=f"{s.action} {k}") for s in t.steps]
            return replace(t, reward=1.0, steps=tuple(steps))

        return [[episode(t, k) for k, t in enumerate(row)] for row in play(*args)]

    monkeypatch.setattr(rollouts, "play", lucky)
    config.method, config.rollouts.sound_only = "rft", True
    figures = run.run(config)["figures"]["rft"]
    assert (figures["successes"], figures["lucky"], figures["kept"]) == (12, 6, 6)


@pytest.mark.parametrize(
    ("method", "section", "part"),
    [
        ("ppo", "reflection", ""),
        ("eto", "preference", ""),
        pytest.param("spin", "preference", "", marks=pytest.mark.slow),
        ("inverse", "inverse.discriminator", "-discriminator"),
    ],
)
def test_adamw_continues_from_the_iteration_before_by_option(
    config, tmp_path, monkeypatch, watch_updates, method, section, part
):
    """Kept moments change the second iteration, and a stopped run still ends the same."""
    config.method, settings = method, operator.attrgetter(section)(config)
    config.preference.epochs, config.inverse.discriminator.epochs = 3, 3
    config.inverse.discriminator.early_stop_accuracy = 1.1  # never
    settings.keep_optimiser = True
    kept = replace(config, output=str(tmp_path / "kept"))
    run.run(kept)
    moments = load_file(tmp_path / f"kept/artifacts/iteration-1{part}/optimiser.safetensors")
    steps = {name: float(v) for name, v in moments.items() if name.endswith("step")}
    after = load_file(tmp_path / f"kept/artifacts/iteration-2{part}/optimiser.safetensors")
    assert all(float(after[name]) > count > 0 for name, count in steps.items())
    settings.keep_optimiser = False
    reset = replace(config, output=str(tmp_path / "reset"))
    run.run(reset)
    settings.keep_optimiser = True
    first = [
        load_file(tmp_path / name / "policies/iteration-1/model.safetensors")
        for name in ("kept", "reset")
    ]
    assert _same(*first)
    assert not _same(_weights(kept.output), _weights(reset.output))

    stopped, log = replace(config, output=str(tmp_path / "stopped")), Metrics.log

    def stop(self, stage, update, **figures):
        log(self, stage, update, **figures)
        if (stage, update) == (f"iteration-2{part}", 2):
            raise KeyboardInterrupt

    monkeypatch.setattr(Metrics, "log", stop)
    with pytest.raises(KeyboardInterrupt):
        run.run(stopped)
    monkeypatch.setattr(Metrics, "log", log)
    gc.collect()
    updates = watch_updates()
    run.run(stopped)
    assert updates[0] == (f"iteration-2{part}", 2)
    assert _same(_weights(kept.output), _weights(stopped.output))


def test_rft_keeps_each_sequence_of_actions_once():
    samples = [_sample("ab", 1.0), _sample("cd", 1.0), _sample("cd", 1.0), _sample("e", 1.0)]
    assert successes.distinct(samples, expert=_sample("ab", 1.0)) == [samples[1], samples[3]]
    assert successes.is_success(samples[0].trajectory, 1.0)
    assert not successes.is_success(_sample("a", 0.99).trajectory, 1.0)


def test_nat_prompts_with_its_positive_suffix(config):
    config.method = "nat"
    summary = run.run(config)
    assert summary["prompt"]["suffix"] == nat.POSITIVE
    from stepagent.envs.react import Prompt, PromptStyle

    prompt = Prompt("Do.", (("o", "t", "a"),))
    assert prompt.system(PromptStyle(False, False, False, nat.NEGATIVE)) == nat.NEGATIVE
    assert prompt.system(PromptStyle(suffix="x")).endswith("\n\nx")
    assert prompt.checksum(PromptStyle(suffix="x")) != prompt.checksum(PromptStyle())


def test_nat_chooses_on_dev_and_is_measured_with_its_suffix(config, tmp_path, monkeypatch):
    """Its SFT and its control are without one; a run that was stopped ends the same."""
    measure, suffixes = agreement.measure, []

    def watched(model, codec, trajectories, prompt, style, context):
        suffixes.append(style.suffix)
        return measure(model, codec, trajectories, prompt, style, context)

    monkeypatch.setattr(agreement, "measure", watched)
    config.method, config.rollouts.samples = "nat", 1
    config.sft.epochs, config.sft.patience = 3, 0
    config.sft.select, config.evaluation.agreement, config.evaluation.limit = "dev", 3, 1
    config.evaluation.every_iteration = config.evaluation.matched_sft = True
    whole = replace(config, output=str(tmp_path / "whole"))
    summary = run.run(whole)
    # Three passes and the policy that was chosen, of SFT and of NAT; the control comes after them.
    assert suffixes[:8] == [""] * 4 + [nat.POSITIVE] * 4
    assert set(suffixes[8:]) == {""}
    assert summary["figures"]["nat"]["passes"] == 3
    assert not (tmp_path / "whole/artifacts/nat/best").exists()

    suffixes.clear()
    (tmp_path / "whole/eval/nat" / agreement.SUMMARY).unlink()
    assert run.run(whole)["agreement"] == summary["agreement"]
    assert suffixes == [nat.POSITIVE]

    stopped, log = replace(config, output=str(tmp_path / "stopped")), Metrics.log

    def stop(self, stage, update, **figures):
        log(self, stage, update, **figures)
        if (stage, update) == ("nat", 2):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "log", stop)
        with pytest.raises(KeyboardInterrupt):
            run.run(stopped)
    gc.collect()  # frees the lock on the run's directory, as the end of a process does
    again = run.run(stopped)
    assert again["figures"] == summary["figures"]
    assert _same(_weights(whole.output), _weights(stopped.output))


@pytest.mark.parametrize("method", ["sft", "rft", "nat"])
def test_what_was_chosen_on_dev_is_gone_when_the_run_is_started_again(config, monkeypatch, method):
    config.method, config.sft.select, config.rollouts.samples = method, "dev", 1

    def killed(selection):
        if selection.stage.name == method:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Selection, "drop", killed)
        with pytest.raises(KeyboardInterrupt):
            run.run(config)
    gc.collect()
    best = Path(config.output) / "artifacts" / method / "best"
    assert best.exists()
    run.run(config)
    assert not best.exists()


@pytest.mark.parametrize("method", ["rft", "nat", "dagger"])
def test_the_trained_model_is_gone_before_the_untrained_one_is_loaded(config, monkeypatch, method):
    """A GPU may not hold both."""
    load, models, alive = TrainingRun._load, [], []

    def watched(training_run):
        alive.extend(model() is not None for model in models)
        policy = load(training_run)
        models.append(weakref.ref(policy.model))
        return policy

    monkeypatch.setattr(TrainingRun, "_load", watched)
    config.method, config.reflection.restart, config.rollouts.samples = method, True, 1
    config.reflection.iterations = 1
    run.run(config)
    assert alive == [False]


def test_an_episodes_reward_comes_with_its_last_token():
    assert token_rewards(0.5, torch.tensor([0.1, 0.0])).tolist() == pytest.approx([-0.1, 0.5])


def test_pairs_of_a_practised_item():
    assert Practice(None, (1.0, 2.0), (3.0, 0.0)).pairs == 3


def test_a_variants_name_stands_for_its_options_unless_they_are_chosen(config):
    config.method, config.reflection.sft_weight = "anchor-only", 0.3
    methods.apply_variant(config, ["method", "reflection.sft_weight"])
    assert config.method == "implicit"
    assert (config.reflection.preference_weight, config.reflection.sft_weight) == (0.0, 0.3)
    before = command_line.dump(config)
    methods.apply_variant(config, [])
    assert command_line.dump(config) == before, "a method's own name changes nothing"


def test_the_command_line_takes_the_name_of_a_variant(config):
    config.method, config.sft.epochs = "sft-best", 7
    run._adjust(config, ["--method", "sft-best", "--sft.epochs=7"])
    assert (config.method, config.sft.select, config.sft.epochs) == ("sft", "dev", 7)


@pytest.mark.slow
@pytest.mark.usefixtures("some_succeed")
@pytest.mark.parametrize("after", ["updates", "files"])
@pytest.mark.parametrize("method", ["inverse", "grpo"])
def test_a_run_stopped_in_any_stage_and_epoch_ends_with_the_same_weights(
    config, tmp_path, monkeypatch, method, after
):
    """Stopped after the first, a middle and the last update of every stage, or after some of the
    files that it writes, a judge's among them."""
    config.method = method
    whole = replace(config, output=str(tmp_path / "whole"))
    log, write_file, written = Metrics.log, files.write_atomically, list[str]()

    def watched(path, save):
        write_file(path, save)
        written.append(str(path))

    with monkeypatch.context() as patch:
        for module in _with_attribute("write_atomically"):
            patch.setattr(module, "write_atomically", watched)
        run.run(whole)
    expected, updates = _weights(whole.output), dict[str, list[int]]()
    for line in _lines(whole.output):
        updates.setdefault(line["stage"], []).append(line["update"])
    points: list[tuple[str, int] | int] = [*range(1, len(written), max(1, len(written) // 8))]
    if after == "updates":
        points = [(s, u) for s, n in updates.items() for u in {n[0], n[len(n) // 2], n[-1]}]
    faults = []
    for number, point in enumerate(points):
        stopped, count = replace(config, output=str(tmp_path / str(number))), 0

        def stop_log(self, stage, update, point=point, **figures):
            log(self, stage, update, **figures)
            if point == (stage, update):
                raise KeyboardInterrupt

        def stop_write(path, save, point=point):
            nonlocal count
            write_file(path, save)
            count += 1
            if count == point:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Metrics, "log", stop_log)
            for module in _with_attribute("write_atomically"):
                patch.setattr(module, "write_atomically", stop_write)
            with pytest.raises(KeyboardInterrupt):
                run.run(stopped)
        gc.collect()
        run.run(stopped)
        if not _same(expected, _weights(stopped.output)):
            faults.append(point if isinstance(point, tuple) else written[point - 1])
        gc.collect()
        shutil.rmtree(stopped.output)
    assert not faults


def _with_attribute(name):
    """Our modules that have it."""
    ours = (m for n, m in list(sys.modules.items()) if n.startswith("stepagent."))
    return [module for module in ours if name in vars(module)]
