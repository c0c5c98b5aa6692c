import random
import re
import time

import pytest

from stepagent.envs import react
from stepagent.envs.mind2web import answers
from stepagent.envs.mind2web.answers import (
    Answer,
    one_line,
    read_choice,
    read_direct,
    write_choice,
    write_direct,
)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("CLICK [12]", Answer(12, "CLICK")),
        ("click [ 12 ]", Answer(12, "CLICK")),
        ("CLICK 12", Answer(12, "CLICK")),
        ("CLICK [id=12]", Answer(12, "CLICK")),
        ("TYPE [5] [new york]", Answer(5, "TYPE", "new york")),
        ("TYPE [5] new york", Answer(5, "TYPE", "new york")),
        ("TYPE [5] [a [b] c]", Answer(5, "TYPE", "a [b] c")),
        ("TYPE [5] []", Answer(5, "TYPE", "")),
        ("TYPE [5]: [x]", Answer(5, "TYPE", "x")),
        ("SELECT [7] [2 guests].", Answer(7, "SELECT", "2 guests")),
        ("HOVER [3]", None),
        ("CLICK", None),
        ("CLICK [twelve]", None),
        ("CLICK [1234567]", None),
        ("clicking [3]", None),
        ("", None),
    ],
)
def test_direct(text, answer):
    assert read_direct(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("A", Answer(None)),
        ("A.", Answer(None)),
        ("B. CLICK", Answer(0, "CLICK")),
        ("[C] SELECT [2 guests]", Answer(1, "SELECT", "2 guests")),
        ("Answer: D. Action: TYPE Value: new york", Answer(2, "TYPE", "new york")),
        ("F: type x", Answer(4, "TYPE", "x")),
        ("B", None),  # without an operation
        ("G. CLICK", None),
        ("Because", None),
        ("", None),
    ],
)
def test_choice(text, answer):
    assert read_choice(text) == answer


@pytest.mark.parametrize(
    "reply",
    [
        "C.\nAction: SELECT\nValue: 2 guests",
        "Thought: the number.\nAction: C.\nAction: SELECT\nValue: 2 guests",
        "Answer: C.\nAction: SELECT\nValue: 2 guests",
        "C. Action: SELECT Value: 2 guests",
        "Thought: it fits\nAction: C. SELECT [2 guests]",
    ],
)
def test_the_lines_of_mindact_reach_the_environment_through_react(reply):
    action = react.parse(one_line(reply)).action
    assert read_choice(action) == Answer(1, "SELECT", "2 guests")


def test_a_thought_is_not_taken_for_a_choice():
    reply = "Thought: not sure.\nA good one is B.\nAction: B. CLICK"
    assert read_choice(react.parse(one_line(reply)).action) == Answer(0, "CLICK")


@pytest.mark.parametrize("value", ["x", "new york", "a [b] c", '"quoted"', "100%", "日本"])
def test_what_is_written_reads_back(value):
    for op in ("TYPE", "SELECT"):
        assert read_direct(write_direct(3, op, value)) == Answer(3, op, value)
        assert read_choice(write_choice(3, op, value)) == Answer(3, op, value)
        assert react.parse(write_choice(3, op, value)).action == write_choice(3, op, value)
    assert write_direct(3, "CLICK", "") == "CLICK [3]"
    assert read_choice(write_choice(None)) == Answer(None)


def test_three_lines_are_found_in_linear_time():
    start = time.process_time()
    for head in ("", "A", "Answer:", "A. Action:"):
        for unit in (" ", "\n", "\nA ", "Answer: ", "A. Action: "):
            one_line(head + unit * 65_000)
    assert time.process_time() - start < 1


def test_three_lines_are_found_behind_any_blanks():
    # As the pattern was before it read runs of newlines once.
    plain = re.compile(answers._LINES.pattern.replace(r"\n[^\S\n]*+", r"\n\s*").replace("*+", "*"))
    assert plain.pattern != answers._LINES.pattern
    rng = random.Random(0)
    parts = [
        "\n",
        " ",
        "\r",
        "A",
        "B.\n Action: CLICK",
        "Answer:",
        "Action: ",
        "Value: x",
        "so",
        "(",
    ]
    some = 0
    for _ in range(20_000):
        text = "".join(rng.choices(parts, k=rng.randint(0, 12)))
        match, before = answers._LINES.search(text), plain.search(text)
        assert (match is None) == (before is None), repr(text)
        if match and before:
            some += 1
            assert match.groupdict() == before.groupdict()
            assert text[: match.start()].strip() == text[: before.start()].strip()
    assert some > 200
