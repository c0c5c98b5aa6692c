"""Games as people have them: every layout plays like the unpacked folder, bad ones are named."""

import gzip
import json
import lzma
import tarfile
import tracemalloc
import zipfile

import pytest

from stepagent import envs
from stepagent.envs.alfworld import data, export

ID = "stepagent/ALFWorld-v0"
IDS = ("pick_and_place_simple/test-0000", "look_at_obj_in_light/test-0000")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two test games and a train game in upstream's layout, and an empty cache."""
    monkeypatch.setenv("STEPAGENT_CACHE", str(tmp_path / "cache"))
    export.write(tmp_path / "games", [*IDS, "pick_two_obj_and_place/train-0000"])
    return tmp_path / "games"


def files(folder):
    """Name in an archive → content, as the official archives name it."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def zipped(path, contents):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


def tarred(path, folder, mode):
    with tarfile.open(path, mode) as tar:
        tar.add(folder / data.ROOT, arcname=data.ROOT)
    return path


def official_pair(at, contents):
    """The two downloads: trajectories (with other files) in one, games in the other."""
    at.mkdir()
    zipped(
        at / "json_2.1.1_json.zip",
        {n: c for n, c in contents.items() if n.endswith(data.TRAJECTORY)} | {"README": b"x"},
    )
    games = {n: c for n, c in contents.items() if n.endswith(data.GAME)}
    zipped(at / "json_2.1.3_tw-pddl.zip", games)
    (at / "._json_2.1.1_json.zip").write_bytes(b"\0\5\x16\7")
    return at


def with_macos(contents):
    return contents | {f"__MACOSX/{n}".replace("game", "._game"): b"\0\5" for n in contents}


def with_windows_lines(contents):
    def changed(content):
        text = json.dumps(json.loads(content), indent=1).replace("\n", "\r\n")
        return b"\xef\xbb\xbf" + text.encode()

    return {name: changed(content) for name, content in contents.items()}


LAYOUTS = {
    "zip": lambda at, f: zipped(at / "games.zip", files(f)),
    "zip of another name": lambda at, f: zipped(at / "download", files(f)),
    "zip without the root": lambda at, f: zipped(
        at / "g.zip", {n.removeprefix(f"{data.ROOT}/"): c for n, c in files(f).items()}
    ),
    "zip made by macOS": lambda at, f: zipped(at / "games.zip", with_macos(files(f))),
    "official pair": lambda at, f: official_pair(at / "pair", files(f)),
    "tar": lambda at, f: tarred(at / "games.tar", f, "w"),
    "tar.gz": lambda at, f: tarred(at / "games.tar.gz", f, "w:gz"),
    "tar.xz with another name": lambda at, f: tarred(at / "games.tar", f, "w:xz"),
    "byte order marks, carriage returns": lambda at, f: zipped(
        at / "g.zip", with_windows_lines(files(f))
    ),
}


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


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_plays_like_the_folder(folder, tmp_path, layout):
    source = LAYOUTS[layout](tmp_path, folder)
    for split in ("train", "test"):
        assert played(source, split) == played(folder, split)


def test_what_is_left_out_is_in_the_notes(folder, tmp_path, caplog):
    contents = files(folder)
    first, second = sorted(n for n in contents if "valid_unseen" in n and n.endswith(data.GAME))
    game = json.loads(contents[first])
    contents[first] = json.dumps({**game, "solvable": False}).encode()
    third = second.replace("trial_generated", "trial_other")
    contents[third] = contents[second]  # without its trajectory
    archive = zipped(tmp_path / "games.zip", contents)
    unpacked = tmp_path / "unpacked"
    for name, content in contents.items():
        (unpacked / name).parent.mkdir(parents=True, exist_ok=True)
        (unpacked / name).write_bytes(content)
    for source in (archive, unpacked):
        env = envs.make(ID, data=source, split="test")
        assert len(env.tasks) == 1
        assert env.data_notes() == {
            "games left out: not solvable": 1,
            f"games left out: {data.NO_TRAJECTORY}": 1,
        }
        assert envs.make(ID, data=source, split="train").data_notes() == {}
    warned = [text for text in caplog.messages if "left out" in text]
    assert warned == [f"{s}: 1 games are left out: {data.NO_TRAJECTORY}" for s in
                      (archive, unpacked / data.ROOT / "valid_unseen")]  # fmt: skip
    assert envs.make(ID).data_notes() == {}


def test_games_without_their_trajectories_say_where_these_are(folder, tmp_path):
    games = {n: c for n, c in files(folder).items() if n.endswith(data.GAME)}
    archive = zipped(tmp_path / "json_2.1.3_tw-pddl.zip", games)
    with pytest.raises(ValueError, match=r"2 no traj_data\.json beside .*json_2\.1\.1_json\.zip"):
        envs.make(ID, data=archive, split="test").reset(seed=0)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><title>Login</title>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"7z\xbc\xaf\x27\x1c", "7z x"),
        (b"PK\x03\x04" + bytes(40), "cut off or damaged"),
        (b'[{"asin": "B000000001", "name": "Mug"}]', "0 playable ALFWorld games"),
        (gzip.compress(b"no archive"), "0 playable ALFWorld games"),
        (lzma.compress(b"x" * 99)[:-20], "cut off or damaged"),
    ],
    ids=["empty", "page", "pointer", "7z", "zip", "products", "gzip", "xz"],
)
def test_files_that_hold_no_games_are_named(tmp_path, monkeypatch, content, says):
    monkeypatch.setenv("STEPAGENT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "games.zip").write_bytes(content)
    for source in (tmp_path / "games.zip", tmp_path):
        with pytest.raises(ValueError, match=says) as caught:
            envs.make(ID, data=source, split="test").reset(seed=0)
        assert str(source) in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda game: b"",
        lambda game: game[: len(game) // 2],
        lambda game: b'{"solvable": true, "a": ' + b"[" * 100_000 + b"}",
        lambda game: game.replace(b"Your task is to", b"Your t\xe4sk is to"),
        lambda game: game.decode().encode("utf-16"),
    ],
)
def test_a_bad_game_in_an_archive_is_named(folder, tmp_path, change):
    contents = files(folder)
    name = next(n for n in contents if "valid_unseen" in n and n.endswith(data.GAME))
    archive = zipped(tmp_path / "games.zip", contents | {name: change(contents[name])})
    env = envs.make(ID, data=archive, split="test")
    place = name.split("/valid_unseen/")[1].rpartition("/")[0]
    with pytest.raises(ValueError, match=place):
        [env.reset(options={"task_id": task}) for task in env.tasks]


def test_unpacking_takes_the_memory_of_a_few_games(folder, tmp_path):
    contents = files(folder)
    game, trajectory = (
        next(c for n, c in contents.items() if "/valid_unseen/" in n and n.endswith(ending))
        for ending in (data.GAME, data.TRAJECTORY)
    )
    trajectory = trajectory[:-1] + b', "images": "' + b"x" * 200_000 + b'"}'
    many = {f"{data.ROOT}/valid_unseen/{i}/t/{data.TRAJECTORY}": trajectory for i in range(150)}
    many |= {f"{data.ROOT}/valid_unseen/{i}/t/{data.GAME}": game for i in range(150)}
    archive = zipped(tmp_path / "many.zip", many)
    del many
    tracemalloc.start()
    assert len(envs.make(ID, data=archive, split="test")._source.tasks("test")) == 150
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12_000_000  # of 45 MB
