"""Real games: their splits, the experts in them, public trajectories."""

import json
import re

import pytest

from stepagent import envs
from stepagent.envs.alfworld import data, engine, planner
from stepagent.envs.alfworld.env import _ARRIVAL

ID = "stepagent/ALFWorld-v0"
pytestmark = pytest.mark.real_data


def test_splits_are_upstreams(real_data):
    by_split = {s: envs.make(ID, data=real_data, split=s) for s in ("train", "dev", "test")}
    tasks = {split: set(env.tasks) for split, env in by_split.items()}
    assert len(tasks["dev"]) == 140
    assert all(tasks.values())
    assert not tasks["train"] & tasks["dev"]
    assert not tasks["train"] & tasks["test"]
    assert not tasks["dev"] & tasks["test"]
    for split, folder in data.FOLDERS.items():
        there = real_data / data.ROOT / folder
        assert all((there / task / data.GAME).is_file() for task in tasks[split])


def play(env, task_id):
    env.reset(seed=0, options={"task_id": task_id})
    plan = env.expert_plan()
    for thought, action in plan:
        _, _, terminated, truncated, info = env.step(f"Thought: {thought}\nAction: {action}")
        assert info["valid"], action
    assert terminated, task_id
    assert not truncated
    assert info["success"]
    assert info["score"] == 1.0
    return len(plan)


@pytest.mark.parametrize("split", ["train", "dev", "test"])
@pytest.mark.parametrize("expert", ["explorer", "planner"])
def test_the_experts_win_real_games(real_data, split, expert):
    env = envs.make(ID, data=real_data, split=split, expert=expert)
    lengths = [play(env, task_id) for task_id in env.tasks[:: 8 if split != "test" else 2]]
    assert max(lengths) <= 40
    if expert == "planner":
        assert max(lengths) <= 12


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_experts_win_every_real_game(real_data):
    for split in data.FOLDERS:
        for expert in ("explorer", "planner"):
            env = envs.make(ID, data=real_data, split=split, expert=expert)
            for task_id in env.tasks:
                play(env, task_id)


def test_the_first_observation_is_the_room_and_the_task(real_data):
    env = envs.make(ID, data=real_data, split="test")
    text, info = env.reset(seed=0, options={"task_id": env.tasks[0]})
    assert text.startswith("You are in the middle of a room.")
    assert text.endswith(info["instruction"])
    assert info["instruction"].startswith("Your task is to: ")
    place = re.search(r"a (\w+ 1)[,.]", text)[1]
    arrived = env.step(f"go to {place}")[0]
    assert place in arrived
    assert "loc" not in arrived
    assert env.wording == "old"
    assert "put OBJ in/on RECEP" in env.prompt.instruction


def check_trajectories(real_data, source, step, monkeypatch, cache):
    monkeypatch.setenv("STEPAGENT_CACHE", str(cache))
    path = real_data.parent / "trajectories" / "alfworld_gt_traj.jsonl"
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            if number % step:
                continue
            record = json.loads(line)
            turns = [turn["value"] for turn in record["conversations"]]
            play = engine.load(source.load(record["game"].split("/", 1)[1])).start()
            assert play.intro() == turns[0]
            for action, observation in zip(turns[1::2], turns[2::2], strict=False):
                text = play.step(action)
                shown = "Nothing happens." if text is None else _ARRIVAL.sub("", text)
                assert shown == observation
            if len(turns) % 2 == 0:
                play.step(turns[-1])
            assert play.won()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_public_trajectories_read_the_same(real_data, monkeypatch, tmp_path):
    """3,554 expert trajectories recorded by others: every observation, and the end."""
    monkeypatch.setenv("STEPAGENT_CACHE", str(tmp_path))
    source = data.open_source(real_data / "train_3554.tar.zst")
    assert len(source.tasks("train")) == 3554
    check_trajectories(real_data, source, 1, monkeypatch, tmp_path)


def test_the_planner_wins_from_any_state(real_games):
    import random

    from tests.envs.alfworld import walks

    for path in real_games[::40]:
        game = engine.load(walks.read(path))
        for seed in range(3):
            here = game.start()
            for command in walks.random_commands(
                game, seed, steps=random.Random(seed).randint(5, 40)
            ):
                here.step(command)
            before = here.admissible()
            moves = planner.plan(here)
            assert here.admissible() == before  # planning is not doing
            for move in moves:
                assert here.step(move.command) is not None
            assert here.won()
            assert len(moves) <= 15
