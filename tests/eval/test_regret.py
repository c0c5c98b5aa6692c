"""Where episodes were lost, in the toy world and in real ones."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pytest

from stepagent import envs
from stepagent.agents import make_agent
from stepagent.envs.trajectory import Step, Trajectory, write
from stepagent.eval import regret
from stepagent.eval.compare import main
from stepagent.eval.comparison import compare
from stepagent.eval.evaluate import EvaluationOptions, evaluate
from stepagent.eval.load_runs import load_runs
from stepagent.eval.summary import save, summarise
from stepagent.eval.view import data
from stepagent.eval.view.experts import Experts
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


def lost_run(folder, tasks=3):
    """Recorded episodes that overshoot, with a summary."""
    env = envs.make(toy_env.ID)
    trajectories = [recorded(env, ["add 3"] * 12, task_id=task) for task in env.tasks[:tasks]]
    write(folder / "results.jsonl", trajectories)
    save(summarise(trajectories), folder / "summary.json")
    return trajectories


def test_no_state_is_asked_about_twice(tmp_path, monkeypatch):
    trajectories = lost_run(tmp_path)
    assert regret.main([str(tmp_path), "--limit", "2"]) == 0
    episodes, real = [], regret.regret
    monkeypatch.setattr(
        regret, "regret", lambda *args: episodes.append(args[0].task_id) or real(*args)
    )
    assert regret.main([str(tmp_path)]) == 0
    assert len(episodes) == 1
    file = tmp_path / "regret.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    assert len(lines) == 3
    file.write_text(lines[0] + lines[1][:20])  # as a kill leaves it
    assert len(regret.load(tmp_path / "results.jsonl", trajectories)) == 1
    assert regret.main([str(tmp_path)]) == 0
    assert sorted(file.read_text().splitlines(keepends=True)) == sorted(lines)
    assert len(episodes) == 3
    assert regret.main([str(tmp_path), "--limit", "1"]) == 0
    assert len(episodes) == 3
    assert len(file.read_text().splitlines()) == 3
    assert regret.main([str(tmp_path), "--env-args.size", "12"]) == 0
    assert len(episodes) == 6, "other arguments, another expert"


@pytest.mark.parametrize("line", ["[]", "{}", "null", '{"reach": 3}', '{"reach": ["a"]}', "\\xff"])
def test_a_file_that_was_damaged_is_read_as_far_as_it_goes(line, tmp_path):
    trajectories = lost_run(tmp_path, tasks=1)
    (tmp_path / "regret.jsonl").write_text(f"{line}\n")
    assert regret.load(tmp_path / "results.jsonl", trajectories) == []
    assert regret.main([str(tmp_path)]) == 0
    assert len(regret.load(tmp_path / "results.jsonl", trajectories)) == 1


def test_the_summary_has_the_figures(tmp_path):
    lost_run(tmp_path)
    assert regret.main([str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["regret"]["episodes"] == summary["episodes"] == 3
    assert summary["regret"]["lost_at_step"] >= 1


def test_eval_asks_afterwards_by_option(tmp_path):
    options = EvaluationOptions(limit=3, regret=True, env_args={"size": 6})
    summary = evaluate(toy_env.ID, make_agent("random"), tmp_path, options)
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    assert summary["regret"]["episodes"] == 3
    again = evaluate(toy_env.ID, make_agent("random"), tmp_path, replace(options, regret=False))
    assert again["regret"] == summary["regret"], "what is known stays in the summary"
    fresh = evaluate(
        toy_env.ID, make_agent("random"), tmp_path, replace(options, regret=False, overwrite=True)
    )
    assert "regret" not in fresh


def test_eval_goes_on_where_the_expert_cannot_say(tmp_path):
    options = EvaluationOptions(limit=2, regret=True)
    guess = "tests.envs.guess:tests/Guess-v0"
    summary = evaluate(guess, make_agent("random"), tmp_path, options)
    assert summary["episodes"] == 2
    assert "regret" not in summary


def test_comparison_and_viewer_show_where_episodes_were_lost(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    trajectories = lost_run(tmp_path / "run")
    path = str(tmp_path / "run")
    [run] = load_runs([path], [])
    assert compare([run]).regrets == {}
    assert data.build([run], [], Experts([]), []).index["episodes"]["lost"] == [0, 0, 0]
    assert regret.main([path]) == 0
    known = regret.load(run.path, trajectories)
    row = compare([run]).regrets[run.name]
    assert row == regret.figures(known)
    index = data.build([run], [], Experts([]), []).index["episodes"]
    steps = {r.task_id: r.lost_at or 0 for r in known}
    assert dict(zip(index["task"], index["lost"], strict=True)) == steps
    assert any(index["lost"])
    capsys.readouterr()
    assert main([path]) == 0
    assert "Where episodes were lost" in capsys.readouterr().out
    assert main([path, "--format", "csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    (line,) = [line for line in lines if line["table"] == "regret"]
    assert float(line["lost"]) == pytest.approx(100 * row["lost_rate"], abs=1e-3)
    assert float(line["lost_at_step"]) == row["lost_at_step"]
