"""No regular expression takes more than linear time, whatever text it is applied to.

The patterns are found in the sources. From each, texts are derived that are bad for one of its
kind: what a repeat repeats, again and again, after what stands before it, with something after it
that does not fit. Python's engine backtracks: without care, a search tries each place of such a
text, and from each goes to its end.
"""

from __future__ import annotations

import ast
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("stepagent", "envs", "agents", "eval", "training", "integrations")
OWN = (
    "eval/benches/",
    *(f"envs/scienceworld/{name}" for name in ("plans/", "classfile.py", "playthrough.py")),
    "envs/scienceworld/thoughts.py",
)
"""Where patterns are applied only to what we, or the simulator, have written."""
GUARDED = {"[(].*?[)]": "each bracket that opens is closed, as the text ends with the last one"}
"""Patterns that are quadratic on texts that the code before them keeps away."""
ANCHORED = {"match", "fullmatch"}
SCANNING = {"search", "sub", "subn", "findall", "finditer", "split"}
SHORT = (20, 22, 24, 100, 400)
"""Characters of texts that show exponential and cubic time before it becomes minutes."""
MEDIUM, LONG = 1000, 4000
QUICK = 0.002
"""Seconds for a long text that only linear patterns stay below: quadratic ones take 0.01 s."""
ENDINGS = ("", "\0", "!", "\n")


@dataclass
class Found:
    """A pattern of the sources: where, and how it is used."""

    place: str
    pattern: str | bytes
    flags: int = 0
    methods: set[str] = field(default_factory=lambda: set(SCANNING))


# The sources ------------------------------------------------------------------------------------


def _text(node: ast.AST, constants: dict[str, str]) -> str | bytes | None:
    """The value of an expression; what is put into it at run time is a word; None: unknown."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
        return node.value
    if isinstance(node, ast.Name):
        return constants.get(node.id)
    if isinstance(node, ast.JoinedStr):
        parts = (_text(part, constants) for part in node.values)
        return "".join(part if isinstance(part, str) else "word" for part in parts)
    if isinstance(node, ast.FormattedValue):
        return _text(node.value, constants) or "word"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _text(node.left, constants), _text(node.right, constants)
        if left is not None:
            return left + (right or type(left)())  # type: ignore[operator]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr == "format" and (form := _text(node.func.value, constants)):
            return str(form).format(*(["word"] * len(node.args)))
        if node.func.attr == "join":
            return "word"
    return None


def _flags(call: ast.Call, position: int) -> int:
    given = [*call.args[position:], *(k.value for k in call.keywords if k.arg == "flags")]
    names = {
        node.attr for flag in given for node in ast.walk(flag) if isinstance(node, ast.Attribute)
    }
    return sum({getattr(re, name) for name in names if name.isupper()})


def _constants(tree: ast.AST) -> dict[str, str]:
    constants: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            text = _text(node.value, constants)
            if isinstance(text, str):
                constants[node.targets[0].id] = text
    return constants


def _called(node: ast.AST) -> str:
    """The name of the function of `re` that is called; "" for anything else."""
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name(id="re"), attr=name)):
            return name if name in ANCHORED | SCANNING | {"compile"} else ""
    return ""


def _in_source(source: str, place: str, imported: dict[str, str]) -> tuple[list[Found], list[str]]:
    """The patterns of a source, and the places of those that only running it can tell."""
    tree = ast.parse(source)
    constants = {**imported, **_constants(tree)}
    patterns: list[Found] = []
    unknown: list[str] = []
    used: dict[str, set[str]] = {}
    name_of: dict[int, str] = {}
    for node in ast.walk(tree):  # breadth first: an assignment comes before what it holds
        match node:
            case ast.Attribute(value=ast.Name(id=name), attr=method):
                used.setdefault(name, set()).add(method)
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                name_of |= {id(inner): name for inner in ast.walk(value)}
    for node in ast.walk(tree):
        if not (called := _called(node)):
            continue
        pattern = _text(node.args[0], constants)
        where = f"{place}:{node.lineno}"
        if pattern is None:
            unknown.append(where)
            continue
        position = 1 if called == "compile" else 4 if called.startswith("sub") else 2
        methods = used.get(name_of.get(id(node), ""), set()) if called == "compile" else {called}
        methods = methods & (ANCHORED | SCANNING) or SCANNING  # used elsewhere
        patterns.append(Found(where, pattern, _flags(node, position), methods))
    return patterns, unknown


@lru_cache(maxsize=1)
def of_the_project() -> tuple[list[Found], list[str]]:
    """All patterns, and the places of those that only running the code can tell."""
    sources = {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        if not path.relative_to(ROOT).as_posix().startswith(OWN)
    }
    shared: dict[str, str] = {}
    for source in sources.values():
        if "re.compile" in source or "OPEN" in source:
            names = _constants(ast.parse(source)).items()
            shared |= {name: text for name, text in names if name.isupper()}
    parts = [_in_source(s, place, shared) for place, s in sources.items() if "re." in s]
    return [one for ones, _ in parts for one in ones], [w for _, places in parts for w in places]


# Hostile texts ----------------------------------------------------------------------------------

_SAMPLES = "a1 A_-.\n\t,:;=()[]{}<>\"'/\\|*#&$%@!?é漢\0"


def _character(items: list) -> str:
    """A character that a class of the parsed pattern allows."""

    def allows(character: str) -> bool:
        number, negated, inside = ord(character), False, False
        for op, value in items:
            name = str(op)
            if name == "NEGATE":
                negated = True
            elif name == "LITERAL":
                inside |= number == value
            elif name == "RANGE":
                inside |= value[0] <= number <= value[1]
            elif name == "CATEGORY":
                kind = str(value).removeprefix("CATEGORY_")
                is_in = {
                    "DIGIT": character.isdigit(),
                    "SPACE": character.isspace(),
                    "WORD": character.isalnum() or character == "_",
                }[kind.removeprefix("NOT_")]
                inside |= is_in != kind.startswith("NOT_")
        return inside != negated

    literals = [chr(v) for op, v in items if str(op) == "LITERAL"]
    literals += [chr(v[0]) for op, v in items if str(op) == "RANGE"]
    return next((c for c in [*literals, *_SAMPLES] if allows(c)), "a")


def _sample(parsed: object, branch: int = 0) -> str:
    """A text that the parsed pattern matches, as far as one can tell without running it."""
    text = ""
    for op, value in parsed:  # type: ignore[attr-defined]
        name = str(op)
        if name == "LITERAL":
            text += chr(value)
        elif name == "NOT_LITERAL":
            text += "a" if value != ord("a") else "b"
        elif name == "ANY":
            text += "a"
        elif name == "IN":
            text += _character(value)
        elif name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            text += _sample(value[2], branch) * max(value[0], 1)
        elif name == "SUBPATTERN":
            text += _sample(value[3], branch)
        elif name == "ATOMIC_GROUP":
            text += _sample(value, branch)
        elif name == "BRANCH":
            text += _sample(value[1][branch % len(value[1])], branch)
    return text


def _repeats(parsed: object, before: str = "") -> Iterator[tuple[str, str]]:
    """(what stands before it, what it repeats) of every repeat without a small limit."""
    for op, value in parsed:  # type: ignore[attr-defined]
        name = str(op)
        if name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            _, most, inner = value
            if int(most) > 50:
                for branch in range(4):
                    yield before, _sample(inner, branch)
            yield from _repeats(inner, before)
        elif name == "SUBPATTERN":
            yield from _repeats(value[3], before)
        elif name == "ATOMIC_GROUP":
            yield from _repeats(value, before)
        elif name in ("ASSERT", "ASSERT_NOT"):
            yield from _repeats(value[1], before)
        elif name == "BRANCH":
            for inner in value[1]:
                yield from _repeats(inner, before)
        before += _sample([(op, value)])


def _units(pattern: str, flags: int) -> set[tuple[str, str]]:
    """(start, unit repeated) of the texts that may be bad for a pattern."""
    parsed = re._parser.parse(pattern, flags)  # type: ignore[attr-defined]
    units = {("", _sample(parsed, branch)) for branch in range(4)}
    for before, body in _repeats(parsed):
        units |= {(before, body), ("", before + body), ("", before), ("", before + body * 2)}
        units |= {("", body), (before, body + " "), ("", before[:1]), ("", before[-1:])}
    return {(start, unit) for start, unit in units if unit}


def _applied(compiled: re.Pattern, methods: set[str]) -> Callable[[str | bytes], None]:
    def scan(text: str | bytes) -> None:
        for _ in compiled.finditer(text):
            pass

    def anchored(text: str | bytes) -> None:
        compiled.match(text)
        compiled.fullmatch(text)

    return scan if methods & SCANNING else anchored


def hostile_text(one: Found) -> str:
    """Describes a text for which the pattern takes more than linear time; "" where none is."""
    is_bytes = isinstance(one.pattern, bytes)
    pattern = one.pattern.decode("latin-1") if isinstance(one.pattern, bytes) else one.pattern
    apply = _applied(re.compile(one.pattern, one.flags), one.methods)

    def seconds(start: str, unit: str, ending: str, size: int) -> float:
        text = start + unit * (size // len(unit)) + ending
        content = text.encode("latin-1", "replace") if is_bytes else text
        began = time.thread_time()
        apply(content)
        return time.thread_time() - began

    for start, unit in sorted(_units(pattern, one.flags)):
        for ending in ENDINGS:
            described = f"{start!r}, many {unit!r}, {ending!r}"
            for size in SHORT:
                if seconds(start, unit, ending, size) > 0.03:
                    return f"{described}: {size} characters take more than 0.03 s"
            if seconds(start, unit, ending, LONG) > QUICK:
                long, medium = (
                    min(seconds(start, unit, ending, size) for _ in range(3))
                    for size in (LONG, MEDIUM)
                )
                if long > QUICK and long > 8 * medium:  # four times: linear; sixteen: quadratic
                    return f"{described}: four times the length takes {long / medium:.0f} times"
    return ""


# Tests ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "method"),
    [
        (r"\s+$", "search"),
        (r"(\w+)\(", "search"),
        (r"<[^>]*>", "sub"),
        (r"\[\[.*?\]\]", "findall"),
        (r"(?<!\d)(\d[\d,]*) tokens", "search"),
        (r"\s*(.*?)\s*->", "match"),
        (r"(a+)+b", "match"),
        (r"(?:a|a)*b", "fullmatch"),
        (r"\w*\w*\w*!x", "match"),
        (rb"\s*y", "sub"),
        ("\\[([^\\]]*)\\]\\s*(.*?)\\s*->", "search"),
    ],
)
def test_slow_patterns_are_recognised(pattern, method):
    assert hostile_text(Found("here", pattern, re.DOTALL, {method}))


@pytest.mark.parametrize(
    ("pattern", "method"),
    [
        (r"(?<!\s)\s++$", "search"),
        (r"(?<!\w)(\w++)\(", "search"),
        (r"<[^<>]*>", "sub"),
        (r"\[\[[^\[\]]*\]\]", "findall"),
        (r"(?<!\d)(?<!\d,)(\d++(?:,\d++)*+) tokens", "search"),
        (r"\s+$", "match"),
        (r"(a++)+b", "match"),
        (r"<!--.*?(-->|\Z)", "sub"),
        (r"a.{0,40}b", "search"),
    ],
)
def test_linear_patterns_pass(pattern, method):
    assert hostile_text(Found("here", pattern, re.DOTALL, {method})) == ""


def test_patterns_are_found_in_sources_with_their_use():
    source = "\n".join([
        "import re", "_OPEN = '<a>'", "_A = re.compile(rf'{_OPEN}(.*?)x' r'y', re.DOTALL | re.I)",
        "def f(text, kind):", "    _A.search(text)",
        "    re.sub(rf'{re.escape(kind)}\\d', '', text)",
        "    return re.match(kind, text)",
    ])  # fmt: skip
    (first, second), unknown = _in_source(source, "a.py", {})
    assert (first.pattern, first.flags) == ("<a>(.*?)xy", re.DOTALL | re.IGNORECASE)
    assert first.methods == {"search"}
    assert (second.pattern, second.methods) == ("word\\d", {"sub"})
    assert unknown == ["a.py:7"]


def test_every_pattern_takes_linear_time():
    patterns, unknown = of_the_project()
    assert len(patterns) > 150
    assert {place.partition(":")[0] for place in unknown} == {"agents/chat_template.py"}, (
        "write the pattern where it is compiled; this one is an alternation of literals"
    )
    checked = (one for one in patterns if one.pattern not in GUARDED)
    slow = {one.place: text for one in checked if (text := hostile_text(one))}
    assert not slow, "\n".join(f"{place}: {text}" for place, text in slow.items())
