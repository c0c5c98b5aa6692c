"""Reading, sampling and splitting the three data sets' files."""

import json

import pytest

from stepagent.envs.core import SPLITS
from stepagent.envs.wikipedia import data
from stepagent.envs.wikipedia.sources import SourceError
from tests.envs.wikipedia.records import hotpot, musique, write_array, write_lines


def load(dataset, source, sizes=data.SIZES, seed=0):
    return {split: data.load(dataset, split, source, sizes, seed) for split in SPLITS}


def ids(questions):
    return [question.id for question in questions]


def test_the_papers_way_with_official_files(tmp_path):
    write_array(tmp_path / "hotpot_train_v1.1.json", [hotpot(i) for i in range(300)])
    write_array(tmp_path / "hotpot_dev_distractor_v1.json", [hotpot(i) for i in range(280, 400)])
    write_array(tmp_path / "hotpot_test_fullwiki_v1.json", [{"_id": "t", "question": "?"}])
    splits = load("hotpotqa", tmp_path, (100, 30, 20))
    assert {split: len(qs) for split, qs in splits.items()} == {"train": 100, "dev": 30, "test": 20}
    train, dev, test = (set(ids(splits[split])) for split in SPLITS)
    assert not train & dev
    assert not train & test
    assert not dev & test
    assert all(int(name[2:]) < 300 for name in train)
    assert all(int(name[2:]) >= 280 for name in dev | test)


def test_the_sample_follows_from_the_seed_alone(tmp_path):
    some = [hotpot(i) for i in range(60)]
    write_array(tmp_path / "a.json", some)
    write_array(tmp_path / "b.json", some[::-1])
    one = load("hotpotqa", tmp_path / "a.json", (10, 5, 5))
    two = load("hotpotqa", tmp_path / "b.json", (10, 5, 5))
    assert one == two
    other = load("hotpotqa", tmp_path / "a.json", (10, 5, 5), seed=1)
    assert ids(one["test"]) != ids(other["test"])
    both = load("hotpotqa", tmp_path)  # the same questions twice are taken once
    assert sum(map(len, both.values())) == 60


def test_hops_of_a_bridge_begin_at_what_the_question_names(tmp_path):
    path = write_array(tmp_path / "q.json", [hotpot(i) for i in range(5)])
    question = data.load("hotpotqa", "train", path)[0]
    number = int(question.id[2:])
    assert [hop.title for hop in question.hops] == [f"Number {number}", f"Writer {number}"]
    assert question.hops[1].facts == (f"Writer {number} was born in Paris.",)
    assert question.task_id == f"bridge/id{number:04d}"
    assert question.answers == ("Paris",)
    assert [p.title for p in question.passages] == [f"Writer {number}", f"Number {number}", "Paris"]


def test_musique_decomposition_and_aliases(tmp_path):
    records = [musique(i) for i in range(8)]
    records.append(musique(90, answerable=False))
    path = write_lines(tmp_path / "musique_full.jsonl", records)
    splits = load("musique", path)
    assert sum(map(len, splits.values())) == 8
    question = splits["train"][0]
    number = question.id.split("_")[2]
    one, two = question.hops
    assert (one.title, one.answer) == (f"Thing {number}", f"Maker {number}")
    assert one.question == f"What is the manufacturer of Thing {number}?"
    assert two.question == f"When was Maker {number} founded?"
    assert two.text == "It was founded in 1901.\nIt is old."
    assert question.answers == ("1901", "the year 1901")
    assert question.kind == "2hop"


def test_2wiki_aliases_come_from_the_file_beside(tmp_path):
    record = {
        **hotpot(1, "France"),
        "answer_id": "Q142",
        "evidences": [["Writer 1", "place of birth", "France"]],
    }
    others = [{**hotpot(i), "answer_id": None} for i in range(2, 9)]
    write_array(tmp_path / "train.json", [record, *others])
    write_array(tmp_path / "dev.json", [hotpot(i) for i in range(20, 24)])
    aliases = [
        {"Q_id": "Q1", "aliases": ["x"], "demonyms": []},
        {"Q_id": "Q142", "aliases": ["French Republic"], "demonyms": ["French"]},
    ]
    write_lines(tmp_path / "id_aliases.json", aliases)
    questions = {q.id: q for q in data.load("2wikimultihopqa", "train", tmp_path)}
    question = questions["id0001"]
    assert question.answers == ("France", "French Republic", "French")
    text = "What is the place of birth of Writer 1?"
    assert question.hops[-1].question == text
    assert questions["id0002"].answers == ("Paris",)


def test_questions_without_paragraphs_can_be_read(tmp_path):
    simple = [{"question": f"Q{i}?", "answer": "x", "type": "bridge"} for i in range(9)]
    path = write_array(tmp_path / "simplified.json", simple)
    splits = load("hotpotqa", path)
    assert sum(map(len, splits.values())) == 9
    assert splits["train"][0].hops == ()
    with pytest.raises(SourceError, match=r"hotpot_train_v1\.1\.json and hotpot_dev_distractor"):
        data.load("hotpotqa", "train", tmp_path)  # in a folder, such files are not looked for


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answer": None}, "answer is no text"),
        ({"answer": ""}, "test files have no answers"),
        ({"question": 7}, "no text 'question'"),
        ({"context": [["A"]]}, "record"),
        ({"context": 5}, "record"),
        ({"supporting_facts": [["A", "x"]]}, "record"),
    ],
)
def test_bad_records_are_named(tmp_path, change, said):
    records = [hotpot(i) for i in range(4)]
    records[2].update(change)
    path = write_array(tmp_path / "bad.json", records)
    with pytest.raises(SourceError, match=r"record 3 of .*bad\.json") as error:
        load("hotpotqa", path)
    assert said in str(error.value)


def test_bad_files_are_named(tmp_path):
    path = tmp_path / "cut.json"
    path.write_text(json.dumps([hotpot(i) for i in range(20)])[:-100])
    with pytest.raises(SourceError, match=r"cut\.json is cut off or damaged after 19"):
        data.load("hotpotqa", "dev", path)
    path.write_text(path.read_text()[:50])
    with pytest.raises(SourceError, match=r"cut\.json is cut off or damaged after 0"):
        data.load("hotpotqa", "dev", tmp_path)
    path.unlink()
    with pytest.raises(SourceError, match="no folder or file of musique"):
        data.load("musique", "dev", tmp_path / "nowhere")
    with pytest.raises(SourceError, match="three splits need at least 3"):
        data.load("hotpotqa", "dev", write_array(tmp_path / "two.json", [hotpot(1), hotpot(2)]))
    with pytest.raises(ValueError, match="at least 1"):
        data.load("hotpotqa", "dev", None, (5, 0, 5))


@pytest.mark.real_data
def test_the_real_files(real):
    for dataset, count in (("hotpotqa", 300), ("2wikimultihopqa", 500), ("musique", 200)):
        splits = load(dataset, real / dataset)
        names = [name for split in SPLITS for name in ids(splits[split])]
        assert len(set(names)) == len(names) == count
        for question in splits["test"]:
            assert question.answers[0]
            assert 2 <= len(question.hops) <= 4
            assert question.passages
            titles = {p.title for p in question.passages}
            assert {hop.title for hop in question.hops} <= titles
            assert all(hop.text for hop in question.hops)
    simple = real / "hotpotqa" / "hotpot_dev_v1_simplified.json"
    assert sum(len(qs) for qs in load("hotpotqa", simple).values()) == 5000 + 500 + 500


def test_full_wiki_files_may_lack_the_supporting_pages(tmp_path):
    """In HotpotQA's full-wiki files the paragraphs are what a retriever found."""
    records = [hotpot(i) for i in range(40, 60)]
    for record in records:
        record["context"] = record["context"][2:]
    write_array(tmp_path / "hotpot_train_v1.1.json", [hotpot(i) for i in range(20)])
    write_array(tmp_path / "hotpot_dev_fullwiki_v1.json", records)
    question = data.load("hotpotqa", "test", tmp_path)[0]
    assert [hop.title for hop in question.hops] == [
        f"Number {question.id[4:]}",
        f"Writer {question.id[4:]}",
    ]
    assert all(hop.text == "" and hop.facts == () for hop in question.hops)
    assert [p.title for p in question.passages] == ["Paris"]
