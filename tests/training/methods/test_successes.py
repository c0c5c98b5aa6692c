"""Successes of the agent's own: which count, and what is left of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stepagent import envs
from stepagent.envs.trajectory import Step, Trajectory
from stepagent.errors import SetupError
from stepagent.training import run
from stepagent.training.methods import rollouts, successes
from stepagent.training.methods.successes import is_sound, without_refused


def _episode(*steps):
    return Trajectory("e", "t/1", "train", "rft-0", 0, tuple(Step(*s) for s in steps), reward=1.0)


def test_a_success_by_luck_is_not_sound():
    task, page = ("Who wrote it?", "", "search[It]"), "It was written by The Bob Smith, a poet."
    assert is_sound(_episode(task, (page, "", "finish[Bob Smith]")))
    assert is_sound(_episode(task, (page, "", "Finish [bob smith")))
    assert not is_sound(_episode(task, (page, "", "finish[Ann]"))), "never read"
    assert not is_sound(_episode(task, (page, "", "finish[Bob Smi]"))), "half a word"
    assert not is_sound(_episode(("Was it Bob?", "", "finish[Bob]"))), "only in the task"
    assert is_sound(_episode(task, (page, "", "finish[yes]")))
    assert not is_sound(_episode(("Is it so?", "", "finish[yes]")))
    assert is_sound(_episode(("A lamp.", "", "take lamp"), ("Taken.", "", "use lamp")))
    refused = ("A lamp.", "", "take lmap", 0.0, False)
    assert not is_sound(_episode(refused, ("What?", "", "take lamp")))


LIFE_SPANS = {"task_set": "all", "tasks": "lifespan-longest-lived"}


@pytest.fixture(params=[("ALFWorld", {}), ("ScienceWorld", LIFE_SPANS), ("WebShop", {})], ids=str)
def env(request):
    name, arguments = request.param
    env = envs.make(f"stepagent/{name}-v0", split="train", **arguments)
    yield env
    env.close()


def _expert_actions(env) -> list[str]:
    env.reset(seed=3, options={"task_id": env.tasks[0]})
    actions, ended = [], False
    while not ended:
        actions.append(env.expert_action()[1])
        _, _, terminated, truncated, _ = env.step(actions[-1])
        ended = terminated or truncated
    return actions


def _played(env, actions) -> Trajectory:
    task = env.tasks[0]
    observation, info = env.reset(seed=3, options={"task_id": task})
    steps = []
    for action in actions:
        before = observation
        observation, reward, _, truncated, info = env.step(action)
        step = Step(before, "", action, reward=float(reward), valid=bool(info["valid"]))
        steps.append(replace(step, tokens=(7,), prompt_tokens=(1, 2)))
    return Trajectory(
        env="e",
        task_id=task,
        split="train",
        agent="a",
        seed=3,
        steps=tuple(steps),
        final_observation=observation,
        reward=float(info["score"]),
        success=bool(info["success"]),
        truncated=truncated,
        metrics={name: float(value) for name, value in info.get("metrics", {}).items()},
    )


def test_refused_actions_are_left_out(env):
    actions = _expert_actions(env)
    clean = _played(env, actions)
    full = _played(env, [a for action in actions for a in ("fly to the moon", action)])
    assert [step.valid for step in full.steps] == [False, True] * len(clean.steps)
    shorter = without_refused(env, full)
    steps = tuple(replace(step, prompt_tokens=()) for step in clean.steps)
    assert shorter == replace(clean, steps=steps)
    assert is_sound(shorter)
    assert not is_sound(full)


def test_a_success_without_refused_actions_is_not_played_again(env):
    clean = _played(env, _expert_actions(env))
    env.reset = None
    assert without_refused(env, clean) is clean


def test_a_success_that_needs_what_was_refused_stays_as_it_was(env):
    clean = _played(env, _expert_actions(env))
    marked = replace(clean, steps=(*clean.steps[:-1], replace(clean.steps[-1], valid=False)))
    assert without_refused(env, marked) is marked, "the last step is missing"
    first = replace(clean.steps[0], action="fly to the moon")  # recorded as valid
    extra = replace(clean.steps[0], valid=False)
    wrong = replace(clean, steps=(extra, first, *clean.steps[1:]))
    assert without_refused(env, wrong) is wrong, "refused when played again"
    extra = replace(clean.steps[-1], valid=False)
    longer = replace(clean, steps=(extra, *clean.steps, clean.steps[-1]))
    assert without_refused(env, longer) is longer, "steps after the end"
    nothing = replace(clean, steps=tuple(replace(step, valid=False) for step in clean.steps))
    assert without_refused(env, nothing) is nothing, "no valid action"
    half = replace(clean, steps=(extra, *clean.steps[:-1]), truncated=True)
    assert without_refused(env, half) is half, "not over without its last steps"
    extra = replace(clean.steps[0], valid=False)
    better = replace(clean, steps=(extra, *clean.steps), reward=clean.reward + 0.1)
    assert without_refused(env, better) is better, "it would score less"


@pytest.mark.parametrize("error", [RuntimeError("broken"), SetupError("no Java")])
def test_an_environment_that_breaks_leaves_the_success_as_it_was(env, error):
    full = _played(env, ["fly to the moon", *_expert_actions(env)])

    def broken(action):
        raise error

    env.step = broken
    if isinstance(error, SetupError):
        with pytest.raises(SetupError):
            without_refused(env, full)
    else:
        assert without_refused(env, full) is full


def test_a_run_learns_from_what_is_left(config, monkeypatch):
    """Successes with a refused action in front are sound without it."""
    play = rollouts.play

    def clumsy(*args):
        def episode(t):
            refused = replace(t.steps[0], action="?", valid=False, tokens=())
            taken = [replace(step, valid=True) for step in t.steps]
            return replace(t, reward=1.0, steps=(refused, *taken))

        return [[episode(t) for t in row] for row in play(*args)]

    def again(env, trajectory):
        return replace(trajectory, steps=trajectory.steps[1:])

    monkeypatch.setattr(rollouts, "play", clumsy)
    monkeypatch.setattr(successes, "without_refused", again)
    config.method, config.rollouts.sound_only = "rft", True
    kept = {}
    for drop in (False, True):
        config.rollouts.drop_refused, config.output = drop, f"{config.output}-{drop}"
        kept[drop] = run.run(config)["figures"]["rft"]
    assert kept[False]["lucky"] == kept[False]["successes"] > 0 == kept[False]["kept"]
    assert kept[False]["shortened"] == 0
    assert kept[True]["lucky"] == 0 < kept[True]["kept"]
    assert kept[True]["shortened"] == kept[True]["successes"] == kept[False]["successes"]
