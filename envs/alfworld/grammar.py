"""Reads `.twl2`, the part of an ALFWorld game that defines its texts.

It has, for each action, a command template and a feedback rule, and a context-sensitive grammar:
rule → productions, of which the first whose condition holds applies. In a production:

| text                | becomes                                                              |
|---------------------|----------------------------------------------------------------------|
| `#rule#`            | what the rule derives                                                |
| `{o.name}`          | an entity's name (also `x + ' ' + y`, `x or y`; nothing else)        |
| `{x \\| query}`     | x once for every answer of the query, in sorted order                |
| `[{x \\| query}]`   | the same as a list: `a`, `a, and b`, `a, b, and c`; `nothing`        |

Upstream passes the expressions to Python's `eval`; here they are parsed, so that a game file cannot
run code.
"""

from __future__ import annotations

import ast
import json
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from stepagent.envs.alfworld.pddl import GameError

ATTRIBUTES = ("id", "type", "name", "definite", "indefinite")


@dataclass(frozen=True)
class Entity:
    """A thing and its names in the text."""

    id: str
    type: str
    name: str
    definite: str = "the"
    indefinite: str = "a"

    def __str__(self) -> str:
        return self.name


Evaluate = Callable[[dict[str, Entity]], Any]
Query = tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
"""Atoms in order: predicate, then (variable, type) pairs."""


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Ref:
    """`#rule#`"""

    rule: str


@dataclass(frozen=True)
class Each:
    """`{inner | query}`; `listed`: within `[ ]`. `query` None: once."""

    inner: Ref | Evaluate
    query: Query | None = None
    listed: bool = False
    names: frozenset[str] = frozenset()
    """Variables that the expression mentions."""


Symbol = Text | Ref | Each


@dataclass(frozen=True)
class Production:
    condition: Query | None
    symbols: tuple[Symbol, ...]


@dataclass(frozen=True)
class Wording:
    """An action's command and the answer to it."""

    template: tuple[Symbol, ...]
    feedback: tuple[Symbol, ...]


@dataclass(frozen=True)
class Grammar:
    rules: dict[str, tuple[Production, ...]]
    actions: dict[str, Wording]
    """PDDL name of the action → its wording."""


_BLOCK = re.compile(
    r'(?P<grammar>\bgrammar\s*::\s*"""(?P<text>.*?)"""\s*;?)'
    r'|\baction\s+(?P<name>\w+)\s*\{(?P<body>(?:[^"{}]++|"""(?:.*?)"""|"[^"\n]*")*+)\}',
    re.DOTALL,
)
_STRING = r'\b{}\s*::\s*"([^"\n]*)"\s*;?'
_TEMPLATE, _FEEDBACK = (re.compile(_STRING.format(name)) for name in ("template", "feedback"))
_OWN_GRAMMAR = re.compile(r'\bgrammar\s*::\s*"""(.*?)"""', re.DOTALL)
_TAG = re.compile(r"#([\w()/!<>\-\s,.]+)#")
_CONDITIONAL = re.compile(
    r"\{(?:#(?P<tag>[\w()/!<>\-\s,.]+)#|(?P<code>[^|\[\]{}\n<>]++))"
    r"(?:\s*+\|\s*+(?P<given>[^;|{}\n\[\]#]++))?+\}"
)
_LITERAL = re.compile(r'[^;|"<>\[\]#{}]+')
_QUOTED = re.compile(r'"([^;|"<>\[\]#{}]*)"')
_PREDICATE = re.compile(r"\s*([\w/\-']+)\s*\(([^()]*)\)\s*")
_TYPED = re.compile(r"\s*([\w']+)\s*:\s*([\w']+)\s*")


def read(text: str) -> Grammar:
    """Raises GameError for text that is not a grammar or uses features that this reader does not
    know."""
    if not isinstance(text, str) or len(text) > 1_000_000:
        raise GameError("the grammar is not a text of at most 1,000,000 characters")
    items_by_rule: dict[str, Any] = {}
    actions: dict[str, Wording] = {}
    for block in _BLOCK.finditer(text):
        if block["grammar"] is not None:
            items_by_rule |= _rules(block["text"])
            continue
        template, feedback = _TEMPLATE.search(block["body"]), _FEEDBACK.search(block["body"])
        if not template or not feedback:
            raise GameError(f"the grammar's action {block['name']} lacks a template or feedback")
        if own := _OWN_GRAMMAR.search(block["body"]):
            lines = own[1].split("\n")
            items_by_rule |= _rules("\n".join(x for x in lines if not x.lstrip().startswith("#")))
        actions[block["name"].lower()] = Wording(symbols(template[1]), symbols(feedback[1]))
    try:
        rules = {name: tuple(map(_production, items)) for name, items in items_by_rule.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise GameError(f"the grammar has an invalid rule: {error!r}") from None
    if "intro" not in rules or not actions:
        raise GameError("the grammar is cut off or broken: it has no intro or no actions")
    return _checked(Grammar(rules, actions))


def _rules(text: str) -> dict[str, Any]:
    try:
        rules = json.loads(textwrap.dedent(text))
    except (ValueError, RecursionError) as error:
        raise GameError(f"a block of the grammar is not JSON: {error}") from None
    if not isinstance(rules, dict):
        raise GameError("a block of the grammar is not a JSON object")
    return rules


def _production(item: dict[str, Any]) -> Production:
    condition = item.get("condition", "")
    return Production(query(condition) if condition else None, symbols(item["rhs"]))


@lru_cache(maxsize=2048)
def symbols(text: str) -> tuple[Symbol, ...]:
    """A production's right side. Like upstream's parser, it stops at what it cannot read, and
    drops white space at the start (which that parser takes for an empty comment)."""
    parts: list[Symbol] = []
    text = text.lstrip()
    at = 0
    while at < len(text):
        listed = text[at] == "["
        if part := _CONDITIONAL.match(text, at + listed):
            end = part.end()
            if listed and text[end : end + 1] != "]":
                break
            parts.append(_each(part, listed))
            at = end + listed
        elif part := _TAG.match(text, at):
            parts.append(Ref(part[1]))
            at = part.end()
        elif part := _LITERAL.match(text, at):
            parts.append(Text(part[0].replace("\\n", "\n")))
            at = part.end()
        elif part := _QUOTED.match(text, at):
            parts.append(Text(part[1].replace("\\n", "\n")))
            at = part.end()
        else:
            break
    return tuple(parts)


def _each(part: re.Match[str], listed: bool) -> Each:
    given_query = query(part["given"]) if part["given"] else None
    if part["tag"] is not None:
        return Each(Ref(part["tag"]), given_query, listed)
    evaluate, names = expression(part["code"])
    return Each(evaluate, given_query, listed, names)


@lru_cache(maxsize=1024)
def query(text: str) -> Query:
    """Parses `p(a:t) & q(a:t, b:u)`."""
    atoms = []
    for part in text.split("&"):
        match = _PREDICATE.fullmatch(part)
        terms = [_TYPED.fullmatch(t) for t in match[2].split(",")] if match and match[2] else []
        if not match or not all(terms):
            raise GameError(f"the grammar has a condition that this engine cannot read: {text!r}")
        atoms.append((match[1], tuple((t[1], t[2]) for t in terms if t)))
    return tuple(atoms)


@lru_cache(maxsize=1024)
def expression(code: str) -> tuple[Evaluate, frozenset[str]]:
    """The expression as a function of the variables, and the variables it mentions."""
    try:
        tree = ast.parse(code.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise GameError(f"the grammar has an invalid expression: {code!r}") from None
    names = frozenset(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
    return _compiled(tree, code), names


def _compiled(node: ast.expr, code: str) -> Evaluate:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        text = node.value
        return lambda _: text
    if isinstance(node, ast.Name):
        name = node.id
        return lambda variables: variables[name]
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        name, attribute = node.value.id, node.attr
        if attribute in ATTRIBUTES:
            return lambda variables: getattr(variables[name], attribute)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _compiled(node.left, code), _compiled(node.right, code)
        return lambda variables: str(left(variables)) + str(right(variables))
    if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or):
        parts = [_compiled(value, code) for value in node.values]
        return lambda variables: next((v for p in parts if (v := p(variables))), "")
    raise GameError(f"the grammar has an expression that this engine does not know: {code!r}")


def _checked(grammar: Grammar) -> Grammar:
    """Raises GameError if a rule in use is missing, has no default, or leads to itself."""
    done: set[str] = set()

    def visit(rule: str, path: tuple[str, ...]) -> None:
        if rule in path:
            raise GameError(f"the grammar's rule {rule!r} leads to itself")
        if rule in done:
            return
        productions = grammar.rules.get(rule)
        if not productions:
            raise GameError(f"the grammar has no rule {rule!r}")
        if productions[-1].condition is not None:
            raise GameError(f"the grammar's rule {rule!r} has no default production")
        for production in productions:
            visit_all(production.symbols, (*path, rule))
        done.add(rule)

    def visit_all(symbols: tuple[Symbol, ...], path: tuple[str, ...] = ()) -> None:
        for symbol in symbols:
            inner = symbol.inner if isinstance(symbol, Each) else symbol
            if isinstance(inner, Ref):
                visit(inner.rule, path)
            if isinstance(symbol, Each) and symbol.listed:
                for name in ("list_empty", "list_separator", "list_last_separator"):
                    visit(name, path)

    visit("intro", ())
    for wording in grammar.actions.values():
        if all(not isinstance(s, Ref) or s.rule in grammar.rules for s in wording.feedback):
            visit_all(wording.feedback)
    return grammar
