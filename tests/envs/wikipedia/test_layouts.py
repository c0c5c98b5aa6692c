"""Every layout in the documentation gives the official files' questions, scores and pages."""

import bz2
import csv
import gzip
import json
import random
import re
import tarfile
import zipfile
from pathlib import Path

import pytest

from stepagent import envs
from stepagent.envs.containers import SourceError
from stepagent.envs.core import SPLITS
from stepagent.envs.wikipedia import data, prepare
from stepagent.envs.wikipedia.layouts import official
from stepagent.envs.wikipedia.sources import pages
from tests.envs.wikipedia.records import hotpot, musique, write_array, write_lines
from tests.envs.wikipedia.test_env import IDS, oracle

PAGE = Path(__file__).parents[3] / "docs" / "pages" / "environments" / "wikipedia.md"
TRAIN, DEV = range(40), range(40, 70)


def two_wiki(number):
    """A record as 2WikiMultihopQA has it."""
    record = hotpot(number)
    del record["level"]
    facts = [[f"Number {number}", "author", f"Writer {number}"],
             [f"Writer {number}", "place of birth", "Paris"]]  # fmt: skip
    return {**record, "evidences": facts}


MAKE = {"hotpotqa": hotpot, "2wikimultihopqa": two_wiki, "musique": musique}


# Writing them -------------------------------------------------------------------------------------


def hub_row(record, sentences="sentences"):
    """The record in the columns of the Hugging Face hub: dicts of lists."""
    row = {key: value for key, value in record.items() if key != "_id"}
    if "paragraphs" in row:
        return row
    row["id"] = record["_id"]
    titles, texts = zip(*record["context"], strict=True)
    row["context"] = {"title": list(titles), sentences: list(texts)}
    titles, numbers = zip(*record["supporting_facts"], strict=True)
    row["supporting_facts"] = {"title": list(titles), "sent_id": list(numbers)}
    if "evidences" in record:
        names = ("fact", "relation", "entity")
        columns = zip(*record["evidences"], strict=True)
        row["evidences"] = dict(zip(names, map(list, columns), strict=True))
    return row


def text_row(record):
    """The record with its nested columns as JSON."""
    nested = ("context", "supporting_facts", "evidences", "paragraphs", "question_decomposition")
    return {k: json.dumps(v) if k in nested else v for k, v in record.items()}


def flashrag_row(record):
    row = hub_row(record, "content" if "evidences" in record else "sentences")
    base = {"id": row.pop("id"), "question": row.pop("question")}
    golds = [row.pop("answer"), *row.pop("answer_aliases", ())]
    if paragraphs := row.pop("paragraphs", None):
        by_number = {p["idx"]: p for p in paragraphs}
        for step in row["question_decomposition"] if paragraphs else ():
            step["support_paragraph"] = by_number[step["paragraph_support_idx"]]
    return {**base, "golden_answers": golds, "metadata": row}


def search_r1_row(record, dataset):
    return {**flashrag_row(record), "data_source": dataset, "prompt": [{"role": "user"}]}


def write_parquet(path, rows):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_arrow(path, rows):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import ipc

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.Table.from_pylist(rows)
    with ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)


def write_official(folder, dataset, train, dev):
    (train_name, *_), (dev_name, *_) = data.OFFICIAL[dataset]
    write = write_lines if dataset == "musique" else write_array
    write(folder / train_name, train)
    write(folder / dev_name, dev)
    return folder


def write_zip(folder, dataset, train, dev):
    write_official(folder, dataset, train, dev)
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in folder.iterdir():
            archive.write(file, f"data/{file.name}")
            archive.writestr(f"__MACOSX/data/._{file.name}", b"\0\5\x16\7")
        unanswered = json.dumps({"id": "2hop__9_9", "question": "?", "paragraphs": []})
        archive.writestr("data/musique_ans_v1.0_test.jsonl", unanswered)
        archive.writestr("data/dev_test_singlehop_questions_v1.0.json", "{}")
    return path


def write_hub_parquet(folder, dataset, train, dev):
    place = folder / "distractor"
    write_parquet(place / "train-00000-of-00002.parquet", [hub_row(r) for r in train[:20]])
    write_parquet(place / "train-00001-of-00002.parquet", [hub_row(r) for r in train[20:]])
    write_parquet(place / "validation-00000-of-00001.parquet", [hub_row(r) for r in dev])
    unanswered = [{**hub_row(r), "id": "t", "answer": ""} for r in dev[:3]]
    write_parquet(folder / "fullwiki" / "test-00000-of-00001.parquet", unanswered)
    (folder / "README.md").write_text("# A data set")
    return folder


def write_text_parquet(folder, dataset, train, dev):
    write_parquet(folder / "train.parquet", [text_row(r) for r in train])
    write_parquet(folder / "dev.parquet", [text_row(r) for r in dev])
    return folder


def write_hub_arrow(folder, dataset, train, dev):
    write_arrow(folder / "train" / "data-00000-of-00001.arrow", [hub_row(r) for r in train])
    write_arrow(folder / "validation" / "data-00000-of-00001.arrow", [hub_row(r) for r in dev])
    for name in ("dataset_dict.json", "train/state.json", "train/dataset_info.json"):
        (folder / name).write_text('{"splits": ["train", "validation"]}')
    return folder


def write_hub_lines(folder, dataset, train, dev):
    write_lines(folder / "train.jsonl", [hub_row(r) for r in train])
    write_array(folder / "validation.jsonl", [hub_row(r) for r in dev])
    return folder


def write_flashrag(folder, dataset, train, dev):
    write_lines(folder / "train.jsonl", [flashrag_row(r) for r in train])
    write_lines(folder / "dev.jsonl", [flashrag_row(r) for r in dev])
    return folder


def write_search_r1(folder, dataset, train, dev):
    nq = {"id": "nq", "question": "who?", "golden_answers": ["x"], "data_source": "nq"}
    rows = [search_r1_row(r, dataset) for r in train]
    write_parquet(folder / "train.parquet", [*rows, nq])
    write_parquet(folder / "test.parquet", [search_r1_row(r, dataset) for r in dev])
    return folder


QUESTIONS = {
    "official": write_official,
    "MuSiQue's download": write_zip,
    "Hugging Face parquet": write_hub_parquet,
    "Hugging Face parquet, JSON in columns": write_text_parquet,
    "Hugging Face arrow": write_hub_arrow,
    "Hugging Face JSON lines": write_hub_lines,
    "FlashRAG": write_flashrag,
    "Search-R1": write_search_r1,
}


# Questions ----------------------------------------------------------------------------------------


def first_column(heading):
    """First cells of the table whose first heading begins so."""
    table = re.search(rf"^\| {heading}[^\n]*\n\|-[^\n]*\n((?:\|.*\n)+)", PAGE.read_text(), re.M)
    return [row.split("|")[1].strip() for row in table[1].splitlines()]


def test_the_documentation_lists_the_layouts_that_are_tested():
    assert first_column("`data`") == list(QUESTIONS)
    assert first_column("`corpus`") == [*CORPORA, "MediaWiki dump"]


def written(folder, name, dataset, train, dev):
    folder.mkdir()
    return QUESTIONS[name](folder, dataset, train, dev)


def questions(dataset, source):
    return {split: data.load(dataset, split, source, (30, 10, 12)) for split in SPLITS}


def compared(question, with_distractors=True):
    """What the layouts share; FlashRAG has only the supporting ones of MuSiQue's paragraphs."""
    fields = question.to_dict()
    if not with_distractors:
        fields["passages"] = [p for p in fields["passages"] if "makes" not in p["text"]]
    return fields


@pytest.mark.parametrize("dataset", MAKE)
@pytest.mark.parametrize("name", QUESTIONS)
def test_all_layouts_give_the_official_files_questions_and_scores(tmp_path, dataset, name):
    records = [[MAKE[dataset](i) for i in numbers] for numbers in (TRAIN, DEV)]
    source = written(tmp_path / "official", "official", dataset, *records)
    other = written(tmp_path / "other", name, dataset, *records)
    complete = not (dataset == "musique" and name in ("FlashRAG", "Search-R1"))
    for split, expected in questions(dataset, source).items():
        results = questions(dataset, other)[split]
        assert {q.id: compared(q, complete) for q in results} == {
            q.id: compared(q, complete) for q in expected
        }
        assert [q.id for q in results] == [q.id for q in expected]
    scores = [
        oracle(env, env.tasks)
        for place in (source, other)
        if (env := envs.make(IDS[dataset], split="test", data=str(place), sizes=(30, 10, 12)))
    ]
    assert scores[0] == scores[1]
    assert scores[0][0] == 1


def test_columns_may_be_lists_of_objects():
    record = two_wiki(3)
    row = hub_row(record)
    for column in ("context", "supporting_facts", "evidences"):
        names, values = row[column].keys(), row[column].values()
        row[column] = [dict(zip(names, v, strict=True)) for v in zip(*values, strict=True)]
    assert {k: official(row)[k] for k in record if k != "_id"} == {
        k: v for k, v in record.items() if k != "_id"
    }
    steps = musique(3)["paragraphs"]
    row = {**musique(3), "paragraphs": {k: [p[k] for p in steps] for k in steps[0]}}
    assert official(row)["paragraphs"] == steps


def test_musiques_numbered_questions_have_their_kind(tmp_path):
    rows = [{**flashrag_row(musique(i)), "id": f"dev_{i}"} for i in range(5)]
    (question, *_) = data.load("musique", "train", write_lines(tmp_path / "dev.jsonl", rows))
    assert question.task_id.startswith("2hop/dev_")


def test_a_file_without_answers_an_empty_one_and_litter_do_not_spoil_the_others(tmp_path, caplog):
    records = [hotpot(i) for i in range(20)]
    write_array(tmp_path / "hotpot_dev_distractor_v1.json", records)
    unanswered = [{k: v for k, v in r.items() if k != "answer"} for r in records]
    write_array(tmp_path / "hotpot_test_fullwiki_v1.json", unanswered)
    (tmp_path / "empty.json").write_bytes(b"")
    (tmp_path / "._hotpot_dev_distractor_v1.json").write_bytes(b"\0\5\x16\7\0")
    (tmp_path / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    splits = questions("hotpotqa", tmp_path)
    assert sum(len(split) for split in splits.values()) == 20
    assert "hotpot_test_fullwiki_v1.json is left out: file without answers" in caplog.text
    assert "empty.json is left out: empty file" in caplog.text
    notes = data.sample("hotpotqa", "dev", tmp_path).left_out
    assert notes == {"file without answers": 1, "empty file": 1}
    with pytest.raises(SourceError, match="official test files have no answers"):
        data.load("hotpotqa", "dev", tmp_path / "hotpot_test_fullwiki_v1.json")
    with pytest.raises(SourceError, match=r"empty\.json is empty: fetch or make"):
        data.load("hotpotqa", "dev", tmp_path / "empty.json")
    with pytest.raises(SourceError, match=r"without `\._`"):
        data.load("hotpotqa", "dev", tmp_path / "._hotpot_dev_distractor_v1.json")


OTHERS = {
    ("hotpotqa", "musique"): (musique, "is no hotpotqa question but one of MuSiQue"),
    ("musique", "hotpotqa"): (hotpot, "is no musique question but one of HotpotQA or 2Wiki"),
    ("musique", "FlashRAG"): (lambda i: flashrag_row(hotpot(i)), "no musique question but one of"),
    ("hotpotqa", "SQuAD"): (lambda i: {"title": "T", "paragraphs": []}, "but title, paragraphs"),
    ("2wikimultihopqa", "lists"): (lambda i: ["a", "b"], "it has no text 'question'"),
}


@pytest.mark.parametrize(("dataset", "other"), OTHERS)
def test_questions_of_another_data_set_are_refused(tmp_path, dataset, other):
    make, reason = OTHERS[dataset, other]
    path = write_lines(tmp_path / "odd.jsonl", [make(i) for i in range(5)])
    with pytest.raises(SourceError, match=r"record 1 of .*odd\.jsonl") as error:
        data.load(dataset, "test", path)
    assert reason in str(error.value)


def test_questions_of_other_sets_in_one_file_are_left_out(tmp_path):
    rows = [search_r1_row(hotpot(i), "hotpotqa") for i in range(5)]
    rows += [search_r1_row(musique(i), "searchR1_musique") for i in range(3)]
    path = write_lines(tmp_path / "test.jsonl", rows)
    assert sum(map(len, questions("hotpotqa", path).values())) == 5
    env = envs.make(IDS["hotpotqa"], split="test", data=str(path))
    assert env.unwrapped.data_notes() == {"questions of musique": 3}
    rows = [{**r, "data_source": "nq"} for r in rows]
    with pytest.raises(
        SourceError, match="holds 0 questions of hotpotqa, left out: 8 questions of nq"
    ):
        data.load("hotpotqa", "test", write_lines(tmp_path / "nq.jsonl", rows))


def test_columns_that_do_not_fit_each_other_are_named(tmp_path):
    rows = [hub_row(hotpot(i)) for i in range(4)]
    rows[2]["context"]["title"].pop()
    path = write_lines(tmp_path / "bad.jsonl", rows)
    with pytest.raises(SourceError, match=r"record 3 of .*bad\.jsonl is no hotpotqa question"):
        data.load("hotpotqa", "test", path)


def test_a_question_of_endless_supporting_pages_is_refused_at_once(tmp_path):
    rows = [hotpot(i) for i in range(4)]
    rows[1]["supporting_facts"] = [[f"Page {i}", 0] for i in range(100_000)]
    path = write_array(tmp_path / "bad.json", rows)
    with pytest.raises(SourceError, match=r"record 2 of .* 100000 supporting pages"):
        data.load("hotpotqa", "test", path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
def test_encodings_of_questions(tmp_path, encoding):
    records = [{**hotpot(i), "answer": "Orléans"} for i in range(6)]
    path = tmp_path / "q.jsonl"
    lines = "\r\n".join(json.dumps(r, ensure_ascii=False) for r in records)
    path.write_bytes(lines.encode(encoding))
    if encoding == "latin-1":
        with pytest.raises(SourceError, match=r"record 1 of .*q\.jsonl is not UTF-8 \(byte 0xE9"):
            data.load("hotpotqa", "test", path)
    else:
        assert data.load("hotpotqa", "test", path)[0].answers == ("Orléans",)


# Pages --------------------------------------------------------------------------------------------

TEXTS = {
    "Ada Lovelace": ["Ada was a writer.", "She knew Babbage."],
    "Émile Zola": ["Zola was a novelist.", "He lived in Paris."],
    "Simon & Simon": ["It is a series.", "It ran for years."],
}
PAGES = [(title, "\n".join(sentences)) for title, sentences in TEXTS.items()]


def abstract(title, sentences):
    """A line of HotpotQA's abstracts."""
    url = f"https://en.wikipedia.org/wiki?curid={len(title)}"
    texts = [sentences[0], *(f" {s}" for s in sentences[1:])]
    links = [f'<a href="x">{text}</a>' for text in texts]
    return {"id": str(len(title)), "url": url, "title": title, "text": texts,
            "charoffset": [[[0, 3]]], "text_with_links": links}  # fmt: skip


def write_abstracts(folder):
    root = folder / "enwiki-20171001-pages-meta-current-withlinks-abstracts"
    for number, (title, sentences) in enumerate(TEXTS.items()):
        path = root / f"A{'AB'[number // 2]}" / f"wiki_0{number}.bz2"
        path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(abstract(title, sentences)) + "\n"
        path.write_bytes(bz2.compress(line.encode()))
    return root


def write_abstracts_tar(folder):
    root = write_abstracts(folder)
    path = folder / f"{root.name}.tar.bz2"
    with tarfile.open(path, "w:bz2") as archive:
        archive.add(root, root.name)
    return path


def write_one_abstract_file(folder):
    path = folder / "wiki_00.bz2"
    lines = "".join(json.dumps(abstract(t, s)) + "\n" for t, s in TEXTS.items())
    path.write_bytes(bz2.compress(lines.encode()))
    return path


def write_wikimedia(folder):
    rows = [{"id": str(i), "url": f"https://en.wikipedia.org/wiki/{t}", "title": t,
             "text": " ".join(s)} for i, (t, s) in enumerate(TEXTS.items())]  # fmt: skip
    for number in range(3):
        name = f"train-0000{number}-of-00003.parquet"
        write_parquet(folder / "20231101.en" / name, rows[number : number + 1])
    (folder / "README.md").write_text("# Wikipedia")
    return folder


def write_kilt(folder):
    rows = [{"_id": str(i), "wikipedia_id": str(i), "wikipedia_title": t, "categories": "A,B",
             "text": [f"{t}\n", " ".join(s) + "\n", "Section::::Life.\n", "More.\n",
                      "BULLET::::- A list.\n"],
             "anchors": [], "history": {"pageid": i}}
            for i, (t, s) in enumerate(TEXTS.items())]  # fmt: skip
    return write_lines(folder / "kilt_knowledgesource.json", rows)


def write_contents(folder):
    rows = [{"id": str(i), "contents": f'"{t}"\n{" ".join(s)}'}
            for i, (t, s) in enumerate(TEXTS.items())]  # fmt: skip
    path = folder / "wiki-18.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in rows).encode()))
    return path


def write_dpr(folder):
    path = folder / "psgs_w100.tsv.gz"
    with gzip.open(path, "wt", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["id", "text", "title"])
        writer.writerows([i, " ".join(s), t] for i, (t, s) in enumerate(TEXTS.items(), 1))
    return path


CORPORA = {
    "HotpotQA's abstracts of 2017": write_abstracts_tar,
    "… unpacked": write_abstracts,
    "… one file": write_one_abstract_file,
    "Hugging Face, wikimedia/wikipedia": write_wikimedia,
    "KILT": write_kilt,
    "Pyserini, FlashRAG, Search-R1": write_contents,
    "DPR": write_dpr,
    "titles and contents": lambda folder: write_array(
        folder / "c.json", [{"title": t, "content": " ".join(s)} for t, s in TEXTS.items()]
    ),
    "titles and texts": lambda folder: write_lines(
        folder / "c.jsonl", [{"title": t, "text": [s]} for t, s in TEXTS.items()]
    ),
    "one object": lambda folder: write_array(folder / "c.json", TEXTS),
}


@pytest.mark.parametrize("name", CORPORA)
def test_all_layouts_of_wikipedia_give_the_same_pages(tmp_path, name):
    folder = tmp_path / "source"
    folder.mkdir()
    source = CORPORA[name](folder)
    assert sorted((p.title, p.text) for p in pages(source)) == sorted(PAGES)
    corpus = prepare.prepare(source, tmp_path / "out", index=False)
    assert sorted((p.title, p.text) for p in corpus) == sorted(PAGES)
    env = envs.make(IDS["hotpotqa"], corpus=str(source))
    env.reset(seed=0)
    assert env.step("search[emile zola]")[0] == "Zola was a novelist. He lived in Paris."


def test_kilt_as_the_hub_has_it(tmp_path):
    rows = [
        {"wikipedia_title": t, "text": {"paragraph": [t, " ".join(s)]}} for t, s in TEXTS.items()
    ]
    write_parquet(tmp_path / "full.parquet", rows)
    assert [(p.title, p.text) for p in pages(tmp_path / "full.parquet")] == PAGES


def test_hotpots_whole_pages_lose_their_links_and_their_first_title(tmp_path):
    text = [["Ada"], ['Ada was a <a href="writer">writer</a>.', " She knew B."], ["More."]]
    path = write_lines(tmp_path / "w", [{"title": "Ada", "text": text, "charoffset": []}])
    assert next(pages(path)).paragraphs == [["Ada was a writer.", "She knew B."], ["More."]]


@pytest.mark.parametrize(
    "record",
    [
        {"id": "1", "contents": "no title in a line of its own"},
        {"wikipedia_title": "", "text": ["a"]},
        {"wikipedia_title": "A", "text": [5]},
        {"wikipedia_title": "A"},
        {"question": "Who?", "answer": "x"},
        {"title": "A", "content": None},
    ],
)
def test_what_is_no_page_is_named_with_its_fields(tmp_path, record):
    path = write_lines(tmp_path / "p.jsonl", [{"title": "A", "text": "B."}, record])
    with pytest.raises(SourceError, match=r"record 2 of .*p\.jsonl has no title and text"):
        list(pages(path))


def test_a_bad_file_in_an_archive_is_named(tmp_path):
    path = write_abstracts_tar(tmp_path)
    root = tmp_path / "enwiki-20171001-pages-meta-current-withlinks-abstracts"
    bad = root / "AB" / "wiki_02.bz2"
    bad.write_bytes(bad.read_bytes()[:-10])
    with tarfile.open(path, "w:bz2") as archive:
        archive.add(root, root.name)
    for source in (path, root):
        with pytest.raises(SourceError, match=r"AB/wiki_02\.bz2.* is cut off or damaged"):
            list(pages(source))


def test_an_unfinished_corpus_and_a_folder_without_pages_are_named(tmp_path):
    (tmp_path / "partial.json").write_text("{}")
    with pytest.raises(SourceError, match="unfinished corpus"):
        envs.make(IDS["hotpotqa"], corpus=str(tmp_path))
    (tmp_path / "partial.json").rename(tmp_path / "README.md")
    with pytest.raises(SourceError, match="holds no file of data"):
        envs.make(IDS["hotpotqa"], corpus=str(tmp_path)).reset()
    with pytest.raises(SourceError, match="lies inside"):
        prepare.prepare(tmp_path, tmp_path / "out")


def damaged(data, rng):
    """The bytes cut, or with some changed, taken out or put in."""
    if rng.random() < 0.3:
        return data[: rng.randrange(len(data))]
    changed = bytearray(data)
    for _ in range(rng.choice([1, 3, 20])):
        at = rng.randrange(len(changed))
        piece = rng.choice([b"", b"[", b'"', b"null", b"\0", b"\xff", bytes([rng.randrange(256)])])
        changed[at : at + rng.randrange(4)] = piece
    return bytes(changed)


@pytest.mark.parametrize("name", [*QUESTIONS, *CORPORA])
def test_damaged_files_are_read_or_refused(tmp_path, name):
    rng = random.Random(name)
    if name in CORPORA:
        source, read = CORPORA[name](tmp_path), lambda: list(pages(source))
    else:
        records = [[musique(i) for i in numbers] for numbers in (range(8), range(8, 14))]
        source = written(tmp_path / "x", name, "musique", *records)
        read = lambda: data.load("musique", "test", source)  # noqa: E731
    files = [source] if source.is_file() else [f for f in source.rglob("*") if f.is_file()]
    reasons = []
    for _ in range(20):
        file = rng.choice(sorted(files))
        content = file.read_bytes()
        file.write_bytes(damaged(content, rng))
        try:
            read()
        except SourceError as error:
            reasons.append(str(error))
        file.write_bytes(content)
    assert reasons
    assert all(str(source) in reason for reason in reasons)


# Real files ---------------------------------------------------------------------------------------


@pytest.mark.real_data
@pytest.mark.parametrize("dataset", MAKE)
def test_real_questions_in_all_layouts(tmp_path, real, dataset):
    files = {"hotpotqa": "migres_hotpot_200", "2wikimultihopqa": "migres_2wiki_train_500",
             "musique": "migres_musique_200"}  # fmt: skip
    text = (real / dataset / f"{files[dataset]}.json").read_text(encoding="utf-8")
    records = json.loads(text) if text[0] == "[" else [json.loads(x) for x in text.splitlines()]
    drop = ("reranked_ret_res", "qa_pairs", "explanation", "evidences_id")
    records = [{k: v for k, v in r.items() if k not in drop} for r in records[:100]]
    scores = {}
    for name in QUESTIONS:
        source = written(tmp_path / str(len(scores)), name, dataset, records[:70], records[70:])
        env = envs.make(IDS[dataset], split="test", data=str(source), corpus="distractor")
        scores[name] = (oracle(env, env.tasks), len(env.tasks))
    assert set(scores.values()) == {scores["official"]}, scores
    assert scores["official"][0][0] >= 0.95
