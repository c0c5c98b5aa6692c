"""Derives a game's text from its grammar and its facts, as TextWorld's PDDL engine does.

It is deterministic: the first production whose condition holds is taken, and answers of a query
come in the order of the facts' sorted arguments. A query's new variables stand for things that no
other variable stands for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from stepagent.envs.alfworld.fact_store import FactStore
from stepagent.envs.alfworld.grammar import Each, Entity, Grammar, Query, Ref, Symbol, Text

Scope = dict[tuple[str, str], str]
"""(variable, type) → object."""


class Writer:
    """Text of one game."""

    def __init__(self, grammar: Grammar, entities: Mapping[str, Entity]):
        self.rules, self.entities = grammar.rules, entities

    def derive(self, symbols: tuple[Symbol, ...], facts: FactStore, scope: Scope) -> str:
        """Text of the symbols, with the scope's variables bound."""
        variables = {name: self.entities[value] for (name, _), value in scope.items()}
        return self._derive(symbols, facts, scope, variables)

    def _derive(
        self,
        symbols: tuple[Symbol, ...],
        facts: FactStore,
        scope: Scope,
        variables: dict[str, Entity],
    ) -> str:
        return "".join(self._symbol(symbol, facts, scope, variables) for symbol in symbols)

    def _symbol(
        self, symbol: Symbol, facts: FactStore, scope: Scope, variables: dict[str, Entity]
    ) -> str:
        if isinstance(symbol, Text):
            return symbol.text
        if isinstance(symbol, Ref):
            return self._rule(symbol.rule, facts, scope, variables)
        if symbol.query is None:
            parts = [self._inner(symbol, facts, scope, variables)]
        else:
            parts = []
            for answer in answers(facts, symbol.query, scope):
                inner = {name: self.entities[value] for (name, _), value in answer.items()}
                parts.append(self._inner(symbol, facts, answer, {**variables, **inner}))
        if not symbol.listed:
            return "".join(parts)
        if not parts:
            return self._rule("list_empty", facts, scope, variables)
        if len(parts) == 1:
            return parts[0]
        between = self._rule("list_separator", facts, scope, variables)
        last = self._rule("list_last_separator", facts, scope, variables)
        return between.join(parts[:-1]) + last + parts[-1]

    def _inner(
        self, symbol: Each, facts: FactStore, scope: Scope, variables: dict[str, Entity]
    ) -> str:
        if isinstance(symbol.inner, Ref):
            return self._rule(symbol.inner.rule, facts, scope, variables)
        return str(symbol.inner(variables))

    def _rule(self, rule: str, facts: FactStore, scope: Scope, variables: dict[str, Entity]) -> str:
        for production in self.rules[rule]:
            if production.condition is None or any(answers(facts, production.condition, scope)):
                return self._derive(production.symbols, facts, scope, variables)
        raise AssertionError(f"rule {rule} has no default")  # `grammar.read` ensures this


def answers(facts: FactStore, query: Query, scope: Scope) -> Iterator[Scope]:
    """Every extension of the scope in which the query's atoms hold, in sorted order."""
    return _answers(facts, query, scope, set(scope.values()))


def _answers(facts: FactStore, query: Query, scope: Scope, used: set[str]) -> Iterator[Scope]:
    if not query:
        yield scope
        return
    predicate, terms = query[0]
    layer = facts.layer(predicate)
    known = [scope.get(term) for term in terms]
    candidates = layer.matching(predicate, known)
    if None not in known:
        if (predicate, *known) in candidates:
            yield from _answers(facts, query[1:], scope, used)
        return
    for fact in sorted(candidates):
        bound, taken = dict(scope), set(used)
        for (name, kind), value in zip(terms, fact[1:], strict=False):
            before = bound.get((name, kind))
            if before is None:
                if value in taken or not facts.is_a(value, kind):
                    break
                bound[(name, kind)] = value
                taken.add(value)
            elif before != value:
                break
        else:
            yield from _answers(facts, query[1:], bound, taken)
