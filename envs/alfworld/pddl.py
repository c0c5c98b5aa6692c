"""Reads PDDL domains and problems: the part of the language that ALFWorld's games use.

Typed parameters and objects; conditions of and / or / not / exists / =; effects with `when`. A
condition is converted to disjunctive form once, when its domain is read (`Clause`), so that playing
a game means matching a few atoms against facts. As in Fast Downward, with which upstream's engine
reads games, names are lower-cased, costs are ignored, and everything has the type `object`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from stepagent.errors import UsageError

Fact = tuple[str, ...]
"""A ground atom: predicate, then its arguments."""
MAX_TEXT = 4_000_000
"""Characters that a domain or problem may have (the largest game known has 120,000)."""
MAX_CLAUSES = 64

_COMMENT = re.compile(r";[^\n]*")
_TOKEN = re.compile(r"[()]|[^\s()]+")
_SECTION = re.compile(r"\(\s*:([a-z-]+)")
_ATOM = re.compile(r"\(([^()]+)\)")
_COST = re.compile(r"\(\s*=\s*\([^()]*\)\s*[-\d.]+\s*\)")


class GameError(UsageError):
    """A game that cannot be read or played; the message says what is wrong with it."""


@dataclass(frozen=True)
class Literal:
    """`predicate(terms)` or its negation; terms that start with `?` are variables."""

    predicate: str
    terms: tuple[str, ...]
    positive: bool = True


@dataclass(frozen=True)
class Clause:
    """A conjunction: atoms that hold, atoms that do not, and pairs of terms that differ."""

    atoms: tuple[Literal, ...] = ()
    absent: tuple[Literal, ...] = ()
    differ: tuple[tuple[str, str], ...] = ()
    types: tuple[tuple[str, str], ...] = ()
    """Variables that `exists` introduced, with their types."""

    def __and__(self, other: Clause) -> Clause:
        return Clause(
            self.atoms + other.atoms,
            self.absent + other.absent,
            self.differ + other.differ,
            self.types + other.types,
        )


@dataclass(frozen=True)
class Effect:
    """A literal that becomes true if one of the clauses holds (`()`: always)."""

    literal: Literal
    when: tuple[Clause, ...] = ()


@dataclass(frozen=True)
class Action:
    name: str
    parameters: tuple[tuple[str, str], ...]
    """(variable, type) pairs."""
    clauses: tuple[Clause, ...]
    """The precondition: one of these holds."""
    effects: tuple[Effect, ...]


@dataclass(frozen=True)
class Domain:
    actions: tuple[Action, ...]
    parents: dict[str, str]
    """Type → the type it is a kind of."""
    fluents: frozenset[str]
    """Predicates that some action changes."""


@dataclass(frozen=True)
class Problem:
    types: dict[str, str]
    """Object → type."""
    init: tuple[Fact, ...]
    goal: tuple[Clause, ...]
    """Each conjunct of the goal that can be checked separately, in disjunctive form."""


@lru_cache(maxsize=16)
def read_domain(text: str) -> Domain:
    """Raises GameError for text that is not a domain or uses features that this reader does not
    know."""
    tree = _tree(_clean(text, "domain"), "domain")
    parents: dict[str, str] = {}
    actions: list[Action] = []
    for part in tree[1:]:
        if not isinstance(part, list) or not part:
            continue
        if part[0] == ":types":
            parents = dict(_typed(part[1:]))
        elif part[0] == ":action":
            actions.append(_action(part))
        elif part[0] == ":derived":
            raise GameError("derived predicates are not supported")
    if not actions:
        raise GameError("the PDDL domain has no action")
    changed = {effect.literal.predicate for action in actions for effect in action.effects}
    return Domain(tuple(actions), parents, frozenset(changed))


def read_problem(text: str) -> Problem:
    """Raises GameError if objects, init or goal are missing or make no sense."""
    text = _clean(text, "problem")
    marks = list(_SECTION.finditer(text))
    ends = [*(mark.start() for mark in marks[1:]), len(text)][: len(marks)]
    sections = {m.group(1): (m.start(), m.end(), end) for m, end in zip(marks, ends, strict=True)}
    for name in ("objects", "init", "goal"):
        if name not in sections:
            raise GameError(f"the PDDL problem has no (:{name} …)")
    _, start, end = sections["objects"]
    objects = dict(_typed(text[start:end].rpartition(")")[0].split()))
    _, start, end = sections["init"]
    facts = dict.fromkeys(
        fact
        for fact in (tuple(a.split()) for a in _ATOM.findall(_COST.sub("", text[start:end])))
        if fact and fact[0] not in ("=", "not")
    )
    for fact in facts:
        for name in fact[1:]:
            if name not in objects:
                raise GameError(f"the fact ({' '.join(fact)}) names {name}, which is not an object")
    start, _, end = sections["goal"]
    goal = _tree(text[start:end], "goal", rest=True)
    return Problem(objects, tuple(facts), _condition(goal[1]) if len(goal) > 1 else ())


def _clean(text: str, what: str) -> str:
    if not isinstance(text, str) or len(text) > MAX_TEXT:
        raise GameError(f"the PDDL {what} is not a text of at most {MAX_TEXT} characters")
    text = text.lower()
    if ";" in text:
        text = _COMMENT.sub("", text)
    if text.count("(") != text.count(")") or "(" not in text:
        raise GameError(f"the PDDL {what} is cut off or broken: its brackets do not match")
    return text


def _tree(text: str, what: str, rest: bool = False) -> list[Any]:
    """The first bracket as nested lists; with `rest`, text after it is ignored."""
    stack: list[list[Any]] = [[]]
    for token in _TOKEN.findall(text):
        if token == "(":
            if len(stack) > 100:
                raise GameError(f"the PDDL {what} is nested too deeply")
            stack.append([])
        elif token == ")":
            if len(stack) == 1:
                break
            done = stack.pop()
            stack[-1].append(done)
            if rest and len(stack) == 1:
                break
        else:
            stack[-1].append(token)
    if len(stack) != 1 or not stack[0] or not isinstance(stack[0][0], list):
        raise GameError(f"the PDDL {what} is broken")
    return stack[0][0]


def _typed(tokens: Sequence[Any]) -> list[tuple[str, str]]:
    """`a b - t c` → (a, t), (b, t), (c, object).

    A comma belongs to the name before it, as in upstream's reader. ALFWorld's domain says
    `(exists (?l - location, ?r - receptacle) …)` in `examineObject`; there is no type `location,`,
    hence only what is held can be examined, nothing that is merely lying around.
    """
    pairs: list[tuple[str, str]] = []
    names: list[str] = []
    tokens = [t for t in tokens if isinstance(t, str)]
    i = 0
    while i < len(tokens):
        if tokens[i] == "-":
            kind = tokens[i + 1] if i + 1 < len(tokens) else "object"
            pairs += [(name, kind) for name in names]
            names, i = [], i + 2
        else:
            names.append(tokens[i])
            i += 1
    return pairs + [(name, "object") for name in names]


def _action(part: list[Any]) -> Action:
    fields = {part[i]: part[i + 1] for i in range(2, len(part) - 1, 2) if isinstance(part[i], str)}
    parameters = tuple(_typed(fields.get(":parameters") or []))
    effects = tuple(_effects(fields.get(":effect") or [], ()))
    return Action(part[1], parameters, _condition(fields.get(":precondition") or []), effects)


def _effects(tree: list[Any], when: tuple[Clause, ...]) -> Iterable[Effect]:
    if not tree or tree[0] == "increase":
        return
    if tree[0] == "and":
        for part in tree[1:]:
            yield from _effects(part, when)
    elif tree[0] == "when":
        if when:
            raise GameError("a `when` within a `when` is not supported")
        yield from _effects(tree[2], _condition(tree[1]))
    elif tree[0] in ("forall", "exists", "or"):
        raise GameError(f"`{tree[0]}` in an effect is not supported")
    else:
        yield Effect(_literal(tree), when)


def _literal(tree: Any) -> Literal:
    positive = tree[0] != "not"
    atom = tree if positive else tree[1] if len(tree) == 2 else None
    if not atom or any(not isinstance(term, str) for term in atom):
        raise GameError(f"{tree} is not a literal that this engine supports")
    return Literal(atom[0], tuple(atom[1:]), positive)


def _condition(tree: list[Any], scope: str = "") -> tuple[Clause, ...]:
    """The condition in disjunctive form. `scope` distinguishes variables of different `exists`."""
    if not tree:
        return (Clause(),)
    head, parts = tree[0], tree[1:]
    if head == "and":
        clauses: tuple[Clause, ...] = (Clause(),)
        for i, part in enumerate(parts):
            right = _condition(part, f"{scope}.{i}")
            clauses = tuple(a & b for a in clauses for b in right)
            _not_too_many(clauses)
        return clauses
    if head == "or":
        clauses = tuple(c for i, p in enumerate(parts) for c in _condition(p, f"{scope}.{i}"))
        _not_too_many(clauses)
        return clauses
    if head == "exists" and len(parts) == 2:
        typed = _typed(parts[0])
        names = {name: f"{name}{scope}e" for name, _ in typed}
        brought = Clause(types=tuple((names[name], kind) for name, kind in typed))
        return tuple(brought & c for c in _condition(_rename(parts[1], names), scope + "e"))
    if head in ("forall", "imply", "exists"):
        raise GameError(f"`{head}` in a condition is not supported")
    literal = _literal(tree)
    if literal.predicate == "=":
        if literal.positive or len(literal.terms) != 2:
            raise GameError("`=` is only supported as (not (= a b))")
        return (Clause(differ=((literal.terms[0], literal.terms[1]),)),)
    return (Clause(atoms=(literal,)) if literal.positive else Clause(absent=(literal,)),)


def _not_too_many(clauses: tuple[Clause, ...]) -> None:
    if len(clauses) > MAX_CLAUSES:
        raise GameError(f"a condition has more than {MAX_CLAUSES} alternatives")


def _rename(tree: Any, names: dict[str, str]) -> Any:
    if isinstance(tree, list):
        return [_rename(part, names) for part in tree]
    return names.get(tree, tree)
