"""Files of any shape, and files that are broken."""

import bz2
import gzip
import json
import tracemalloc

import pytest

from stepagent.envs import json_stream
from stepagent.envs.wikipedia import prepare, sources
from stepagent.envs.wikipedia.sources import SourceError, pages, records
from tests.envs.wikipedia.records import write_lines

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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"title": "A", "text": "x"}, ' + "[" * 100_000, "record 2 of .*nested too deeply"),
        (
            '{"title": "A", "text": "x"}\n{"n": ' + "9" * 5000 + "}",
            "record 2 of .*too many digits",
        ),
        ("title,text\nA,B\n", "is not JSON .* JSON lines, a JSON object, a table"),
        ("{'title': 'A'}", "is not JSON"),
        ("<!doctype html><title>Quota exceeded</title>", "is a web page, not the data"),
        ("version https://git-lfs.github.com/spec/v1", "git lfs pull fetches it"),
        ("id\ttext\ttitle\n1\tx\tA\n2\t" + "y" * 200_000 + "\tB", "damaged after 1 whole rows"),
    ],
)
def test_what_cannot_be_read_says_where_and_what_to_do(tmp_path, text, said):
    path = tmp_path / "odd.json"
    path.write_text(text)
    with pytest.raises(SourceError, match=said):
        list(pages(path))


@pytest.mark.parametrize("name", ["p.tsv", "p.jsonl"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8", "latin-1"])
def test_encodings_and_line_ends_of_pages(tmp_path, name, encoding):
    line = {
        "p.tsv": "id\ttext\ttitle\r\n1\tIl lit.\tÉmile\r\n",
        "p.jsonl": '{"title": "Émile", "text": "Il lit."}\r\n',
    }[name]
    path = tmp_path / name
    path.write_bytes(line.encode(encoding))
    if encoding == "latin-1":
        with pytest.raises(SourceError, match=r"record 1 of .* is not UTF-8 \(byte 0xC9\).*iconv"):
            list(pages(path))
    else:
        assert [(p.title, p.text) for p in pages(path)] == [("Émile", "Il lit.")]


def large(path, shape, count=8000):
    """A file of about 9 MB."""
    rows = ((f"Title {i}", f"{i} " + "x" * 1000) for i in range(count))
    with path.open("w") as file:
        if shape == "table":
            file.write("id\ttext\ttitle\n")
            file.writelines(f"1\t{text}\t{title}\n" for title, text in rows)
            return
        if shape == "object":
            items = (f"{json.dumps(title)}: {json.dumps([text])}" for title, text in rows)
        else:
            items = (json.dumps({"title": title, "text": text}) for title, text in rows)
        opening, between, closing = {"lines": ("", "\n", ""), "list": ("[", ",", "]"),
                                     "object": ("{", ",", "}")}[shape]  # fmt: skip
        file.write(opening)
        for number, item in enumerate(items):
            file.write((between if number else "") + item)
        file.write(closing)


@pytest.mark.parametrize("shape", ["lines", "list", "object", "table"])
def test_large_files_are_read_in_flat_memory(tmp_path, monkeypatch, shape):
    monkeypatch.setattr(json_stream, "_CHUNK", 1 << 16)
    monkeypatch.setattr(sources, "LARGE_RECORD", 1 << 18)
    path = tmp_path / "large"
    large(path, shape)
    assert path.stat().st_size > 8e6
    tracemalloc.start()
    assert sum(1 for _ in pages(path)) == 8000
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_a_folder_with_an_empty_file_and_notes_beside_the_pages(tmp_path, caplog):
    folder = tmp_path / "pages"
    folder.mkdir()
    write_lines(folder / "a.jsonl", RECORDS[:5])
    write_lines(folder / "b.jsonl", RECORDS[5:9])
    (folder / "empty.jsonl").touch()
    (folder / "none.jsonl.gz").write_bytes(gzip.compress(b""))
    (folder / "._a.jsonl").write_bytes(b"\0\5\x16\7")
    (folder / "README.md").write_text("# Pages")
    assert [p.title for p in pages(folder)] == [r["title"] for r in RECORDS[:9]]
    assert "empty.jsonl is empty and left out" in caplog.text
    assert "none.jsonl.gz is empty and left out" in caplog.text
    assert len(prepare.prepare(folder, tmp_path / "out", index=False)) == 9
    (folder / "c.bin").write_bytes(b"a\0")
    with pytest.raises(SourceError, match=r"c\.bin is not text"):
        list(pages(folder))
