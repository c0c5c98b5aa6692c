"""Files that are whole or absent, whatever happens while they are written."""

import os
import shutil
import subprocess
import sys

import pytest

from stepagent.files import (
    CacheError,
    Lock,
    Locked,
    build_once,
    parse_json,
    read_cached,
    write_atomically,
    write_cached,
    write_text,
)


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "before")

    def full(partial):
        partial.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=f"cannot write {path}: No space left"):
        write_atomically(path, full)
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_takes_the_place_of_the_one_before(tmp_path):
    def save(text):
        def save_folder(partial):
            partial.mkdir()
            (partial / "x").write_text(text)

        return save_folder

    write_atomically(tmp_path / "folder", save("1"))
    write_atomically(tmp_path / "folder", save("2"))
    assert (tmp_path / "folder" / "x").read_text() == "2"
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_lone_surrogates_can_be_written(tmp_path):
    write_text(tmp_path / "a.txt", "a\ud800b")
    assert (tmp_path / "a.txt").read_text() == "a?b"


def test_a_lock_names_the_process_that_holds_it(tmp_path):
    with Lock(tmp_path / ".lock"):
        code = (
            "import sys; from pathlib import Path; from stepagent.files import Lock, Locked\n"
            "try: Lock(Path(sys.argv[1]))\nexcept Locked as error: print(error.strerror)"
        )
        said = subprocess.check_output([sys.executable, "-c", code, tmp_path / ".lock"], text=True)
    assert said.strip() == f"{tmp_path} is in use by another process (id {os.getpid()})"
    Lock(tmp_path / ".lock").release()


def test_two_locks_of_one_process_exclude_each_other(tmp_path):
    with Lock(tmp_path / ".lock"), pytest.raises(Locked):
        Lock(tmp_path / ".lock")


def test_what_is_built_once_is_whole_or_absent(tmp_path):
    folder, calls = tmp_path / "folder", []

    def build(partial):
        calls.append(partial)
        (partial / "half").touch()
        if len(calls) == 1:
            raise RuntimeError("killed")
        (partial / "done").touch()

    with pytest.raises(RuntimeError):
        build_once(folder, build)
    assert not folder.exists()
    for _ in range(2):
        build_once(folder, build)
    assert len(calls) == 2
    assert (folder / "done").is_file()


CONTENTS = {"a.txt": b"abc" * 100, "below/b.bin": bytes(range(256)) * 10}


@pytest.fixture
def built(tmp_path):
    """A folder that was built once, and how to have it built (again)."""
    folder, calls = tmp_path / "built", []

    def build(partial):
        calls.append(partial)
        (partial / "below").mkdir()
        for name, data in CONTENTS.items():
            (partial / name).write_bytes(data)

    def ensure():
        before = len(calls)
        build_once(folder, build)
        assert {name: (folder / name).read_bytes() for name in CONTENTS} == CONTENTS
        return len(calls) > before

    assert ensure()
    return folder, ensure


@pytest.mark.parametrize("name", [*CONTENTS, "manifest.json"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[::-1]),
        lambda path: path.write_bytes(b"{}x"),
        lambda path: path.write_bytes(b'{"a.txt": 1}'),
    ],
)
def test_a_damaged_folder_is_built_again(built, name, damage):
    folder, ensure = built
    assert not ensure()
    damage(folder / name)
    assert ensure()
    assert not ensure()


def test_a_copied_folder_is_not_built_again(built, tmp_path):
    folder, ensure = built
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    shutil.rmtree(folder)
    (tmp_path / "copy").rename(folder)
    times = (folder / "manifest.json").read_bytes()
    assert not ensure()
    assert (folder / "manifest.json").read_bytes() != times, "it need not be read again"


def test_what_a_killed_build_left_is_removed(built):
    folder, ensure = built
    left = folder.with_name("building-built-x1y2")
    (left / "folder").mkdir(parents=True)
    other = folder.with_name("building-another-x1y2")
    other.mkdir()
    shutil.rmtree(folder)
    assert ensure()
    assert not left.exists()
    assert other.exists(), "its builder may be at work"


def test_a_planted_link_is_not_followed(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("kept")
    for name in (".lock", ".lock.pid"):
        (tmp_path / name).symlink_to(precious)
    with Lock(tmp_path / ".lock"):
        pass
    assert precious.read_text() == "kept"


@pytest.mark.parametrize(("env", "under"), [("WebShop", ""), ("HotpotQA", "/below")])
def test_a_cache_that_cannot_be_used_is_named(env, under, tmp_path, monkeypatch):
    """It is a file, or lies below one."""
    (tmp_path / "file").write_text("")
    cache = f"{tmp_path / 'file'}{under}"
    monkeypatch.setenv("STEPAGENT_CACHE", cache)
    line = f"eval --env stepagent/{env}-v0 --agent expert --limit 1 --out {tmp_path / 'out'}"
    done = subprocess.run(
        [sys.executable, "-m", "stepagent", *line.split()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert f"the cache {cache} cannot be used" in done.stderr
    assert "STEPAGENT_CACHE" in done.stderr


def test_other_errors_are_not_blamed_on_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STEPAGENT_CACHE", str(tmp_path / "cache"))

    def build(folder):
        raise FileNotFoundError(2, "No such file", "data.json")

    with pytest.raises(FileNotFoundError, match=r"data\.json"):
        build_once(tmp_path / "cache" / "x", build)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file") as error:
        write_cached(tmp_path / "file" / "x", "")
    assert not isinstance(error.value, CacheError)


@pytest.mark.parametrize("text", ["", "a\r\nb\n", "é 漢"])
def test_a_kept_text_comes_back_or_nothing_does(tmp_path, monkeypatch, text):
    monkeypatch.setenv("STEPAGENT_CACHE", str(tmp_path))
    path = tmp_path / "texts" / "one"
    assert read_cached(path) is None
    write_cached(path, text)
    assert read_cached(path) == text
    content = path.read_bytes()
    for damaged in (content[1:], content + b"x", content[:5] + b"\xff" + content[6:], b"", b"[]"):
        path.write_bytes(damaged)
        assert read_cached(path) is None


def test_json_that_is_nested_too_deeply_is_a_value_error():
    assert parse_json(b'{"a": [1]}') == {"a": [1]}
    for text in ("[" * 100_000, '{"a":' * 100_000, "{", ""):
        with pytest.raises(ValueError):
            parse_json(text)
