"""JSON read item by item gives what `json.loads` gives, wherever the chunks end."""

import io
import json

import pytest

from stepagent.envs import json_stream
from stepagent.envs.json_stream import JSONError, JSONStream, NotUTF8


def stream(text):
    return JSONStream(io.BytesIO(text if isinstance(text, bytes) else text.encode()))


VALUES = [1, -2.5e3, 10**400, "a,]}é\ud800", {"b": [None, True, {"": []}]}, [[]], 12, {}, "", 7]


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 3])
def test_items_are_those_of_json(monkeypatch, chunk, indent):
    monkeypatch.setattr(json_stream, "_CHUNK", chunk)
    text = json.dumps(VALUES, indent=indent)
    assert list(stream(text)) == VALUES
    assert list(stream(f"\n {text} \n{text}")) == 2 * VALUES
    assert list(stream("\n".join(map(json.dumps, VALUES)) + "\n")) == VALUES
    pairs = {f"é{number}": value for number, value in enumerate(VALUES)}
    assert dict(stream(json.dumps(pairs, indent=indent)).members()) == pairs
    assert list(stream("[]")) == list(stream("{}").members()) == list(stream(" ")) == []


def test_marks_and_broken_text_are_read_and_so_is_what_python_writes():
    assert list(stream(b'\xef\xbb\xbf["\xff"]')) == ["\ufffd"]
    assert str(list(stream("[NaN, Infinity]"))) == "[nan, inf]"


@pytest.mark.parametrize(
    ("text", "count", "reason"),
    [
        ('[{"a": 1}, {"b": ', 1, "cut at its end"),
        ('[{"a": 1}', 1, "cut at its end"),
        ('[1, "abc', 1, "cut at its end"),
        ("[1 2]", 1, ", or ] expected, not '2'"),
        ("[1, 2] x", 2, "Expecting value"),
        ("<html>" + " " * 100, 0, "Expecting value"),
        ("[" * 100_000, 0, "nested too deeply"),
        ("[1, " + "9" * 5000 + "]", 1, "an integer of too many digits"),
    ],
)
def test_what_is_wrong_is_said_with_the_number_of_good_items(text, count, reason):
    with pytest.raises(JSONError) as raised:
        list(stream(text))
    assert raised.value.count == count
    assert reason in raised.value.reason


def test_pairs_need_colons():
    with pytest.raises(JSONError, match="after 1 items"):
        list(stream('{"a": 1, "b" 2}').members())


def test_bytes_that_are_not_utf_8_are_an_error_if_asked_for():
    text = b'["a", "\\udc80", "caf\xe9", "b"]'
    items = iter(JSONStream(io.BytesIO(text), strict=True))
    assert [next(items), next(items)] == ["a", "\udc80"]
    with pytest.raises(NotUTF8, match="after 2 items") as error:
        next(items)
    assert error.value.reason == "byte 0xE9"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-8"])
def test_encodings_and_line_ends(encoding):
    text = (
        "\r\n".join(json.dumps(v, ensure_ascii=False) for v in ({"a": "é"}, {"b": "漢"})) + "\r\n"
    )
    file = io.BufferedReader(io.BytesIO(text.encode(encoding)))
    assert list(JSONStream(file, strict=True)) == [{"a": "é"}, {"b": "漢"}]


def test_the_length_of_the_first_item_is_known_before_it_is_read(monkeypatch):
    monkeypatch.setattr(json_stream, "_CHUNK", 8)
    text = json.dumps({"a": "x" * 100})
    for after in ("", text, "\n{"):
        source = stream(text + after)
        assert source.starts_with_more_than(50)
        assert not source.starts_with_more_than(len(text))
        assert next(iter(source)) == json.loads(text)
    assert stream(text[:80]).starts_with_more_than(50)
    assert not stream(text[:40]).starts_with_more_than(50)
