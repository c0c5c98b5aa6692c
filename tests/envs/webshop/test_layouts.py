"""Shops as people have them: every layout sells the same, and files of other things are named."""

import bz2
import gzip
import json
import os
import tracemalloc
import zipfile

import pytest

from stepagent import envs
from stepagent.envs.webshop import sources
from stepagent.envs.webshop.catalogue import MAX_GOALS
from tests.envs.webshop.shops import raw_item, write_shop

ID = "stepagent/WebShop-v0"
ITEMS = [raw_item(i, pricing=f"${i + 1}.50") for i in range(12)]
WISHES = {
    item["asin"]: [
        {
            "instruction": f"i want plain mug number {number}",
            "instruction_attributes": ["dishwasher safe"],
            "instruction_options": ["red"],
        }
    ]
    for number, item in enumerate(ITEMS)
}
NAMES = ("items_shuffle", "items_ins_v2", "items_human_ins")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STEPAGENT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def usual(tmp_path):
    return write_shop(tmp_path / "usual", ITEMS, wishes=WISHES)


def files(folder):
    return {f"{name}.json": (folder / f"{name}.json").read_bytes() for name in NAMES}


def write(folder, contents):
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def zipped(path, contents):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


def small(contents):
    """The names of the small download, which has human instructions of all products."""
    return {
        name.replace("le.", "le_1000.").replace("2.", "2_1000."): c for name, c in contents.items()
    }


def renamed(contents, pack, ending=""):
    return {f"{name}{ending}": pack(content) for name, content in contents.items()}


def documents(contents):
    lines = (json.dumps({"id": i["asin"], "contents": "x", "product": i}) for i in ITEMS)
    others = {name: c for name, c in contents.items() if name != "items_shuffle.json"}
    return others | {"documents.jsonl": "\r\n".join(lines).encode()}


def text(change):
    return lambda content: change(json.dumps(json.loads(content), indent=1))


LAYOUTS = {
    "small": lambda at, c: write(at / "s", small(c)),
    "small by name": lambda at, c: write(at / "s", small(c)) / "items_shuffle_1000.json",
    "full beside small": lambda at, c: write(
        at / "s", c | {"items_shuffle_1000.json": b"[]", "items_ins_v2_1000.json": b"{}"}
    ),
    "repository": lambda at, c: write(
        at / "s", {f"data/{n}": b for n, b in c.items()} | {"README.md": b"#", "setup.sh": b"#"}
    ),
    "zip": lambda at, c: zipped(at / "shop.zip", {f"data/{n}": b for n, b in c.items()}),
    "zip made by macOS": lambda at, c: zipped(
        at / "shop", c | {f"__MACOSX/._{n}": b"\0\5\x16\7" for n in c}
    ),
    "macOS": lambda at, c: write(at / "s", c | {f"._{n}": b"\0\5\x16\7" for n in c}),
    "gzip": lambda at, c: write(at / "s", renamed(c, gzip.compress, ".gz")),
    "bzip2 with the usual names": lambda at, c: write(at / "s", renamed(c, bz2.compress)),
    "byte order marks, carriage returns": lambda at, c: write(
        at / "s",
        renamed(c, text(lambda t: b"\xef\xbb\xbf" + t.replace("\n", "\r\n").encode())),
    ),
    "utf-16": lambda at, c: write(at / "s", renamed(c, text(lambda t: t.encode("utf-16")))),
    "documents": lambda at, c: write(at / "s", documents(c)),
}


def played(source, split):
    env = envs.make(ID, data=source, split=split)
    episodes = {}
    for task in env.tasks:
        shown = [env.reset(seed=0, options={"task_id": task})[0]]
        for thought, action in env.expert_plan():
            observation, *_, info = env.step(action)
            shown += [thought, action, observation]
        episodes[task] = (shown, info["score"])
    return episodes


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_sells_the_same(usual, tmp_path, layout):
    source = LAYOUTS[layout](tmp_path, files(usual))
    for split in ("train", "test"):
        episodes = played(source, split)
        assert episodes == played(usual, split)
        assert all(score == 1 for _, score in episodes.values())


def test_what_is_left_out_or_replaced_is_in_the_notes(tmp_path):
    items = [*ITEMS, raw_item(20, name=...), raw_item(21, pricing="ask")]
    folder = write_shop(tmp_path / "shop", items, wishes=WISHES | {"B0GONE0000": [{}]})
    ins = json.loads((folder / "items_ins_v2.json").read_text())
    del ins[ITEMS[0]["asin"]]
    (folder / "items_ins_v2.json").write_text(json.dumps({**ins, "B0OTHER000": {}}))
    for _ in range(2):  # as it is made, and from the cache
        assert envs.make(ID, data=folder).data_notes() == {
            "left out: products without a title": 1,
            "left out: human instructions whose product is not in the catalogue": 1,
            "left out: attributes whose product is not in the catalogue": 1,
            "replaced: products without a price, as in upstream at $100": 1,
            "replaced: products without attributes, as in upstream with a dummy": 1,
        }
    assert envs.make(ID).data_notes() == {}


def test_attributes_of_other_products_are_refused(usual):
    others = {"B0OTHER000": {"attributes": ["soft"], "instruction": "x"}}
    (usual / "items_ins_v2.json").write_text(json.dumps(others))
    with pytest.raises(ValueError, match=r"items_ins_v2\.json has .* none of the 12 products"):
        envs.make(ID, data=usual)


GOOD = json.dumps(ITEMS).encode()


@pytest.mark.parametrize("name", ["items_shuffle.json", "items_ins_v2.json"])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf \r\n", "array or object was expected"),
        (GOOD[: len(GOOD) // 2], r"cut or damaged after \d+ items|object, product id"),
        (GOOD[:200].replace(b"Mug", b"M\xfcg") + GOOD[200:], r"item \d.*not UTF-8.*iconv"),
        (b'[{"a": ' + b"[" * 100_000, "nested too deeply"),
        (b"<!DOCTYPE html><title>Google Drive - Virus scan warning</title>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (gzip.compress(GOOD)[:-30], "cut off or damaged"),
        (b'[{"annotation_id": "x", "actions": []}]', "no product is left|object, product id"),
        (b'{"question": "Who?", "answer": "X"}', "array of products|none of the 12 products"),
    ],
)
def test_bad_files_are_named(usual, name, content, says):
    (usual / name).write_bytes(content)
    with pytest.raises(ValueError, match=says) as caught:
        envs.make(ID, data=usual)
    assert name in str(caught.value) or "no product is left" in str(caught.value)


def test_bad_lines_are_named(usual):
    (usual / "items_shuffle.json").unlink()
    lines = [json.dumps({"product": item}) for item in ITEMS]
    path = usual / "documents.jsonl"
    for bad, says in (
        (b'{"product": {"asin"', r"documents\.jsonl:13: not JSON"),
        (b'{"product": {"asin": "caf\xe9"}}', r"documents\.jsonl:13: byte 0xE9 is not UTF-8"),
        (b"[" * 100_000, r"documents\.jsonl:13: its JSON is nested too deeply"),
    ):
        path.write_bytes("\n".join(lines).encode() + b"\n" + bad + b"\n")
        with pytest.raises(ValueError, match=says):
            envs.make(ID, data=usual)


def test_a_huge_catalogue_is_read_in_flat_memory(tmp_path):
    folder = write_shop(tmp_path / "shop", ITEMS, wishes=WISHES)
    items = (raw_item(i, full_description="word " * 8000) for i in range(600))
    with (folder / "items_shuffle.json").open("w") as file:
        file.write("[" + ",\n".join(map(json.dumps, items)) + "]")
    assert (folder / "items_shuffle.json").stat().st_size > 20_000_000
    tracemalloc.start()
    assert len(sources.from_files(folder)) == 600
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12_000_000


def test_goals_beyond_a_limit_are_left_out_and_counted(tmp_path):
    options = {f"option {k}": [{"value": f"value {i}"} for i in range(60)] for k in range(4)}
    many = {f"option {k}": [{"value": "one"}, {"value": "two"}] for k in range(3000)}
    items = [raw_item(20, customization_options=options), raw_item(21, customization_options=many)]
    env = envs.make(ID, data=write_shop(tmp_path / "shop", ITEMS + items), goals="synthetic")
    assert len(env.shop.catalogue.goals("synthetic")) == 2 * len(ITEMS) + 2 * MAX_GOALS["product"]
    assert env.data_notes() == {
        "left out: products' further synthetic goals, beyond 10,000 each or 20,000,000 in all": 2
    }
    env.reset(seed=0)


def test_all_goals_of_a_shop_have_a_limit(tmp_path, monkeypatch):
    monkeypatch.setitem(MAX_GOALS, "shop", 5)
    env = envs.make(ID, data=write_shop(tmp_path / "shop", ITEMS), goals="synthetic")
    assert len(env.shop.catalogue.goals("synthetic")) == 5
    (left_out,) = env.data_notes().values()
    assert left_out == len(ITEMS) - 2, "the third product has one of its two goals"


def test_products_of_megabytes_are_left_out_and_counted(tmp_path):
    items = [*ITEMS, raw_item(20, name="mug " * 300_000)]
    env = envs.make(ID, data=write_shop(tmp_path / "shop", items), goals="synthetic")
    assert len(env.shop) == len(ITEMS)
    assert env.data_notes() == {"left out: products of more than 1 MB": 1}


def test_a_record_without_end_is_named(usual, monkeypatch):
    monkeypatch.setattr(sources, "MAX_RECORD", 2_000_000)
    for name in ("items_shuffle.json", "items_ins_v2.json"):
        content = (usual / name).read_text()
        (usual / name).write_text(content[:1] + f'"{"mug " * 1_000_000}",' + content[1:])
        with pytest.raises(ValueError, match=rf"{name}.*more than 2,000,000 characters"):
            envs.make(ID, data=usual)
        (usual / name).write_text(content)


@pytest.mark.parametrize("name", NAMES)
def test_a_pipe_in_place_of_a_file_is_named(usual, name):
    (usual / f"{name}.json").unlink()
    os.mkfifo(usual / f"{name}.json")
    with pytest.raises(ValueError, match=rf"{name}\.json is a device or a pipe"):
        envs.make(ID, data=usual)
