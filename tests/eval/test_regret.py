"""Where episodes were lost, in the toy world and in real ones."""

from __future__ import annotations

import json

import pytest

from stepagent import envs
from stepagent.envs.trajectory import Step, Trajectory, write
from stepagent.eval import regret
from tests import toy_env


def recorded(env, actions, seed=0, task_id=None):
    """The trajectory of these actions."""
    task_id = task_id or env.tasks[0]
    observation, info = env.reset(seed=seed, options={"task_id": task_id})
    steps = []
    for action in actions:
        following, reward, done, truncated, info = env.step(action)
        steps.append(Step(observation, "", action, reward, info["valid"]))
        observation = following
        if done or truncated:
            break
    return Trajectory(
        toy_env.ID if isinstance(env, toy_env.ToyEnv) else env.spec.id, task_id, env.split,
        "mine", seed, tuple(steps), observation, info["score"], info["success"],
        fingerprint=env.fingerprint(),
    )  # fmt: skip


def of(env, actions, **options):
    twin = envs.make(env.spec.id if env.spec else toy_env.ID)
    return regret.regret(recorded(env, actions, **options), env, twin)


def test_an_episode_on_the_experts_road_loses_nothing():
    env = envs.make(toy_env.ID)
    env.reset(seed=0, options={"task_id": "even/20"})
    actions = [action for _, action in env.expert_plan()]
    found = of(env, actions, task_id="even/20")
    assert found.reach == [1.0] * (len(actions) + 1)
    assert found.lost_at is None
    assert not any(found.by_step)


def test_the_step_that_overshoots_is_where_it_was_lost():
    env = envs.make(toy_env.ID)
    env.reset(seed=0, options={"task_id": "odd/7"})
    left = env.goal - env.start
    detour = ["add 1"] * (left - 1)  # another road, nothing lost
    found = of(env, [*detour, "add 3"], task_id="odd/7")
    assert found.reach == [1.0] * left + [0.0]
    assert (found.lost_at, found.by_step[-1]) == (left, 1.0)


def test_a_used_up_budget_is_lost_where_it_runs_short():
    env = envs.make(toy_env.ID)
    found = of(env, ["dawdle"] * 12, task_id="even/20")  # 6 or 7 of 12 steps are needed
    needed = -(-(20 - env.start) // 3)
    assert found.lost_at == 12 - needed + 1
    assert found.reach[-1] == 0.0


def test_an_episode_of_another_world_is_said_to_have_changed():
    env, twin = envs.make(toy_env.ID), envs.make(toy_env.ID)
    trajectory = recorded(env, ["add 1", "add 2"], seed=0)
    other = Trajectory(**{**vars(trajectory), "seed": 3})
    assert regret.regret(other, env, twin).changed


def test_webshops_purchase_of_something_else_is_the_step_that_loses():
    env = envs.make("stepagent/WebShop-v0")
    env.reset(seed=0)
    env.step(env.expert_plan()[0][1])
    wrong = next(a for a in env.admissible_actions()[::-1] if a.startswith("click[b"))
    env.reset(seed=0)
    search = env.expert_plan()[0][1]
    found = of(env, [search, wrong, "click[description]", "click[< prev]", "click[buy now]"],
               task_id=env.task_id)  # fmt: skip
    assert found.reach[0] == 1.0
    assert found.lost_at == 5
    assert found.reach[-1] < 1


def test_the_command_writes_a_line_per_episode(tmp_path, capsys):
    env = envs.make(toy_env.ID)
    trajectories = [recorded(env, ["add 3"] * 12, task_id=task) for task in env.tasks[:3]]
    write(tmp_path / "results.jsonl", trajectories)
    assert regret.main([str(tmp_path), "--limit", "2"]) == 0
    assert "at step" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "regret.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    assert {"task_id", "seed", "reach", "lost_at", "changed"} == set(lines[0])
    for line, trajectory in zip(lines, sorted(trajectories, key=lambda t: t.task_id), strict=False):
        assert len(line["reach"]) == len(trajectory.steps) + 1


@pytest.mark.parametrize(
    ("arguments", "message"), [([], "name at least one run"), (["--limit", "0"], "at least 1")]
)
def test_wrong_arguments(arguments, message, tmp_path, capsys):
    assert regret.main([*([str(tmp_path)] if arguments else []), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_an_expert_of_the_reset_only_cannot_say(tmp_path, capsys):
    guess = envs.make("tests.envs.guess:tests/Guess-v0")
    observation, info = guess.reset(seed=0)
    step = Step(observation, "", "1")
    trajectory = Trajectory(
        "tests.envs.guess:tests/Guess-v0", info["task_id"], "train", "mine", 0, (step,)
    )
    write(tmp_path / "results.jsonl", [trajectory])
    assert regret.main([str(tmp_path)]) == 2
    assert "plans from the reset only" in capsys.readouterr().err
