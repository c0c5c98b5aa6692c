"""Files as people have them: every layout plays like the official one, and what cannot be scored,
or is no Mind2Web at all, is refused with its name."""

import bz2
import gzip
import json
import logging
import tracemalloc
import zipfile

import pytest

from stepagent import envs
from stepagent.envs.mind2web import packs
from stepagent.envs.mind2web.records import Problems, make_step
from tests.envs.mind2web.records import make_step_record, record

ID = "stepagent/Mind2Web-v0"
TASKS = [record(f"shop/lumen-house/{i}") for i in range(2)]
TASKS += [record("support/volt-depot/0"), record("shop/green-thumb/1")]


def rows(tasks, as_text=False):
    """The rows of the multimodal release: a step each, candidates as JSON texts."""
    for task in tasks:
        for number, action in enumerate(task["actions"]):
            right, wrong = (
                [json.dumps(c) for c in action[f"{kind}_candidates"]] for kind in ("pos", "neg")
            )
            if as_text:
                right, wrong = (
                    json.dumps([json.loads(c) for c in part]) for part in (right, wrong)
                )
            yield {
                "action_uid": action["action_uid"],
                "raw_html": action["raw_html"],
                "cleaned_html": action["cleaned_html"],
                "operation": json.dumps(action["operation"]),
                "pos_candidates": right,
                "neg_candidates": wrong,
                **{k: task[k] for k in ("website", "domain", "subdomain", "annotation_id")},
                "confirmed_task": task["confirmed_task"],
                "screenshot": {"bytes": b"\x89PNG".hex(), "path": ""},
                "action_reprs": task["action_reprs"],
                "target_action_index": str(number),
                "target_action_reprs": task["action_reprs"][number],
            }


def lines(records):
    return "".join(json.dumps(r) + "\n" for r in records).encode()


def array(records):
    return json.dumps(list(records)).encode()


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def zipped(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def table(path, records):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(list(records)), path)
    return path


def in_sets(folder, ending, make):
    """A file per official set, with the first task in train and the others in test_domain."""
    make(folder / f"data/train{ending}", TASKS[:1])
    make(folder / f"data/test_domain{ending}", TASKS[1:])
    return folder


OFFICIAL = {
    "folder": lambda at: in_sets(at, "/x_0.json", lambda p, tasks: write(p, array(tasks))),
    "macos": lambda at: (
        in_sets(at, "/x_0.json", lambda p, tasks: write(p, array(tasks))),
        write(at / "data/train/._x_0.json", b"\0\5\x16\7"),
        write(at / ".DS_Store", b"\0\0\0"),
    )[0],
    "named": lambda at: in_sets(at, "_0.json", lambda p, tasks: write(p, array(tasks))),
    "gzip": lambda at: in_sets(
        at, "_0.json.gz", lambda p, tasks: write(p, gzip.compress(array(tasks)))
    ),
    "zip in a folder": lambda at: (
        zipped(
            at / "all.zip",
            {
                "train/train_0.json": array(TASKS[:1]),
                "test_domain/test_domain_0.json": array(TASKS[1:]),
                "__MACOSX/train/._train_0.json": b"\0\5\x16\7",
            },
        ).parent
    ),
    "zip by name": lambda at: zipped(
        at / "test.zip",
        {
            "train/train_0.json": array(TASKS[:1]),
            "test_domain/test_domain_0.json": array(TASKS[1:]),
        },
    ),
    "multimodal": lambda at: in_sets(
        at, "-00000-of-00001-ab12.parquet", lambda p, tasks: table(p, rows(tasks))
    ),
    "multimodal, two files": lambda at: (
        (
            table(at / "train-00000-of-00001.parquet", rows(TASKS[:1])),
            table(at / "test_domain-00000-of-00002.parquet", list(rows(TASKS[1:]))[:3]),
            table(at / "test_domain-00001-of-00002.parquet", list(rows(TASKS[1:]))[3:]),
        )[0].parent
    ),
}
PLAIN = {
    "official": lambda at: write(at / "t.json", array(TASKS)),
    "official lines": lambda at: write(at / "t.jsonl", lines(TASKS)),
    "byte order mark": lambda at: write(at / "t.json", b"\xef\xbb\xbf" + array(TASKS)),
    "carriage returns": lambda at: write(at / "t.jsonl", lines(TASKS).replace(b"\n", b"\r\n")),
    "utf-16": lambda at: write(at / "t.json", array(TASKS).decode().encode("utf-16")),
    "bzip2": lambda at: write(at / "t.json", bz2.compress(array(TASKS))),
    "zip": lambda at: zipped(at / "t.zip", {"tasks.jsonl": lines(TASKS)}),
    "rows": lambda at: write(at / "t.jsonl", lines(rows(TASKS))),
    "rows as text": lambda at: write(at / "t.json", array(rows(TASKS, as_text=True))),
    "rows, last first": lambda at: write(at / "t.jsonl", lines(list(rows(TASKS))[::-1])),
    "parquet": lambda at: table(at / "t.parquet", rows(TASKS)),
    "folder of one file": lambda at: write(at / "t.jsonl", lines(rows(TASKS))).parent,
}


def played(data, split, **arguments):
    """What an expert sees, does and scores in each of a split's tasks."""
    env = envs.make(ID, data=data, split=split, **arguments)
    episodes = {}
    for task in sorted(env.tasks):
        texts = [env.reset(seed=0, options={"task_id": task})[0]]
        for thought, action in env.expert_plan():
            observation, *_, info = env.step(action)
            texts += [thought, action, observation]
        assert info["success"]
        episodes[task] = texts
    return episodes


@pytest.mark.parametrize("layout", OFFICIAL)
@pytest.mark.parametrize("answers", ["direct", "choice"])
def test_official_layouts_play_alike(tmp_path, layout, answers):
    usual, other = OFFICIAL["folder"](tmp_path / "usual"), OFFICIAL[layout](tmp_path / "other")
    for split, count in (("train", 1), ("test", 3)):
        episodes = played(other, split, answers=answers)
        assert len(episodes) == count
        assert episodes == played(usual, split, answers=answers)


@pytest.mark.parametrize("layout", PLAIN)
def test_plain_layouts_play_alike(tmp_path, layout):
    usual, other = PLAIN["official"](tmp_path / "usual"), PLAIN[layout](tmp_path / "other")
    for split in ("train", "test"):
        episodes = played(other, split)
        assert episodes
        assert episodes == played(usual, split)


def test_raw_pages_of_rows(tmp_path):
    usual, other = PLAIN["official"](tmp_path / "usual"), PLAIN["rows"](tmp_path / "other")
    assert played(other, "train", html="raw") == played(usual, "train", html="raw")


# Data that cannot be scored -------------------------------------------------------------------


def test_rows_without_candidates_are_refused(tmp_path):
    lean = [{k: v for k, v in r.items() if "candidates" not in k} for r in rows(TASKS)]
    env = envs.make(ID, data=write(tmp_path / "t.jsonl", lines(lean)))
    with pytest.raises(
        ValueError, match=r"t\.jsonl: none of its \d+ steps has candidates.*parquet"
    ):
        env.reset(seed=0)


@pytest.mark.parametrize(
    ("field", "says"), [("pos_candidates", "a positive candidate"), ("cleaned_html", "a page")]
)
def test_what_every_step_lacks_is_named_and_what_some_lack_is_counted(
    tmp_path, field, says, caplog
):
    def without(actions):
        return [{k: v for k, v in a.items() if k != field} for a in actions]

    tasks = [{**task, "actions": without(task["actions"])} for task in TASKS]
    env = envs.make(ID, data=write(tmp_path / "all.json", array(tasks)))
    with pytest.raises(ValueError, match=rf"all\.json: none of its \d+ steps has {says}"):
        env.tasks  # noqa: B018
    some = [*TASKS[:3], tasks[3]]
    with caplog.at_level(logging.WARNING):
        env = envs.make(ID, data=write(tmp_path / "some.json", array(some)))
        env.reset(seed=0)
        env.reset(seed=1)
    lacking = len(TASKS[3]["actions"])
    steps = sum(len(task["actions"]) for task in TASKS)
    assert [text for text in caplog.messages if "lack" in text] == [
        f"{tmp_path / 'some.json'}: {lacking} of {steps} steps lack {says}"
    ]


def test_ranks_of_other_data_are_refused(tmp_path):
    data = write(tmp_path / "t.json", array(TASKS))
    ranks = write(tmp_path / "ranks.json", array([]).replace(b"[]", b'{"other_uid": ["1"]}'))
    env = envs.make(ID, data=data, ranks=ranks)
    with pytest.raises(ValueError, match=r"ranks\.json ranks none of .*'other_uid', the data have"):
        env.tasks  # noqa: B018
    uids = [f"{t['annotation_id']}_{a['action_uid']}" for t in TASKS for a in t["actions"]]
    write(ranks, json.dumps({uid: ["no such node"] for uid in uids}).encode())
    with pytest.raises(ValueError, match=r"ranks\.json names none of the candidates"):
        envs.make(ID, data=data, ranks=ranks).tasks  # noqa: B018
    for bundled in ({}, {"split": "test"}):
        write(ranks, b'{"other_uid": ["1"]}')
        with pytest.raises(ValueError, match=r"none of the \d+ steps of bundled sites"):
            envs.make(ID, ranks=ranks, **bundled).tasks  # noqa: B018


def test_steps_without_ranks_are_counted(tmp_path, caplog):
    data = write(tmp_path / "t.json", array(TASKS))
    env = envs.make(ID, data=data)
    task = env.tasks[0]
    first, *others = env._library.task(task).steps
    order = [c.node for c in env._library.ranked(task, 0)]
    ranks = write(
        tmp_path / "ranks.json", b"\xef\xbb\xbf" + json.dumps({first.uid: order}).encode()
    )
    with caplog.at_level(logging.WARNING):
        env = envs.make(ID, data=data, ranks=ranks)
        env.reset(seed=0, options={"task_id": task})
    assert any("ranks: " in text and "the ranker ranks these" in text for text in caplog.messages)
    for _, action in env.expert_plan():
        *_, info = env.step(action)
    assert info["data_notes"] == {"steps: step without ranks": len(others)}


# Bad files ------------------------------------------------------------------------------------

GOOD = array(TASKS[:2])
NESTED = b"[" * 100_000
BAD = {
    "empty": (b"", "is empty"),
    "blank": (b" \n", "is empty"),
    "cut": (GOOD[: len(GOOD) // 2], r"record \d.*cut"),
    "cut at its end": (GOOD[:-1], "the end.*not closed"),
    "encoding": (GOOD.replace(b"Mug", b"M\xfcg").replace(b"a", b"\xe4"), "not UTF-8.*iconv"),
    "nested": (b'[{"a": ' + NESTED, "nested too deeply"),
    "zip": (b"PK\x03\x04" + b"x" * 50, r"cut off or damaged"),
    "pickle": (b"\x80\x04\x95", "pickle"),
    "web page": (b"<!DOCTYPE html><title>Login</title>", "web page"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "webshop": (b'[{"asin": "B000000001", "name": "Mug", "pricing": "$5"}]', "no task of Mind2Web"),
    "hotpotqa": (
        b'[{"_id": "1", "question": "Who?", "answer": "X", "context": []}]',
        "no task of Mind2Web",
    ),
    "webarena": (b'{"task_id": 1, "intent": "x"}\n{"task_id": 2}\n', "no task of Mind2Web"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("where", ["train.json", "official/train/train_0.json"])
def test_bad_files_are_named(tmp_path, name, where):
    content, says = BAD[name]
    path = write(tmp_path / where, content)
    data = path if where == "train.json" else tmp_path / "official"
    with pytest.raises(ValueError, match=says) as caught:
        envs.make(ID, data=data, split="train").reset(seed=0)
    assert path.name in str(caught.value)


def test_bad_lines_are_left_out_and_counted(tmp_path):
    bad = [b'{"cut": ', b"caf\xe9", b'"a text"', NESTED, b'{"annotation_id": "x"}']
    path = write(tmp_path / "t.jsonl", b"\n".join([lines(TASKS).strip(), *bad, lines(TASKS[:1])]))
    env = envs.make(ID, data=path)
    assert env.data_notes() == {
        "left out: line that is not JSON": 3,
        "left out: record that is not an object": 1,
        "left out: row without annotation_id or confirmed_task": 1,
        "left out: task whose id was there before": 1,
    }
    env.reset(seed=0)


def test_packing_takes_the_memory_of_one_task(tmp_path):
    page = "<html backend_node_id='1'>" + "<p>word</p>" * 20_000 + "</html>"
    step = make_step_record(page, pos=["1"])
    with (tmp_path / "t.jsonl").open("w") as file:
        for number in range(80):
            task = {"annotation_id": str(number), "confirmed_task": "Go", "actions": [step]}
            file.write(json.dumps(task) + "\n")
    size = (tmp_path / "t.jsonl").stat().st_size
    tracemalloc.start()
    env = envs.make(ID, data=tmp_path / "t.jsonl")
    assert sum(len(envs.make(ID, data=env.spec.kwargs["data"], split=s).tasks) for s in envs.SPLITS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size > 30_000_000
    assert peak < 15_000_000


# What is shown --------------------------------------------------------------------------------


def long_task(count=60, steps=11):
    """A task of steps whose pages have so many links, the last of which is right."""
    links = "".join(
        f"<a backend_node_id='{n}'>link number {n} to some page of the site</a>"
        for n in range(2, count + 2)
    )
    page = f"<html backend_node_id='1'>{links}</html>"
    actions = [
        {**make_step_record(page, pos=[str(count + 1)], neg=map(str, range(2, count + 1)))}
        for _ in range(steps)
    ]
    for number, action in enumerate(actions):
        action["action_uid"] = str(number)
    return {"annotation_id": "long", "confirmed_task": "Open a page", "actions": actions}


def test_official_data_are_shown_as_mindact_shows_them(tmp_path):
    data = write(tmp_path / "t.json", array([long_task()]))
    env = envs.make(ID, data=data)
    env.reset(seed=0)
    assert env.fingerprint()["budget"] == "none"
    assert len(env._question.view.nodes) == 50
    short = envs.make(ID, data=data, budget="shared")
    short.reset(seed=0)
    assert short.fingerprint()["budget"] == "shared"
    assert len(short._question.view.nodes) < 35
    assert envs.make(ID).fingerprint()["budget"] == "shared"
    assert envs.make(ID, budget=100).fingerprint()["budget"] == "100"
    assert envs.make(ID, budget="none").fingerprint()["budget"] == "none"


def test_a_budget_is_the_environments_own(tmp_path):
    """What one environment's budget hides is no problem of another one on the same data."""
    task = long_task(count=50)
    ranks = {f"long_{a['action_uid']}": [str(n) for n in range(2, 52)] for a in task["actions"]}
    where = write(tmp_path / "ranks.json", json.dumps(ranks).encode())
    data = write(tmp_path / "t.json", array([task]))
    small, large = (envs.make(ID, data=data, ranks=where, budget=b) for b in (100, None))
    scores = {}
    for env in (small, large):
        env.reset(seed=0)
        for _, action in env.expert_plan():
            *_, info = env.step(action)
        scores[env] = info["score"]
    hidden = "positive left out by the token budget"
    assert (scores[small], scores[large]) == (0, 1)
    assert small.problems[hidden] == 11
    assert hidden not in large.problems
    assert info["data_notes"] == {}
    assert small._info()["data_notes"] == {f"steps: {hidden}": 11}


def test_the_value_of_a_click_is_dropped():
    def value(op):
        return make_step("u", "", {"op": op, "value": "Blue jeans"}, ["1"], [], Problems()).value

    assert [value(op) for op in ("CLICK", "HOVER", "ENTER")] == ["", "", ""]
    assert [value(op) for op in ("TYPE", "SELECT")] == ["Blue jeans"] * 2


def test_it_is_packed_by_one_process_and_read_by_all(tmp_path, monkeypatch):
    data = PLAIN["rows"](tmp_path)
    tasks = envs.make(ID, data=data).tasks
    monkeypatch.setattr(packs, "records", lambda *_: pytest.fail("read again"))
    monkeypatch.setattr("stepagent.envs.mind2web.library._open", _fresh_open())
    assert envs.make(ID, data=data).tasks == tasks


def _fresh_open():
    from stepagent.envs.mind2web import library

    return library._open.__wrapped__
