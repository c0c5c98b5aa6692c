import io
import json
import random
import re
import shutil
import time
import zipfile
import zlib

import pytest

from stepagent import envs
from stepagent.envs import records as text_records
from stepagent.envs.mind2web import packs as packing
from stepagent.envs.mind2web import records
from stepagent.envs.mind2web.data import PlainFile, open_source, read_ranks, split_by_website
from stepagent.envs.mind2web.records import Problems, make_step, tasks_from_rows
from tests.envs.mind2web.records import make_step_record, record

ID = "stepagent/Mind2Web-v0"


@pytest.mark.parametrize(
    ("test_set", "dev", "first"),
    [("domain", "test_task", 12), ("task", "test_website", 6), ("website", "test_task", 9)],
)
def test_official_folder(official, test_set, dev, first):
    ids = {}
    for split in envs.SPLITS:
        env = envs.make(ID, data=official, split=split, test_set=test_set)
        ids[split] = set(env.tasks)
        env.reset(seed=0)
        for _, action in env.expert_plan():
            *_, info = env.step(action)
        assert info["success"]
    assert {k: len(v) for k, v in ids.items()} == {"train": 6, "dev": 3, "test": 3}
    assert not ids["train"] & ids["dev"] | ids["train"] & ids["test"] | ids["dev"] & ids["test"]
    part = json.loads((official / dev / f"{dev}_0.json").read_text())
    assert ids["dev"] == {task["annotation_id"] for task in part}


def test_raw_pages_show_the_same_candidates(official):
    views = {}
    for html in ("cleaned", "raw"):
        env = envs.make(ID, data=official, html=html, split="test")
        views[html] = env.reset(seed=0, options={"task_id": env.tasks[0]})[0]
        for _, action in env.expert_plan():
            *_, info = env.step(action)
        assert info["success"]
        assert env.problems == {}
    assert views["raw"].count("id=") == views["cleaned"].count("id=")
    assert "font:16px" not in views["raw"]  # no style sheet


def test_it_is_packed_once(official, monkeypatch):
    first = open_source(official, Problems()).ids("train")
    monkeypatch.setattr(packing, "objects", lambda *_: pytest.fail("read again"))
    assert open_source(official, Problems()).ids("train") == first


def encrypted_zip(members, password):
    """A zip archive in the old encryption (PKWARE's), which Python reads but does not write."""

    def crc32(byte, crc):
        return (zlib.crc32(bytes([byte]), crc ^ 0xFFFFFFFF) ^ 0xFFFFFFFF) & 0xFFFFFFFF

    plain, out = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(plain, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with zipfile.ZipFile(plain) as archive:
        infos = archive.infolist()
    central, raw = b"", plain.getvalue()
    for info in infos:
        start = info.header_offset + 30 + len(info.filename)
        data = raw[start : start + info.file_size]
        keys = [0x12345678, 0x23456789, 0x34567890]

        def update(byte, keys=keys):
            keys[0] = crc32(byte, keys[0])
            keys[1] = ((keys[1] + (keys[0] & 0xFF)) * 134775813 + 1) & 0xFFFFFFFF
            keys[2] = crc32(keys[1] >> 24, keys[2])

        for byte in password:
            update(byte)
        secret = bytearray()
        for byte in bytes(11) + bytes([info.CRC >> 24]) + data:
            t = (keys[2] | 2) & 0xFFFF
            secret.append(byte ^ ((t * (t ^ 1) >> 8) & 0xFF))
            update(byte)
        header, offset = bytearray(raw[info.header_offset : start]), out.tell()
        header[6] |= 1
        header[18:22] = len(secret).to_bytes(4, "little")
        out.write(bytes(header) + bytes(secret))
        entry = bytearray(b"PK\x01\x02\x14\x03") + header[4:30] + bytes(6) + bytes(4)
        central += bytes(entry) + offset.to_bytes(4, "little") + info.filename.encode()
    at = out.tell()
    end = b"PK\x05\x06" + bytes(4) + 2 * len(infos).to_bytes(2, "little")
    end += len(central).to_bytes(4, "little") + at.to_bytes(4, "little") + bytes(2)
    return out.getvalue() + central + end


@pytest.fixture
def locked(tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir()
    task = record("shop/lumen-house/0")
    small = {**task, "actions": task["actions"][:1]}
    members = {
        "test_domain/test_domain_0.json": json.dumps([small]),
        "test_task/test_task_0.json": json.dumps([{**small, "annotation_id": "other"}]),
    }
    (folder / "test.zip").write_bytes(encrypted_zip(members, b"open sesame"))
    return folder


def test_encrypted_archives_with_their_password(locked):
    env = envs.make(ID, data=locked, split="test", password="open sesame")
    assert env.tasks == ("shop/lumen-house/0",)
    assert envs.make(ID, data=locked, split="dev", password="open sesame").tasks == ("other",)


@pytest.mark.parametrize("password", ["wrong", "x", "sesame", "1", "2", "3"])
def test_a_wrong_password_is_a_clear_error(locked, password):
    env = envs.make(ID, data=locked, split="test", password=password)
    with pytest.raises(ValueError, match=r"test_domain_0\.json.*password given is wrong"):
        env.tasks  # noqa: B018


def test_a_missing_password_is_a_clear_error(locked):
    with pytest.raises(ValueError, match="give its password"):
        envs.make(ID, data=locked, split="test").reset(seed=0)


def test_what_a_folder_lacks_is_named(official):
    shutil.rmtree(official / "test_domain")
    with pytest.raises(ValueError, match=r"no file of the set 'test_domain'.*train_0.json"):
        envs.make(ID, data=official, split="test").tasks  # noqa: B018
    (official / "test_domain.zip").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"test_domain\.zip is not a zip archive"):
        envs.make(ID, data=official, split="test").tasks  # noqa: B018


def _file(text):
    return io.BufferedReader(io.BytesIO(text.encode()))


def test_streams_of_objects(monkeypatch):
    monkeypatch.setattr(text_records, "CHUNK", 7)
    records = [{"a": 1, "b": "x]},{"}, {"c": [1, {"d": "é"}]}, {}]
    assert list(packing.objects(_file(json.dumps(records, indent=1)), "f")) == records
    lines = "\n".join(map(json.dumps, records))
    assert list(packing.objects(_file(lines), "f")) == records
    assert list(packing.objects(_file("[]"), "f")) == []
    with pytest.raises(ValueError, match="f is not JSON"):
        list(packing.objects(_file('[{"a": 1}, {"b": '), "f"))


@pytest.mark.real_data
def test_real_steps(real_steps):
    problems = Problems()
    source = PlainFile(real_steps, "cleaned", problems)
    ids = {split: source.ids(split) for split in envs.SPLITS}
    assert sum(map(len, ids.values())) == 87
    tasks = [source.task(name) for names in ids.values() for name in names]
    steps = [step for task in tasks for step in task.steps]
    assert len(steps) == 100
    assert {step.op for step in steps} == {"CLICK", "TYPE", "SELECT"}
    assert all(len(step.candidates) == 30 for step in steps)
    assert all(set(step.positives) <= {c.node for c in step.candidates} for step in steps)
    # In the file the right one stands first; here its place tells nothing.
    assert sum(step.candidates[0].node in step.positives for step in steps) < 10
    websites = [{source.task(name).website for name in names} for names in ids.values()]
    assert not websites[0] & websites[1] | websites[0] & websites[2] | websites[1] & websites[2]
    assert not any("HTML truncated" in step.html for step in steps)
    env = envs.make(ID, data=real_steps.parent, split="test")  # the folder does as well
    assert list(env.tasks) == list(ids["test"])


def test_splits_of_a_plain_file():
    parts = split_by_website({f"t{i}": f"site{i % 10}" for i in range(50)})
    assert {split: len(names) for split, names in parts.items()} == {
        "train": 35,
        "dev": 5,
        "test": 10,
    }
    few = split_by_website({f"t{i}": "one site" for i in range(4)})
    assert {split: len(names) for split, names in few.items()} == {"train": 2, "dev": 1, "test": 1}
    assert split_by_website({"t": "s"}) == {"train": ["t"], "dev": [], "test": []}


def test_broken_records_are_counted(tmp_path):
    good = {
        "annotation_id": "good",
        "confirmed_task": "x",
        "actions": [make_step_record(pos=["1"]), "no action"],
    }
    broken_candidate = make_step_record(pos=["1"])
    broken_candidate["neg_candidates"] = ["{", {"tag": "a"}, None]
    path = tmp_path / "mixed.jsonl"
    rows = [
        json.dumps(good),
        "not json",
        "[1]",
        '{"annotation_id": "x"}',
        json.dumps({"annotation_id": "y", "confirmed_task": "y", "actions": []}),
        json.dumps({**good, "annotation_id": "z", "actions": [broken_candidate]}),
        "[" * 100_000,
    ]
    path.write_text("\n".join(rows))
    problems = Problems()
    source = PlainFile(path, "cleaned", problems)
    assert {name for split in envs.SPLITS for name in source.ids(split)} == {"good", "z"}
    assert problems.counts() == {
        "action that is not an object": 1,
        "candidate without node id": 1,
        "line that is not JSON": 2,
        "no candidates": 1,
        "no page": 1,
        "no positive candidate": 1,
        "operation outside the three": 1,
        "record that is not an object": 1,
        "row without annotation_id or confirmed_task": 1,
        "task without id, instruction or actions": 1,
    }


@pytest.mark.parametrize("text", ["", "[]", "{}", "nonsense", '[{"a": 1}]', "[" * 100_000])
def test_a_file_without_tasks_is_a_clear_error(tmp_path, text):
    path = tmp_path / "tasks.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"tasks\.json"):
        envs.make(ID, data=path)


def test_fields_of_another_type_are_counted(tmp_path):
    path = tmp_path / "steps.jsonl"
    row = {"annotation_id": "a", "action_uid": "u", "confirmed_task": "Go", "cleaned_html": "<p/>"}
    fields = ("candidates", "pos_backend_node_ids", "previous_actions")
    task = {"annotation_id": "b", "confirmed_task": "Go", "actions": [{}], "action_reprs": 5}
    huge = {**row, "annotation_id": "c", "operation": "9" * 5000}
    lines = [{**row, **dict.fromkeys(fields, 5)}, task, huge]
    path.write_text("\n".join(map(json.dumps, lines)))
    problems = Problems()
    source = PlainFile(path, "cleaned", problems)
    assert {name for split in envs.SPLITS for name in source.ids(split)} == {"a", "b", "c"}
    counts = problems.counts()
    assert [counts[f"{name} that is not a list"] for name in (*fields, "action_reprs")] == [1] * 4
    (step,) = source.task("a").steps
    assert (step.candidates, step.positives, step.history) == ((), (), ())


def test_the_note_that_a_page_was_cut_is_left_out():
    # The way it was read before, which took seconds for a page with long runs of blanks.
    plain = re.compile(r"\s*\.\.\. \[HTML truncated[^\]]*\] \.\.\.\s*\Z")
    rng = random.Random(0)
    parts = ["... [HTML truncated", "] ...", "]", " ", "\n", ".", "x", " \x1f\u2028", "... [HTML"]
    texts = ["".join(rng.choices(parts, k=rng.randint(0, 8))) for _ in range(20_000)]
    assert sum(plain.search(text) is not None for text in texts) > 500
    for text in texts:
        step = make_step("u", text, {}, [], [], Problems())
        assert step.html == plain.sub("", text), repr(text)


def test_rendered_elements_are_read_attribute_by_attribute():
    plain = re.compile(r'([\w-]+)="([^"]*)(?:"|\Z)')
    rng = random.Random(0)
    for _ in range(20_000):
        text = "".join(rng.choices(['"', "=", '="', "a", "-b", " ", "<"], k=rng.randint(0, 12)))
        assert records._RENDERED.findall(text) == plain.findall(text), repr(text)


@pytest.mark.parametrize("run", [" ", "\n", "... [HTML truncated", "] ...", "]"])
def test_long_runs_in_a_page_take_linear_time(run):
    start = time.process_time()
    make_step("u", "x" + run * (200_000 // len(run)) + "x", {}, [], [], Problems())
    row = {"annotation_id": "a", "confirmed_task": "Go"}
    rendered = "<a " + "a-" * 100_000 + " " + run * 10_000
    tasks_from_rows(
        [{**row, "candidates": [{"backend_node_id": "1", "rendered": rendered}]}], Problems()
    )
    assert time.process_time() - start < 1


def test_ranks(tmp_path):
    path = tmp_path / "ranks.json"
    path.write_text(json.dumps({"a_b": ["3", 1], "c_d": {"9": 1, "8": 0}}))
    assert read_ranks(path) == {"a_b": ["3", "1"], "c_d": ["8", "9"]}
    for name, text, says in (
        ("x.json", "[1]", "object of lists"),
        ("y.json", '{"a": 3}', "'a' must be a list"),
        ("v.json", '{"a_b": {"1": null, "2": 3}}', "'a_b' must be a list"),
        ("z.pkl", "\x80\x04", "stepagent mind2web-ranks"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=says):
            read_ranks(tmp_path / name)
