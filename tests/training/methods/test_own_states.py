"""Practice in states of the agent's own: who acts, what the expert says there, what is left out."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file

from stepagent import envs
from stepagent.envs.trajectory import Step, Trajectory
from stepagent.training import run as runs
from stepagent.training.config import Config
from stepagent.training.methods import own_states, practice, rollouts
from stepagent.training.methods.own_states import Labels, labels
from stepagent.training.runs.checkpoints import DamagedState
from stepagent.training.runs.directory import RunError
from stepagent.training.runs.training_run import TrainingRun
from stepagent.training.runs.validation import check_options
from tests import toy_env


@pytest.fixture
def config(config):
    config.env, config.env_args = toy_env.ID, {"size": 6}
    config.policy.max_new_tokens = 4
    config.sft.epochs, config.sft.learning_rate = 2, 1e-2
    config.evaluation.limit, config.evaluation.every_iteration = 2, False
    config.method, config.reflection.states = "implicit", "own"
    config.reflection.iterations, config.reflection.expert_acts = 1, 0.5
    return config


def episode(actions, task="even/20", seed=0, **env_args):
    """A recorded episode of these actions in the toy world."""
    env = envs.make(toy_env.ID, **env_args)
    observation, info = env.reset(seed=seed, options={"task_id": task})
    steps = []
    for action in actions:
        following, reward, *_, info = env.step(action)
        steps.append(Step(observation, "", action, reward, info["valid"]))
        observation = following
    return env, Trajectory(toy_env.ID, task, "train", "mine", seed, tuple(steps), observation)


def test_the_experts_actions_in_the_states_of_an_episode():
    env, trajectory = episode(["add 1", "what?", "add 2", "add 3"])
    label = labels(env, trajectory, 10)
    assert [action for _, action in label.pairs] == ["add 3"] * 4
    start = env.start
    assert [thought for thought, _ in label.pairs] == [
        f"{20 - start - done} are left." for done in (0, 1, 1, 3)
    ]
    assert label.end == ""


def test_lost_slow_and_changed_states_end_an_episodes_states(monkeypatch):
    env, trajectory = episode(["dawdle"] * 7 + ["add 1"] * 2)
    label = labels(env, trajectory, 10)  # 12 steps; 16 to 20 are missing, so 6 or 7 are needed
    assert label.end == "lost"
    assert 5 <= len(label.pairs) <= 7
    env, trajectory = episode(["add 1", "add 2"])
    other = Trajectory(**{**vars(trajectory), "seed": 3})
    assert labels(env, other, 10) == Labels([], "changed")
    action = type(env).expert_action

    def slow(self):
        time.sleep(0.02 * (self.number > self.start))
        return action(self)

    monkeypatch.setattr(type(env), "expert_action", slow)
    label = labels(env, trajectory, 0.01)
    assert (len(label.pairs), label.end) == (1, "slow")


def started(config) -> TrainingRun:
    return TrainingRun(config, Console(quiet=True))


def test_samples_hold_the_agents_states_and_the_experts_replies(config):
    run = started(config)
    with run.stage("iteration-1", 1000) as stage:
        samples = own_states.practice_samples(run, stage)
        figures = dict(stage.figures)
    assert figures["own_episodes"] == len(run.samples)
    assert figures["own_states"] == sum(len(s.encoded.replies) for s in samples)
    assert figures["expert_acts"] == 0.5
    codec = run.policy.codec
    for sample in samples:
        assert sample.trajectory.agent == "iteration-1"
        goal = int(sample.trajectory.task_id.split("/")[1])
        for step, (start, _) in enumerate(sample.encoded.replies):
            state = codec.decode(sample.encoded.ids[:start])
            number = int(state.rsplit("The number is ", 1)[1].split(".")[0])
            expert = practice.action_of(codec, sample.encoded.expert(step))
            assert expert == f"add {min(3, goal - number)}"
    drawn = [[list(s.encoded.expert(i)) for i in range(len(s.encoded.replies))] for s in samples]
    items = practice.practice_trees(samples[0].encoded, [[ids] for ids in drawn[0]], 4096)
    assert sum(item.draws for item in items) == sum(item.draws_of_expert for item in items)


def test_labels_of_other_episodes_are_refused(config):
    run = started(config)
    played = [episode(["add 1"] * 2, task, size=6)[1] for task in ("odd/11", "even/12")]
    samples, _ = own_states.rollouts.encode(run, played)
    with run.stage("iteration-1", 1000) as stage:
        asked = own_states.ask_expert(run, stage, "x", samples)
        assert own_states.ask_expert(run, stage, "x", samples) == asked
        fewer = own_states.first_states(samples, 3)
        for others in (samples[::-1], fewer):
            with pytest.raises(DamagedState, match=r"rollouts/x-expert\.jsonl .*another `output`"):
                own_states.ask_expert(run, stage, "x", others)


def test_a_state_too_long_for_a_tree_ends_the_samples(config):
    run = started(config)
    trajectory = episode(["add 1"] * 9, size=20)[1]
    (sample,), _ = own_states.rollouts.encode(run, [trajectory])
    label = Labels([("x", "add 3")] * 9)
    (full,) = own_states.with_labels(run, [sample], [label])
    assert len(full.encoded.replies) == 9
    run.config.reflection.max_tree_tokens = full.encoded.replies[5][1] + 60
    (cut,) = own_states.with_labels(run, [sample], [label])
    assert 1 <= len(cut.encoded.replies) < 9
    run.config.reflection.max_tree_tokens = 1
    assert own_states.with_labels(run, [sample], [label]) == []


@pytest.mark.parametrize("method", ["implicit", "inverse"])
@pytest.mark.parametrize("states", ["own", "both"])
def test_the_methods_take_them(config, method, states):
    config.method, config.reflection.states = method, states
    config.inverse.discriminator.max_accuracy = 1.1
    config.inverse.discriminator.chance_margin = -1.0
    config.ppo.baseline = "group"
    runs.run(config)
    figures = json.loads((Path(config.output) / "summary.json").read_text())["figures"]
    of_iteration = figures["iteration-1"]
    expected = 6 if states == "own" else 3
    assert of_iteration["own_episodes"] == expected
    assert of_iteration["practised"] > 0
    assert "loss" in of_iteration


def test_an_expert_of_the_reset_only_falls_back_to_its_states(config, capsys):
    config.env, config.env_args = "tests.envs.guess:tests/Guess-v0", {}
    config.policy.max_new_tokens = 6
    run = started(config)
    with run.stage("iteration-1", 1000) as stage:
        notes = []
        stage.note = notes.append
        assert own_states.practice_samples(run, stage) == run.samples
    assert "plans from the reset only" in notes[0]
    config.method, config.output = "dagger", config.output + "-dagger"
    with pytest.raises(RunError, match="asks the expert in the agent's states"):
        runs.run(config)


def test_a_rollout_that_never_leaves_the_experts_road(config):
    config.reflection.expert_acts = 1.0
    run = started(config)
    with run.stage("iteration-1", 1000) as stage:
        samples = own_states.practice_samples(run, stage)
        assert stage.figures["own_on_road"] == 1.0
        assert stage.figures["own_reward"] == 1.0
    for own, expert in zip(samples, run.samples, strict=True):
        texts = [
            [run.policy.codec.decode(s.encoded.expert(i)) for i in range(len(s.encoded.replies))]
            for s in (own, expert)
        ]
        assert texts[0] == texts[1]


def test_dagger_aggregates_and_its_loss_is_the_experts_likelihood(config):
    config.method, config.reflection.iterations = "dagger", 2
    runs.run(config)
    figures = json.loads((Path(config.output) / "summary.json").read_text())["figures"]
    first, second = figures["iteration-1"], figures["iteration-2"]
    assert first["expert_acts"] == 0.5
    assert second["expert_acts"] == 0.25
    of_expert = first["aggregated_states"] - first["own_states"]
    assert second["aggregated_states"] == of_expert + first["own_states"] + second["own_states"]


def steps_of(samples):
    return [len(sample.encoded.replies) for sample in samples]


def test_complete_trajectories_until_the_budget_is_used(config):
    run = started(config)
    sizes = {s.trajectory.task_id: len(s.encoded.replies) for s in run.samples}
    for count in (0, 1, 5, sum(sizes.values()) - 1, sum(sizes.values()), 1000):
        samples = own_states.within_budget(run.samples, count, 3)
        assert sum(steps_of(samples)) == min(count, sum(sizes.values()))
        cut = [s for s in samples if len(s.encoded.replies) < sizes[s.trajectory.task_id]]
        assert len(cut) <= 1
    assert own_states.within_budget(run.samples, None, 3) == run.samples
    (sample,) = own_states.within_budget(run.samples, 1, 3)
    whole = next(s for s in run.samples if s.trajectory == sample.trajectory)
    assert sample.encoded.replies == whole.encoded.replies[:1]
    firsts = [own_states.within_budget(run.samples, 1, seed)[0].trajectory for seed in range(20)]
    assert len({trajectory.task_id for trajectory in firsts}) > 1


def test_it_plays_only_as_many_episodes_as_the_labels_need(config):
    config.expert.limit, config.rollouts.unlabelled, config.reflection.labels = 2, 10, 5
    run = started(config)
    with run.stage("iteration-1", 1000) as stage:
        samples = own_states.practice_samples(run, stage)
        episodes = stage.figures["own_episodes"]
        tasks = own_states.rollouts.tasks(run)
        again = own_states.recorded_samples(run, stage, stage.name, stage.seed, tasks)
    assert sum(steps_of(samples)) == 5
    assert len(samples) <= episodes < 12
    expert = {s.trajectory.task_id for s in run.samples}
    assert not expert & {s.trajectory.task_id for s in samples}
    assert [s.trajectory for s in again] == [s.trajectory for s in samples]
    orders = [own_states.in_drawn_order(tasks, seed) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert {task.task_id for task in orders[2][-2:]} == expert


def test_the_agent_plays_tasks_without_an_expert_trajectory(config):
    config.method, config.expert.limit, config.rollouts.unlabelled = "dagger", 2, 3
    config.reflection.iterations = 1
    run = started(config)
    tasks = rollouts.tasks(run)
    assert [bool(task.expert) for task in tasks] == [True, True, False, False, False]
    assert len({task.task_id for task in tasks}) == 5
    assert {task.split for task in tasks} == {"train"}
    assert rollouts.tasks(run) == tasks
    with run.stage("iteration-1", 1000) as stage:
        samples = own_states.own_samples(run, stage, tasks, None)
    assert {s.trajectory.task_id for s in samples} == {task.task_id for task in tasks}


@pytest.mark.parametrize("states", ["expert", "own", "both"])
def test_the_expert_is_asked_for_no_more_labels_than_it_may(config, states, monkeypatch):
    config.reflection.states, config.reflection.labels = states, 7
    config.reflection.expert_acts = 0.0
    run, questions = started(config), []
    real = toy_env.ToyEnv.expert_action
    monkeypatch.setattr(
        toy_env.ToyEnv, "expert_action", lambda self: questions.append(1) or real(self)
    )
    with run.stage("iteration-1", 1000) as stage:
        samples = own_states.practice_samples(run, stage)
    of_expert = [s for s in samples if s.trajectory.agent == "expert"]
    whole = {s.trajectory.task_id: len(s.encoded.replies) for s in run.samples}
    known = sum(whole[s.trajectory.task_id] for s in of_expert)
    assert len(questions) == (0 if states == "expert" else 7)
    assert sum(steps_of(of_expert)) == {"expert": 7, "own": 0, "both": known}[states]
    if states == "both":  # no trajectory is lost, whatever the labels reach
        assert {s.trajectory.task_id for s in samples} >= set(whole)
    assert stage.figures.get("expert_labels", 0) == len(questions)


def test_dagger_can_train_the_untrained_model_on_all_that_was_gathered(config):
    """Without an update, what is left is the policy that the last iteration began with."""
    config.method, config.reflection.restart = "dagger", True
    config.reflection.learning_rate = 0.0
    runs.run(config)
    out = Path(config.output)
    base, sft, final = (
        load_file(next((out / name).glob("*.safetensors")))
        for name in ("base", "policies/sft", "final")
    )
    assert any(not base[name].equal(sft[name]) for name in base)
    assert all(base[name].equal(final[name]) for name in base)


def test_dagger_gathers_the_labels_of_earlier_iterations_again(config):
    config.method, config.reflection.iterations = "dagger", 2
    config.reflection.labels, config.reflection.updates = 8, 3
    config.rollouts.workers = 1
    runs.run(config)
    summary = json.loads((Path(config.output) / "summary.json").read_text())
    first, second = (summary["figures"][f"iteration-{i}"] for i in (1, 2))
    assert first["own_states"] == second["own_states"] == 8
    assert second["aggregated_states"] == first["aggregated_states"] + 8
    stages = json.loads((Path(config.output) / "stages.json").read_text())
    used = stages["budget"]["iteration-1"]
    assert (used["updates"], used["expert_labels"]) == (3, 8)
    assert used["episodes"] == first["own_episodes"] < 6


def test_shares_are_checked_before_training():
    for change in ({"own_share": 0.0}, {"expert_acts": 1.5}, {"expert_decay": -0.1}):
        config = Config(output="unused", env=toy_env.ID)
        for name, value in change.items():
            setattr(config.reflection, name, value)
        with pytest.raises(ValueError, match=next(iter(change))):
            check_options(config)


def to_the_goal(task, step):
    """An episode that adds so much at a time, and the rest in the end."""
    env = envs.make(toy_env.ID, size=6)
    env.reset(seed=0, options={"task_id": task})
    times, rest = divmod(int(task.split("/")[1]) - env.start, step)
    actions = [f"add {step}"] * times + [f"add {rest}"] * bool(rest)
    return replace(episode(actions, task, size=6)[1], reward=1.0, success=True)


@pytest.mark.parametrize("method", ["implicit", "inverse"])
def test_its_successes_stand_in_for_the_experts_trajectories(config, method, monkeypatch):
    config.method, config.reflection.states = method, "successes"
    config.expert.limit, config.rollouts.unlabelled = 3, 3
    config.inverse.discriminator.max_accuracy = 1.1
    config.inverse.discriminator.chance_margin = -1.0
    config.ppo.baseline = "group"
    seen = []

    def play(run, stage, tasks):
        """One at a time, three at a time, and a failure; on the last task failures alone."""
        names = [task.task_id for task in tasks]
        seen.append(names)
        failure = [episode(["add 1"], name, size=6)[1] for name in names]
        good = [[to_the_goal(name, 1), to_the_goal(name, 3)] for name in names[:-1]]
        return [[*row, bad] for row, bad in zip([*good, []], failure, strict=True)]

    monkeypatch.setattr(rollouts, "play", play)
    run = started(config)
    with run.stage("iteration-1", 1000) as stage:
        samples = own_states.practice_samples(run, stage)
        assert stage.figures["successes"] == 4
        assert stage.figures["kept"] == 4
    labelled = {s.trajectory.task_id for s in run.samples}
    assert len(labelled) == 3
    assert samples[:3] == run.samples
    assert not labelled & set(seen[0])
    assert [s.trajectory.task_id for s in samples[3:]] == seen[0][:-1]
    assert [s.trajectory for s in samples[3:]] == [to_the_goal(t, 3) for t in seen[0][:-1]]

    config.output += "-run"
    runs.run(config)
    figures = json.loads((Path(config.output) / "summary.json").read_text())["figures"]
    states = sum(len(s.encoded.replies) for s in samples)
    assert figures["iteration-1"]["practised"] == states * config.reflection.practice
    assert "loss" in figures["iteration-1"]


def test_nothing_is_practised_where_the_likelihood_in_all_states_is_all_that_is_learned(config):
    """The agent's successes come from episodes; what else it would do in their states does not
    matter."""
    config.method, config.reflection.states = "implicit", "successes"
    config.reflection.preference_weight, config.reflection.sft_weight = 0.0, 1.0
    config.reflection.anchor, config.reflection.iterations = "states", 2
    config.expert.limit, config.rollouts.unlabelled = 3, 3
    runs.run(config)
    assert not (Path(config.output) / "practice").exists()
    figures = json.loads((Path(config.output) / "summary.json").read_text())["figures"]
    budget = json.loads((Path(config.output) / "stages.json").read_text())["budget"]
    for name in ("iteration-1", "iteration-2"):
        assert figures[name]["practised"] == budget[name]["draws"] == 0
        assert budget[name]["updates"] > 0
        assert budget[name]["tokens"] > 0


def test_of_its_successes_the_best_score_is_taken_and_of_those_the_shortest(config, monkeypatch):
    """As where `expert.min_reward` lets several scores count (WebShop)."""
    config.method, config.reflection.states = "implicit", "successes"
    config.expert.limit, config.rollouts.unlabelled = 3, 3
    run = started(config)
    run.config.expert.min_reward = 0.5
    best = []

    def play(run, stage, tasks):
        rows = []
        for number, name in enumerate(task.task_id for task in tasks):
            slow, fast = to_the_goal(name, 1), to_the_goal(name, 3)
            scores = [(0.5, 1.0, 0.1 + 0.2), (1.0, 1.0, 0.1), (0.6, 0.6 + 1e-12, 1.0)][number]
            made = [slow, fast, to_the_goal(name, 2)]
            rows.append([replace(t, reward=r) for t, r in zip(made, scores, strict=True)])
            best.append(rows[-1][[1, 1, 2][number]])
        return rows

    monkeypatch.setattr(rollouts, "play", play)
    with run.stage("iteration-1", 1000) as stage:
        samples = own_states.practice_samples(run, stage)
    assert [s.trajectory for s in samples[3:]] == best


def test_successes_need_tasks_without_an_expert_trajectory(config):
    config.reflection.states = "successes"
    with pytest.raises(ValueError, match=r"set rollouts\.unlabelled"):
        check_options(config)
    config.rollouts.unlabelled = 3
    check_options(config)
