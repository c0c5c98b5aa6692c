"""Files of any shape, and files that are broken."""

import bz2
import gzip
import json

import pytest

from stepagent.envs import json_stream
from stepagent.envs.wikipedia import sources
from stepagent.envs.wikipedia.sources import SourceError, pages, records

RECORDS = [{"title": f"T{i}", "text": "é" * i + ' "x", [y] {z}'} for i in range(50)]


@pytest.mark.parametrize("chunk", [7, 1 << 20])
@pytest.mark.parametrize("ending", ["", ".gz", ".bz2"])
@pytest.mark.parametrize("shape", ["array", "pretty", "lines"])
def test_all_shapes(tmp_path, monkeypatch, shape, ending, chunk):
    monkeypatch.setattr(json_stream, "_CHUNK", chunk)
    text = {
        "array": json.dumps(RECORDS),
        "pretty": "\ufeff" + json.dumps(RECORDS, indent=4, ensure_ascii=False),
        "lines": "\n".join(json.dumps(r) for r in RECORDS) + "\n\n",
    }[shape]
    path = tmp_path / f"file.json{ending}"
    pack = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress}[ending]
    path.write_bytes(pack(text.encode()))
    assert list(records(path)) == RECORDS


def test_one_object_of_titles(tmp_path):
    path = tmp_path / "corpus.json"
    path.write_text(json.dumps({"A": ["One.", " Two."], "B": ["Three."]}))
    assert [(p.title, p.sentences) for p in pages(path)] == [
        ("A", ["One.", "Two."]),
        ("B", ["Three."]),
    ]


def test_paragraphs_and_tables(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"title": "A", "text": "One. Two.\n\nThree."}) + "\n")
    assert next(pages(path)).paragraphs == [["One.", "Two."], ["Three."]]
    path.write_text(json.dumps({"title": "A", "text": [["One.", "Two."], ["Three."]]}))
    assert next(pages(path)).paragraphs == [["One.", "Two."], ["Three."]]
    table = tmp_path / "psgs.tsv"
    table.write_text('id\ttext\ttitle\n1\t"Aa ""x"" bb. Cc."\tTitle One\n')
    assert [(p.title, p.text) for p in pages(table)] == [("Title One", 'Aa "x" bb.\nCc.')]


@pytest.mark.parametrize("cut", [1, 30, 400, -1])
def test_a_cut_array_is_an_error(tmp_path, cut):
    path = tmp_path / "cut.json"
    path.write_text(json.dumps(RECORDS)[:cut])
    with pytest.raises(SourceError, match=r"cut\.json is cut off or damaged after \d+ whole"):
        list(records(path))


def test_cut_lines_and_archives(tmp_path):
    lines = tmp_path / "cut.jsonl"
    lines.write_text("\n".join(json.dumps(r) for r in RECORDS)[:-5])
    with pytest.raises(SourceError, match="after 49 whole records"):
        list(records(lines))
    for ending, pack in ((".gz", gzip.compress), (".bz2", bz2.compress)):
        path = tmp_path / f"cut.json{ending}"
        path.write_bytes(pack(json.dumps(RECORDS).encode())[:-20])
        with pytest.raises(SourceError, match="cut off or damaged"):
            list(records(path))


@pytest.mark.parametrize(
    "text", ["", "  \n ", "<html>404</html>", "null", "12", "[1, 2]", "[" * 9999]
)
def test_what_is_no_data_is_an_error(tmp_path, text):
    path = tmp_path / "odd.json"
    path.write_text(text)
    with pytest.raises(SourceError, match=r"odd\.json"):
        list(records(path))


@pytest.mark.parametrize(
    "record", [{"title": "A"}, {"title": "", "text": "x"}, {"title": "A", "text": 5}, ["A"], "A"]
)
def test_pages_without_title_or_text_are_named(tmp_path, record):
    path = tmp_path / "p.json"
    path.write_text(json.dumps([{"title": "A", "text": "x"}, record]))
    with pytest.raises(SourceError, match=r"record 2 of .*p\.json"):
        list(pages(path))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SourceError, match=r"no file at .*nowhere"):
        list(records(tmp_path / "nowhere.json"))
    with pytest.raises(SourceError, match=r"no file at .*nowhere"):
        sources.file_checksum(tmp_path / "nowhere.json")
