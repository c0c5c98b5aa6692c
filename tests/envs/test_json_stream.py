"""JSON read item by item gives what `json.loads` gives, wherever the chunks end."""

import io
import json

import pytest

from stepagent.envs import json_stream
from stepagent.envs.json_stream import JSONError, JSONStream


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
