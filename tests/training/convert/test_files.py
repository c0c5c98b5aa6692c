"""Files of every kind and damage: what is read, and which record of which file is named."""

import gzip
import json
import lzma
import subprocess
import sys
import tracemalloc
from itertools import islice
from pathlib import Path

import pytest

from stepagent.envs import trajectory
from stepagent.envs.containers import SourceError
from stepagent.envs.records import MAX_RECORD, read_records
from stepagent.envs.trajectory import Step, Trajectory
from stepagent.training.convert.command import main

ROOT = Path(__file__).parents[3]
TURNS = [
    {"role": "user", "content": "You are in the middle of a room. é 漢"},
    {"role": "assistant", "content": "Action: look"},
]
GOOD = {"messages": TURNS}
LINE = json.dumps(GOOD, ensure_ascii=False)


def write(folder: Path, data: bytes | str, name: str = "input.json") -> Path:
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@pytest.mark.parametrize(
    "data",
    [
        f"{LINE}\n{LINE}\n",
        f"{LINE}\n\n{LINE}",
        f"{LINE}\r\n{LINE}\r\n",
        f"\ufeff{LINE}\n{LINE}\n",
        f"[{LINE}, {LINE}]",
        f"[{LINE}, {LINE}]\n",
        f"\ufeff[\r\n{LINE},\r\n{LINE}\r\n]\r\n",
        json.dumps([GOOD, GOOD], indent=2),
        f"{json.dumps(GOOD, indent=1)}\n{json.dumps(GOOD, indent=1)}",
        f"[{LINE}]\n[{LINE}]\n",
        json.dumps([TURNS, TURNS]),
        json.dumps({"1": GOOD, "2": GOOD}),
        f"[{LINE},{LINE}]".encode("utf-16"),
        gzip.compress(f"{LINE}\n{LINE}\n".encode()),
        lzma.compress(f"[{LINE}, {LINE}]".encode()),
    ],
)
def test_containers_of_two_records(tmp_path, data):
    records = list(read_records(write(tmp_path, data)))
    assert not [record.problem for record in records if record.problem]
    texts = [r.value["messages"] if isinstance(r.value, dict) else r.value for r in records]
    assert texts == [TURNS, TURNS]
    assert len({record.place for record in records}) == 2


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "rows.anything"
    parquet.write_table(pyarrow.Table.from_pylist([GOOD, GOOD]), path)
    assert [record.value for record in read_records(path)] == [GOOD, GOOD]
    damaged = write(tmp_path, path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"input\.json is cut off or damaged"):
        list(read_records(damaged))


@pytest.mark.parametrize(
    ("data", "place", "reason", "good"),
    [
        (f"{LINE}\n{LINE[:30]}", "line 2", "the file may be cut here", 1),
        (f"{LINE}\n{LINE[:30]}\n{LINE}\n", "line 2", "not JSON (Expecting", 2),
        (f"[{LINE}, {LINE[:30]}", "record 2", "the file may be cut here; what follows", 1),
        (f"[{LINE}, {LINE}", "the end", "the list is not closed", 2),
        (f"[{LINE}, {{'a': 1}}, {LINE}]", "record 2", "what follows is unread", 1),
        (f"{LINE}\n".encode() + b'{"a": "caf\xe9"}\n', "line 2", "byte 0xE9 is not UTF-8", 1),
        (f"[{LINE},".encode() + b'{"a": "caf\xe9"}]', "record 2", "byte 0xE9 is not UTF-8", 1),
        (f"{LINE}\n" + "[" * 100_000 + "\n", "line 2", "nested too deeply", 1),
        (f"{LINE}\n" + "9" * 5000 + f"\n{LINE}\n", "line 2", "integer of too many digits", 2),
        (f"[{LINE}," + "9" * 5000 + "]", "record 2", "integer of too many digits", 1),
        (f"[{LINE}," + "[" * 100_000 + "]", "record 2", "nested too deeply", 1),
    ],
)
def test_damaged_records_are_named_and_good_ones_read(tmp_path, data, place, reason, good):
    records = list(read_records(write(tmp_path, data)))
    (problem,) = [record for record in records if record.problem]
    assert problem.place == place
    assert reason in problem.problem
    assert len(records) == good + 1


def test_a_record_that_is_too_long_is_named(tmp_path):
    path = write(tmp_path, f'{LINE}\n{{"a": "{"x" * MAX_RECORD}"}}\n{LINE}\n')
    first, long, last = read_records(path)
    assert (first.value, last.value) == (GOOD, GOOD)
    assert long.problem == f"longer than {MAX_RECORD} characters"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf \n\r\n", "is empty"),
        (b"PK\x03\x04zip", "is a zip archive: unzip"),
        (b"\x28\xb5\x2f\xfdzstd", "is cut off or damaged"),
        (b"{\0\0\0", "is not text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        (gzip.compress(LINE.encode() * 100)[:-20], "is cut off or damaged"),
    ],
)
def test_files_without_records_are_named(tmp_path, capsys, data, reason):
    path = write(tmp_path, data)
    with pytest.raises(ValueError, match=reason) as error:
        list(read_records(path))
    assert str(path) in str(error.value)
    assert main([str(path), "--out", str(tmp_path / "out.jsonl")]) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_a_folder_is_all_its_files(tmp_path):
    folder = tmp_path / "data"
    (folder / "deep").mkdir(parents=True)
    write(folder, f"{LINE}\n", "a.jsonl")
    write(folder, f"[{LINE}]", "deep/b.json")
    write(folder, b"\0\5\x16\7", "._a.jsonl")  # macOS leaves these
    out = tmp_path / "out.jsonl"
    assert main([str(folder), "--out", str(out)]) == 0
    assert len(trajectory.read(out)) == 2


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ([], "name the files"),
        (["missing.json", "--out", "out.jsonl"], "no file at"),
        ([".", "--out", "out.jsonl"], "holds no .json"),
        (["in.json", "--out", "out.parquet"], "must end in .jsonl"),
        (["in.json", "--out", "in.json"], "must end in .jsonl"),
        (["in.jsonl", "--out", "in.jsonl"], "to be read and written"),
        (["in.json", "--out", "out.jsonl", "--reward", "2"], "reward is 2"),
        (["in.json", "--out", "out.jsonl", "--limit", "0"], "limit is 0"),
    ],
)
def test_wrong_options(tmp_path, monkeypatch, capsys, options, reason):
    monkeypatch.chdir(tmp_path)
    assert main(options) == 2
    assert reason in capsys.readouterr().err


def test_nothing_is_written_where_nothing_can_be_converted(tmp_path, capsys):
    path = write(tmp_path, '{"question": 1}\n{"question": 2}\n')
    assert main([str(path), "--out", str(tmp_path / "out.jsonl")]) == 2
    message = capsys.readouterr().err
    assert "none of 2 records" in message
    assert "question" in message
    assert list(tmp_path.iterdir()) == [path]


def test_an_environment_that_is_asked_for_must_exist(tmp_path, capsys):
    path = write(tmp_path, LINE)
    options = ["--out", str(tmp_path / "out.jsonl"), "--env", "stepagent/Chess-v0"]
    assert main([str(path), *options]) == 2
    assert "no environment 'stepagent/Chess-v0'" in capsys.readouterr().err


# Foreign files in other commands --------------------------------------------------------------


@pytest.mark.parametrize("data", [f"{LINE}\n", json.dumps([GOOD], indent=2)])
def test_trajectory_files_of_a_foreign_layout_are_named_as_such(tmp_path, data):
    path = write(tmp_path, data)
    for bad in (None, []):
        with pytest.raises(ValueError) as error:
            trajectory.read(path, bad)
        assert "OpenAI messages" in str(error.value)
        assert f"stepagent convert {path}" in str(error.value)
        assert "delete" not in str(error.value)


def test_foreign_lines_among_ours_are_named(tmp_path):
    own = Trajectory("e/E-v0", "t", "train", "a", 0, (Step("o", "t", "a"),))
    path = write(tmp_path, f"{own.to_json()}\n{LINE}\n")
    bad: list = []
    assert trajectory.read(path, bad) == [own]
    assert "OpenAI messages, not a trajectory" in bad[0].reason
    with pytest.raises(ValueError, match="delete the lines"):
        trajectory.read(path)


def test_our_files_with_a_byte_order_mark_and_archives(tmp_path):
    own = Trajectory("e/E-v0", "t", "train", "a", 0, (Step("o", "t", "a"),))
    path = write(tmp_path, f"\ufeff{own.to_json()}\r\n{own.to_json()}\r\n")
    assert trajectory.read(path) == [own, own]
    assert trajectory.read(write(tmp_path, b"")) == []
    with pytest.raises(SourceError, match="unzip"):
        trajectory.read(write(tmp_path, b"PK\x03\x04"))


def test_commands_name_foreign_files(tmp_path, capsys):
    from stepagent.eval import compare, replay
    from stepagent.eval.view import command as view

    path = write(tmp_path, f"{LINE}\n", "results.jsonl")
    for command in (compare.main, replay.main, view.main):
        assert command([str(path)] * (2 if command is compare.main else 1)) in (1, 2)
        message = " ".join(capsys.readouterr().err.split())
        assert "OpenAI messages" in message
        assert "stepagent convert" in message


# Memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lines", "list"])
def test_reading_keeps_one_record_in_memory(tmp_path, kind):
    record = json.dumps({"messages": [*TURNS, {"role": "user", "content": "x" * 20_000}]})
    body = [record] * 1000  # 20 MB
    path = write(tmp_path, "\n".join(body) if kind == "lines" else f"[{','.join(body)}]")
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_records(path)) == 1000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 9_000_000


def test_recognising_reads_the_beginning_only(tmp_path):
    path = tmp_path / "huge.json"
    with path.open("w") as file:
        file.write("[")
        for _ in range(3000):
            file.write(LINE + "," + " " * 10_000)
    assert len(list(islice(read_records(path), 3))) == 3
    with pytest.raises(ValueError, match="OpenAI messages"):
        trajectory.read(path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lines", "list"])
def test_two_hundred_megabytes_in_flat_memory(tmp_path, kind):
    """A process of its own converts them; its peak is far below the file's size."""
    path = tmp_path / "input.json"
    text = "x" * 2000
    turns = [{"from": "human" if i % 2 == 0 else "gpt", "value": text} for i in range(9)]
    turns = [
        {**turn, "value": f"Thought: {text}\nAction: look"} if turn["from"] == "gpt" else turn
        for turn in turns
    ]
    record = json.dumps({"conversations": turns})
    count = 200_000_000 // len(record) + 1
    with path.open("w") as file:
        file.write("[" if kind == "list" else "")
        for i in range(count):
            file.write(record + ("\n" if kind == "lines" else "]" if i == count - 1 else ","))
    code = (
        "import resource, sys\n"
        "from stepagent.training.convert.command import main\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "code = main(sys.argv[1:])\n"
        "print('grown', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
        "sys.exit(code)\n"
    )
    command = [sys.executable, "-c", code, str(path), "--out", str(tmp_path / "out.jsonl")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert f"{count} of {count} records" in result.stdout
    kilobytes = int(result.stdout.rsplit("grown", 1)[1])
    assert kilobytes < 80_000
