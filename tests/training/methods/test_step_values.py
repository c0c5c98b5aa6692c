"""Step values and effects against numbers worked out by hand, on the environment of one number."""

from __future__ import annotations

import gc
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from stepagent import agents, envs
from stepagent.envs.react import PromptStyle
from stepagent.eval.rollout import run_episodes
from stepagent.training import run as training_run
from stepagent.training.data import Sample
from stepagent.training.methods import branching, find, inverse
from stepagent.training.methods.branching import Branching
from stepagent.training.methods.implicit import figures
from stepagent.training.methods.practice import practice_trees, practise
from stepagent.training.methods.step_rewards import played_rewards
from stepagent.training.methods.step_values import pairs_of, weighed, without_worthless
from stepagent.training.runs.directory import RunDirectory, RunError
from stepagent.training.runs.stage import Stage
from stepagent.training.runs.validation import check_options
from tests import toy_env

SEED = 0
STYLE = PromptStyle(False, False, False)


def _to_go(env, task):
    env.reset(seed=SEED, options={"task_id": task})
    return env.unwrapped.goal - env.unwrapped.start


class Adder(toy_env.ScriptedAgent):
    """Always adds the same number."""

    def __init__(self, number):
        super().__init__(style=STYLE)
        self.number, self.asked = number, 0

    def act(self, turns):
        self.asked += len(turns)
        return [f"add {self.number}" for _ in turns]


@pytest.fixture
def world(config, policy, tmp_path, monkeypatch):
    """One expert trajectory of 10 to go (3, 3, 3, 1) and a policy that always adds 3."""
    env = envs.make(toy_env.ID, split="train")
    task = next(task for task in env.unwrapped.tasks if _to_go(env, task) == 10)
    expert = agents.make_agent("expert")
    expert.style = STYLE
    [trajectory] = run_episodes(toy_env.ID, expert, [task], split="train", seed=SEED)
    assert [step.action for step in trajectory.steps] == ["add 3", "add 3", "add 3", "add 1"]
    encoded = policy.codec.encode(trajectory.messages(env.unwrapped.prompt, STYLE))
    config.env, config.method = toy_env.ID, "implicit"
    config.reflection.value_rollouts, config.reflection.sft_weight = 1, 0.0
    run = SimpleNamespace(config=config, policy=policy, style=STYLE)
    stage = Stage("iteration-1", RunDirectory(tmp_path / "run", ""))
    monkeypatch.setattr(branching, "make_player", lambda run, name: Adder(3))
    return Branching(run, stage, [Sample(trajectory, encoded)])


def _rows(world, *actions):
    """Practice that drew these actions, once each, in every state of each trajectory."""
    codec = world.run.policy.codec
    ids = [codec.reply_ids(action) for action in actions]
    replies = [[ids] * len(sample.encoded.replies) for sample in world.samples]
    return [
        practice_trees(sample.encoded, drawn, 10_000)
        for sample, drawn in zip(world.samples, replies, strict=True)
    ]


def _weights(world, *actions):
    """(step, action) → weight."""
    [practice], [row] = weighed(world, _rows(world, *actions))
    return {
        (branch.step, world.text(branch.ids)): value
        for branch, value in zip(practice.tree.branches, row, strict=True)
    }


def test_values_by_hand(world):
    """Who always adds 3 reaches a goal that is a multiple of 3 away, and else overshoots: nothing.

    10, 7 and 4 to go: behind the expert's 3 it is 7, 4 and 1, all lost. Behind a 1 it is 9, 6 and
    3, all won: better than the expert's. Behind a 2: 8, 5 and 2, lost too. 1 to go: the expert's 1
    ends with 1.0, a 2 overshoots.
    """
    weights = _weights(world, "add 1", "add 2")
    assert weights == {
        (0, "add 1"): 0, (1, "add 1"): 0, (2, "add 1"): 0,
        (0, "add 2"): 0, (1, "add 2"): 0, (2, "add 2"): 0, (3, "add 2"): 1,
    }  # fmt: skip
    assert world.stage.figures["pairs_without_value"] == 6
    assert world.stage.figures["value_gap"] == pytest.approx(1 / 7)
    # 7 actions of the agent; the expert's of steps 0 to 2, since that of step 3 ends the episode.
    assert world.stage.figures["value_episodes"] == 10
    # Behind the expert's: 3, 2, 1 steps until it has overshot. Behind 1: 3, 2, 1. Behind 2: 3, 2,
    # 1, and 0 behind the last, which ends it.
    assert world.stage.figures["value_steps"] == 18
    assert world.stage.figures["not_replayed"] == 0


def test_the_experts_own_return_by_option(world):
    world.run.config.reflection.expert_value = "return"
    weights = _weights(world, "add 1", "add 2")
    assert {key: value for key, value in weights.items() if value} == {
        (step, "add 2"): 1 for step in range(4)
    }
    assert world.stage.figures["value_episodes"] == 7, "none behind the expert's"


def test_values_are_means_over_rollouts(world, monkeypatch):
    """In a second episode the policy adds 1, and always arrives: behind nonsense with 1 to go it
    gets 0 and 1, the expert's action 1."""
    world.run.config.reflection.value_rollouts = 2

    class Second(Adder):
        """Adds 1 in the second half of the episodes: those of each case for the second time."""

        def act(self, turns):
            return ["add 1" if turn.key[0] >= 3 + 8 else "add 3" for turn in turns]

    monkeypatch.setattr(branching, "make_player", lambda run, name: Second(3))
    weights = _weights(world, "add 2", "what")
    assert weights[3, "what"] == 0.5
    assert weights[3, "add 2"] == 1
    assert weights[0, "what"] == 0, "10 to go: half of the episodes arrive, as behind the expert's"
    assert world.stage.figures["value_episodes"] == 2 * (3 + 8)


def test_only_worse_actions_are_left_without_an_anchor(world):
    practices, weights = weighed(world, _rows(world, "add 1", "add 2", "add 2"))
    assert figures(practices, set())["pairs"] == 3 + 2 * 4
    [practice], [row] = without_worthless(practices, weights)
    assert [(b.step, world.text(b.ids)) for b in practice.tree.branches] == [(3, "add 2")]
    assert row == (1.0,)
    assert practice.agent == (0, 0, 0, 1, 2), "who drew the expert's 1, and the 2 twice"


def test_any_number_of_environments_gives_the_same(world, tmp_path):
    world.run.config.rollouts.workers = 1
    one = _weights(world, "add 1", "add 2", "what")
    world.stage = Stage("iteration-2", world.stage.directory)
    world.run.config.rollouts.workers = 16
    assert _weights(world, "add 1", "add 2", "what") == one


def test_what_was_played_is_not_played_again(world, monkeypatch):
    players = []

    def interrupted(run, name):
        players.append(Adder(3))
        if len(players) == 2:  # the first is that of the replays

            def stop(turns, act=players[-1].act):
                if players[-1].asked > 6:
                    raise KeyboardInterrupt
                return act(turns)

            players[-1].act = stop
        return players[-1]

    world.run.config.rollouts.workers = 1
    whole = _weights(world, "add 1", "add 2")
    world.stage = Stage("iteration-2", world.stage.directory)
    del world.replayable
    monkeypatch.setattr(branching, "make_player", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _weights(world, "add 1", "add 2")
    file = world.stage.artifacts / "values-0.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    assert 0 < len(lines) < 10
    file.write_bytes(b"".join(lines)[:-5])  # killed within a line
    assert _weights(world, "add 1", "add 2") == whole
    cases = [json.loads(line)["case"] for line in file.read_text().splitlines()]
    assert sorted(cases) == list(range(10))
    assert len(players) == 3, "the replays are read, not played"


def _other_observation(sample):
    first, second, *rest = sample.trajectory.steps
    steps = (first, replace(second, observation="The number is 99."), *rest)
    return Sample(replace(sample.trajectory, steps=steps), sample.encoded)


def test_trajectories_that_cannot_be_replayed_are_counted_and_left_out(world):
    [sample] = world.samples
    world.samples = [_other_observation(sample), sample]
    practices, weights = weighed(world, _rows(world, "add 2"))
    assert world.stage.figures["not_replayed"] == 1
    assert len(practices) == len(weights) == 1
    assert world.stage.figures["value_episodes"] == 4 + 3
    world.samples = [_other_observation(sample)]
    world.stage = Stage("iteration-2", world.stage.directory)
    del world.replayable
    assert weighed(world, _rows(world, "add 2")) == ([], [])


def test_a_broken_environment_ends_the_run(world):
    world.run.config.env_args = {"broken": f"{world.samples[0].trajectory.task_id}!"}
    with pytest.raises(RunError, match="gave up after 10 failed episodes"):
        world.play("values-0", [branching.Case(0, 0, "add 1", True)] * 12)


def test_an_episode_that_fails_leaves_its_pair_without_weight(world, monkeypatch):
    class Breaks(Adder):
        def act(self, turns):
            if any(turn.messages[-1]["content"].startswith("What is") for turn in turns):
                raise RuntimeError("planted")
            return super().act(turns)

    monkeypatch.setattr(branching, "make_player", lambda run, name: Breaks(3))
    weights = _weights(world, "add 2", "what")
    assert weights[3, "add 2"] == 1
    assert weights[3, "what"] == 0


# Effects ------------------------------------------------------------------------------------------


def _practise(world, monkeypatch, *actions):
    codec = world.run.policy.codec
    ids = [codec.reply_ids(action) for action in actions]
    monkeypatch.setattr(
        "stepagent.training.sampler.local.practices",
        lambda model, jobs, sampling: [[ids] * len(encoded.replies) for encoded, _ in jobs],
    )
    config = world.run.config.reflection
    rows = practise(world.stage, world.run.policy, world.samples, config, world.with_expert_tokens)
    return [practice for row in rows for practice in row]


@pytest.mark.parametrize(("equal", "same"), [("tokens", 1), ("action", 1), ("effect", 4)])
def test_an_action_with_the_experts_effect_is_the_experts(world, monkeypatch, equal, same):
    """An "add   3" is other tokens and another action than "add 3", and has the same effect; in the
    last state the expert adds 1, as one draw does, and 3 overshoots."""
    world.run.config.reflection.equal = equal
    [practice] = _practise(world, monkeypatch, "add   3", "add 1")
    assert practice.draws_of_expert == same
    branches = [(b.step, world.text(b.ids)) for b in practice.tree.branches]
    assert (0, "add 1") in branches
    assert (3, "add   3") in branches
    assert ((0, "add   3") in branches) == (equal != "effect")
    if equal == "effect":
        assert world.stage.figures["same_by_effect"] == 3 / 8


def test_another_score_is_another_effect(world):
    outcome = world.play("own", [branching.Case(0, 0, "add 3")])[0]
    assert world._is_expert_effect(0, 0, outcome)
    assert not world._is_expert_effect(0, 0, replace(outcome, score=outcome.score + 0.1))
    assert not world._is_expert_effect(0, 0, replace(outcome, observation="The number is 0."))
    assert not world._is_expert_effect(0, 0, replace(outcome, replayed=False))
    [last] = world.play("last", [branching.Case(0, 3, "add 1")])
    assert world._is_expert_effect(0, 3, last)


def test_effects_of_a_trajectory_that_cannot_be_replayed_are_unknown(world, monkeypatch):
    world.run.config.reflection.equal = "effect"
    world.samples = [_other_observation(world.samples[0])]
    [practice] = _practise(world, monkeypatch, "add   3", "add 1")
    assert practice.draws_of_expert == 1, "by its text alone"
    assert world.stage.figures["not_replayed"] == 1


# Runs ---------------------------------------------------------------------------------------------


@pytest.fixture
def small(config):
    config.method, config.env, config.env_args = "implicit", toy_env.ID, {"size": 6}
    config.policy.max_new_tokens, config.reflection.iterations = 4, 1
    config.sft.epochs, config.sft.learning_rate = 2, 1e-2
    config.reflection.weights, config.reflection.equal = "value", "effect"
    config.reflection.value_rollouts, config.reflection.sft_weight = 2, 0.5
    config.evaluation.limit, config.evaluation.every_iteration = 1, False
    return config


def test_a_run_that_was_stopped_among_its_episodes_ends_with_the_same_weights(
    small, tmp_path, monkeypatch
):
    whole = replace(small, output=str(tmp_path / "whole"))
    numbers = training_run.run(whole)["figures"]["iteration-1"]
    assert numbers["value_episodes"] > 0
    stopped, episodes = replace(small, output=str(tmp_path / "stopped")), Branching._episodes

    def stop(self, title, cases, todo):
        for number, item in enumerate(episodes(self, title, cases, todo)):
            if title == "values" and number == len(cases) + 1:  # some of the second time
                raise KeyboardInterrupt
            yield item

    with monkeypatch.context() as patch:
        patch.setattr(Branching, "_episodes", stop)
        with pytest.raises(KeyboardInterrupt):
            training_run.run(stopped)
    written = [*Path(stopped.output).glob("artifacts/iteration-1/values-*.jsonl")]
    assert len(written) == 2
    gc.collect()
    again = training_run.run(stopped)["figures"]["iteration-1"]
    for name in numbers.keys() - {"value_seconds"}:
        assert again[name] == numbers[name], name
    one, two = (load_file(Path(r.output) / "final/model.safetensors") for r in (whole, stopped))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_nothing_worse_than_the_expert_leaves_the_policy(small, monkeypatch):
    """Without an anchor; the run ends well and says why."""
    small.reflection.sft_weight = 0.0
    monkeypatch.setattr(Branching, "_play", _always(branching.Outcome(True, "", 1.0, True, 0)))
    figures = training_run.run(small)["figures"]["iteration-1"]
    assert figures["pairs"] > 0
    assert figures["pairs_without_value"] == figures["pairs"]
    folder = Path(small.output) / "policies"
    before, after = (load_file(folder / n / "model.safetensors") for n in ("sft", "iteration-1"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_nothing_that_can_be_replayed_leaves_the_policy_and_says_why(small, monkeypatch):
    monkeypatch.setattr(Branching, "_play", _always(branching.Outcome(False, "", 0.0, False, 0)))
    console = Console(record=True, width=200, file=open("/dev/null", "w"))
    figures = training_run.run(small, console)["figures"]["iteration-1"]
    assert figures["not_replayed"] == 6
    assert "no trajectory of the expert can be replayed; nothing to learn" in console.export_text()


def _always(outcome):
    return lambda self, title, names, cases: [[outcome] * len(cases) for _ in names]


def test_greedy_rollouts_are_not_repeated(small):
    small.rollouts.temperature = 0.0
    with pytest.raises(ValueError, match=r"value_rollouts is 2 with rollouts\.temperature 0"):
        find("implicit").check(small)
    small.reflection.value_rollouts = 1
    find("implicit").check(small)


# Rewards of step-level GRPO -----------------------------------------------------------------------


def _rewards(world, judge, *actions):
    """(step, action) → reward of what the agent did; and the practice with all rewards."""
    [practice], [rewards] = played_rewards(world, _rows(world, *actions), judge)
    steps = len(practice.tree.replies)
    of_branches = {
        (branch.step, world.text(branch.ids)): float(reward)
        for branch, reward in zip(practice.tree.branches, rewards[steps:], strict=True)
    }
    return of_branches, practice, rewards


def test_rewards_by_validity(world):
    """In each state one action is understood, one is not; the same action is played once."""
    rewards, practice, _ = _rewards(world, "valid", "add 1", "what", "Action: what")
    for step in range(3):
        assert rewards[step, "add 1"] == 1
        assert rewards[step, "what"] == rewards[step, "Action: what"] == 0
    assert rewards[3, "what"] == 0
    played = (world.stage.artifacts / "validity.jsonl").read_text().splitlines()
    assert len(played) == 3 * 2 + 1
    assert world.stage.figures["actions_without_reward"] == 0
    assert practice.agent[:4] == (0, 0, 0, 1)


def test_advantages_by_validity(world):
    """A state with a valid and two invalid draws: mean 1/3, so 2/3 and -1/3, over the spread of all
    draws, √(2/9)."""
    _, practice, rewards = _rewards(world, "valid", "add 1", "what", "Action: what")
    (advantages,) = inverse._group_advantages(
        [practice], [torch.tensor(practice.agent)], [rewards], 0.1
    )
    by_action = {
        (b.step, world.text(b.ids)): float(a)
        for b, a in zip(practice.tree.branches, advantages[4:], strict=True)
    }
    for step in range(3):
        assert by_action[step, "add 1"] == pytest.approx(2 / 3 / (2 / 9) ** 0.5, abs=1e-4)
        assert by_action[step, "what"] == pytest.approx(-1 / 3 / (2 / 9) ** 0.5, abs=1e-4)
    assert float(advantages[3]) == by_action[0, "add 1"], "the expert's own, drawn in the last one"


def test_rewards_by_return(world):
    """As in `test_values_by_hand`: behind a 1 the policy that adds 3 arrives, behind the expert's 3
    or a 2 it overshoots; the expert's last 1 arrives."""
    rewards, practice, every = _rewards(world, "return", "add 1", "add 2")
    assert rewards == {
        (0, "add 1"): 1, (1, "add 1"): 1, (2, "add 1"): 1,
        (0, "add 2"): 0, (1, "add 2"): 0, (2, "add 2"): 0, (3, "add 2"): 0,
    }  # fmt: skip
    assert every[:4].tolist() == [0, 0, 0, 1]
    assert practice.agent[:4] == (0, 0, 0, 1)


def test_a_state_of_the_experts_action_alone_is_not_played(world):
    rewards, practice, _ = _rewards(world, "return", "add 1")
    assert (3, "add 1") not in rewards, "it is the expert's there"
    assert practice.agent == (0, 0, 0, 0, 1, 1, 1)


def test_a_state_with_an_action_without_reward_is_left_out(world, monkeypatch):
    play = world._play

    def failing(title, names, cases):
        broken = [case.steps == 1 and case.reply == "add 2" for case in cases]
        return [
            [
                replace(outcome, error="broke") if bad else outcome
                for outcome, bad in zip(outcomes, broken, strict=True)
            ]
            for outcomes in play(title, names, cases)
        ]

    monkeypatch.setattr(world, "_play", failing)
    rewards, practice, _ = _rewards(world, "return", "add 1", "add 2")
    assert {step for step, _ in rewards} == {0, 2, 3}
    assert world.stage.figures["actions_without_reward"] == 2
    assert len(practice.expert) == len(practice.agent) == 4 + len(rewards)
    assert not inverse.expert_members(practice)[1]


def test_parts_of_a_trajectory_are_played_from_their_own_states(world):
    [[practice]] = _rows(world, "add 2")
    part = replace(practice, first_step=2)
    (expert, agent), *_ = pairs_of(world, 0, part)
    assert (expert.steps, agent.steps) == (3, 2)


@pytest.mark.parametrize("judge", ["valid", "return"])
def test_step_level_grpo_by_what_comes_of_an_action(config, judge):
    config.env, config.method = toy_env.ID, "inverse"  # the variant, but for its judge
    config.env_args, config.policy.max_new_tokens = {"size": 4}, 4
    config.reflection.iterations, config.reflection.value_rollouts = 1, 1
    config.evaluation.limit, config.evaluation.every_iteration = 1, False
    config.ppo.baseline, config.inverse.demonstrations = "group", False
    config.inverse.judge = judge
    training_run.run(config)
    figures = json.loads((Path(config.output) / "summary.json").read_text())["figures"]
    assert figures["iteration-1"]["actions_without_reward"] == 0
    assert (Path(config.output) / "practice" / "iteration-1.jsonl").is_file()


def test_they_need_the_experts_states_and_episodes_that_differ(config):
    config.method, config.inverse.judge, config.reflection.states = "inverse", "return", "own"
    with pytest.raises(ValueError, match=r"needs reflection\.states 'expert'"):
        check_options(config)
    config.rollouts.temperature, config.reflection.value_rollouts = 0.0, 2
    with pytest.raises(ValueError, match="value_rollouts is 2 with"):
        find("inverse").check(config)
