"""Folders and archives of games, good and bad."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import zstandard

from stepagent import envs
from stepagent.envs.alfworld import data, export, generate, pddl
from stepagent.envs.alfworld.pddl import GameError

ID = "stepagent/ALFWorld-v0"
IDS = ("pick_and_place_simple/test-0000", "look_at_obj_in_light/test-0000")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two test games and a train game in upstream's layout, and an empty cache."""
    monkeypatch.setenv("STEPAGENT_CACHE", str(tmp_path / "cache"))
    export.write(tmp_path / "games", [*IDS, "pick_two_obj_and_place/train-0000"])
    return tmp_path / "games"


@pytest.fixture
def archive(folder):
    path = folder.parent / "games.tar.zst"
    with (
        path.open("wb") as file,
        zstandard.ZstdCompressor().stream_writer(file) as packed,
        tarfile.open(fileobj=packed, mode="w|") as tar,
    ):
        tar.add(folder / data.ROOT, arcname=data.ROOT)
    return path


def listed(folder):
    return {p: p.stat().st_mtime_ns for p in Path(folder).rglob("*")}


def rewrite(folder, split, **changes):
    """Changes keys of the split's games."""
    for path in (folder / data.ROOT / data.FOLDERS[split]).glob("*/*/game.tw-pddl"):
        game = json.loads(path.read_text())
        game.update(changes)
        path.write_text(json.dumps({k: v for k, v in game.items() if v is not None}))


def played(source, split):
    env = envs.make(ID, data=source, split=split)
    texts = []
    for task_id in env.tasks:
        texts.append(env.reset(seed=0, options={"task_id": task_id})[0])
        for _, action in env.expert_plan():
            text, *_, info = env.step(action)
            texts.append(text)
        assert info["success"]
    return texts


def test_folder_archive_and_generator_play_the_same(folder, archive):
    before = listed(folder)
    texts = played(folder, "test")
    assert len(texts) > 8
    assert played(folder / data.ROOT, "test") == texts
    assert played(archive, "test") == texts
    assert played(str(archive), "train") == played(folder, "train")
    assert listed(folder) == before  # nothing is written beside the data
    one = envs.make(ID, split="test")
    assert one.reset(seed=0, options={"task_id": IDS[0]})[0] in texts


def test_an_archive_is_read_once(archive, monkeypatch):
    assert len(envs.make(ID, data=archive, split="test").tasks) == 2
    monkeypatch.setattr(data.Archives, "_members", lambda self: pytest.fail("read again"))
    env = envs.make(ID, data=archive, split="test")
    env.reset(seed=0)


def test_two_processes_on_the_same_archive(archive):
    code = (
        "import sys; from stepagent import make;"
        "e = make('stepagent/ALFWorld-v0', data=sys.argv[1], split='test');"
        "print([e.reset(seed=0, options={'task_id': t})[0] for t in e.tasks])"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(archive)], stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    outputs = {process.communicate(timeout=120)[0] for process in running}
    assert len(outputs) == 1
    assert len(outputs.pop()) > 200
    assert sorted(p.name for p in archive.parent.iterdir()) == ["cache", "games", "games.tar.zst"]


def test_no_games_says_where_it_looked(folder, archive, tmp_path):
    for source in (folder, archive):
        with pytest.raises(
            ValueError, match=r"0 playable ALFWorld games for split 'dev' in .*valid_seen"
        ):
            _ = envs.make(ID, data=source, split="dev").tasks
    with pytest.raises(FileNotFoundError, match="nowhere"):
        envs.make(ID, data=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"0 playable .*empty"):
        envs.make(ID, data=tmp_path / "empty").reset()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"solvable": False}, "2 not solvable"), ({"solvable": None}, "not checked for being solv")],
)
def test_what_upstream_does_not_play_is_left_out(folder, changes, reason):
    rewrite(folder, "test", **changes)
    with pytest.raises(ValueError, match=reason):
        _ = envs.make(ID, data=folder, split="test").tasks


def test_movable_things_and_other_types_are_left_out(folder):
    test = folder / data.ROOT / "valid_unseen"
    first, second = sorted(test.iterdir())
    first.rename(test / f"pick_and_place_with_movable_recep-{first.name}")
    (trajectory,) = second.glob("*/traj_data.json")
    trajectory.write_text(trajectory.read_text().replace('"task_type": "', '"task_type": "other_'))
    with pytest.raises(ValueError, match="movable or sliced things") as caught:
        _ = envs.make(ID, data=folder, split="test").tasks
    assert "1 another type of task" in str(caught.value)


def test_broken_files_are_named(folder):
    env = envs.make(ID, data=folder, split="test")
    path = folder / data.ROOT / "valid_unseen" / env.tasks[0] / data.GAME
    text = path.read_text()
    for broken, reason in (
        (text[:5000], "no JSON, or cut off"),
        ("[]", "JSON object"),
        (text.replace("(:goal", "(:gaol"), r"no \(:goal"),
        (text.replace("(:init", "(:init ("), "brackets"),
        (text.replace('"grammar"', '"grandma"'), "'grammar'"),
        (text.replace("exists", "forall"), "forall"),
        (text.replace(r"{o.name}", r"{o.__class__}"), "expression"),
        (text.replace("GotoLocation {", "Goto {"), "gotolocation"),
    ):
        path.write_text(broken)
        with pytest.raises(ValueError, match=reason) as caught:
            env.reset(options={"task_id": env.tasks[0]})
        assert env.tasks[0] in str(caught.value)
        env.close()
    path.write_text(text[:5000])
    os.utime(path.parent.parent.parent)
    with pytest.raises(ValueError, match=data.GAME):
        _ = envs.make(ID, data=folder, split="test").tasks


def test_a_broken_archive_leaves_nothing_behind(archive):
    content = archive.read_bytes()
    for broken in (content[: len(content) // 2], b"no archive at all", content[:4] + b"x" * 100):
        archive.write_bytes(broken)
        with pytest.raises(ValueError, match=r"games\.tar\.zst"):
            _ = envs.make(ID, data=archive, split="test").tasks
    archive.write_bytes(content)
    assert len(envs.make(ID, data=archive, split="test").tasks) == 2


def test_data_that_may_not_be_read(folder, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(data, "read_bytes", refuse)
    with pytest.raises(PermissionError, match="Check the permissions"):
        _ = envs.make(ID, data=folder, split="test").tasks


def test_generated_splits_share_no_room_and_are_the_same_for_ever():
    rooms = {split: set() for split in ("train", "dev", "test")}
    source = generate.GeneratedGames()
    for (split, numbers), size in zip(rooms.items(), generate.SIZES, strict=True):
        tasks = source.tasks(split)
        assert len(tasks) == 6 * size
        for task_id in tasks[:: len(tasks) // 24]:
            game = source.load(task_id)
            numbers.add(game["task"]["room"])
            assert game["solvable"]
            assert 0 < len(game["walkthrough"]) <= generate.MAX_PLAN
            assert source.load(task_id) == game
    assert rooms["test"] <= set(generate.TEST_ROOMS)
    assert not rooms["test"] & (rooms["train"] | rooms["dev"])
    with pytest.raises(ValueError, match="test-0001"):
        generate.make("pick_flowers/test-0001")


def test_wordings_of_goals_vary():
    wordings = {
        generate.make(f"pick_and_place_simple/train-{n:04d}")["task"]["words"] for n in range(9)
    }
    assert len({words.split()[0] for words in wordings}) > 2


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_generated_game_is_won_by_its_expert():
    for split in ("test", "dev", "train"):
        env = envs.make(ID, split=split)
        for task_id in env.tasks:
            env.reset(seed=0, options={"task_id": task_id})
            for _, action in env.expert_plan():
                *_, truncated, info = env.step(action)
            assert info["success"], task_id
            assert not truncated, task_id


def test_upstreams_loader_takes_generated_games(folder, monkeypatch):
    pytest.importorskip(
        "fast_downward", reason="the reference engine is not here: `make textworld`"
    )
    monkeypatch.setenv("ALFWORLD_DATA", str(folder))
    module = pytest.importorskip("alfworld.agents.environment.alfred_tw_env")
    paths = {
        f"{name}data_path": str(folder / data.ROOT / "valid_unseen")
        for name in ("", "eval_id_", "eval_ood_")
    }
    config = {
        "env": {
            "goal_desc_human_anns_prob": 0,
            "task_types": [1, 2, 3, 4, 5, 6],
            "domain_randomization": False,
            "expert_type": "handcoded",
        },
        "dataset": {**paths, "num_train_games": -1, "num_eval_games": -1},
        "general": {"training_method": "dagger"},
        "dagger": {"training": {"max_nb_steps_per_episode": 50}},
    }
    upstream = module.AlfredTWEnv(config, train_eval="eval_out_of_distribution")
    assert upstream.num_games == 2
    playing = upstream.init_env(batch_size=1)
    _, infos = playing.reset()
    actions = json.loads(Path(infos["extra.gamefile"][0]).read_text())["walkthrough"]
    for action in actions:
        _, _, ends, infos = playing.step([action])
    assert ends == (True,)
    assert infos["won"] == [True]
    playing.close()


@pytest.mark.parametrize("text", ["", " ", "(" * 200_000 + ")" * 200_000, "(define)", "(:goal"])
def test_a_problem_without_its_sections_is_named(text):
    with pytest.raises(GameError):
        pddl.read_problem(text)
