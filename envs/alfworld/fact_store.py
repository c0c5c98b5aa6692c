"""What is true in a game: ground atoms, indexed so that conditions are matched without searching.

`Facts` is a set of atoms with an index by (predicate, position, argument). `FactStore` keeps
those that never change apart from those that do, so that a reset copies only the latter.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from stepagent.envs.alfworld.pddl import Clause, Fact, Literal

_NONE: frozenset[Fact] = frozenset()
Binding = dict[str, str]
"""Variable → object."""


class Facts:
    """A set of ground atoms. Index keys: a predicate, or (predicate, position from 1, argument)."""

    def __init__(self, facts: Iterable[Fact] = ()):
        self._index: dict[str | tuple[str, int, str], set[Fact]] = {}
        for fact in facts:
            self.add(fact)

    def add(self, fact: Fact) -> None:
        index = self._index
        index.setdefault(fact[0], set()).add(fact)
        for i in range(1, len(fact)):
            index.setdefault((fact[0], i, fact[i]), set()).add(fact)

    def discard(self, fact: Fact) -> None:
        index = self._index
        if fact not in index.get(fact[0], _NONE):
            return
        index[fact[0]].discard(fact)
        for i in range(1, len(fact)):
            index[(fact[0], i, fact[i])].discard(fact)

    def copy(self) -> Facts:
        twin = Facts()
        twin._index = {key: set(facts) for key, facts in self._index.items()}
        return twin

    def __contains__(self, fact: Fact) -> bool:
        return fact in self._index.get(fact[0], _NONE)

    def __iter__(self) -> Iterator[Fact]:
        for key, facts in self._index.items():
            if isinstance(key, str):
                yield from facts

    def matching(self, predicate: str, terms: Iterable[str | None]) -> Collection[Fact]:
        """Facts that can match (a superset): `terms` are the arguments, None if unknown."""
        index, best = self._index, self._index.get(predicate, _NONE)
        for i, term in enumerate(terms, start=1):
            if term is not None:
                candidates = index.get((predicate, i, term), _NONE)
                if len(candidates) < len(best):
                    best = candidates
                    if not best:
                        break
        return best


class FactStore:
    """Facts that never change (`static`) and those that do (`fluent`)."""

    def __init__(
        self,
        static: Facts,
        fluent: Facts,
        fluents: frozenset[str],
        members: Mapping[str, frozenset[str]],
    ):
        self.static, self.fluent, self.fluents, self.members = static, fluent, fluents, members

    def copy(self) -> FactStore:
        return FactStore(self.static, self.fluent.copy(), self.fluents, self.members)

    def layer(self, predicate: str) -> Facts:
        return self.fluent if predicate in self.fluents else self.static

    def __contains__(self, fact: Fact) -> bool:
        return fact in self.layer(fact[0])

    def find(self, predicate: str, *terms: str | None) -> list[Fact]:
        """Facts with these arguments (None: any), sorted."""
        facts = self.layer(predicate).matching(predicate, terms)
        return sorted(
            f for f in facts if all(t is None or t == f[i] for i, t in enumerate(terms, start=1))
        )

    def solve(
        self, clause: Clause, types: Mapping[str, str], binding: Binding
    ) -> Iterator[Binding]:
        """Every way to bind the clause's variables. `types`: variable → type, of all of them."""
        yield from self._solve(clause, list(clause.atoms), types, binding)

    def _solve(
        self, clause: Clause, left: list[Literal], types: Mapping[str, str], binding: Binding
    ) -> Iterator[Binding]:
        if not left:
            yield from self._finish(clause, types, binding)
            return
        best: Collection[Fact] | None = None
        chosen = left[0]
        for atom in left:
            terms = [binding.get(t) if t[0] == "?" else t for t in atom.terms]
            candidates = self.layer(atom.predicate).matching(atom.predicate, terms)
            if best is None or len(candidates) < len(best):
                best, chosen = candidates, atom
                if len(candidates) <= 1:
                    break
        rest = [atom for atom in left if atom is not chosen]
        for fact in sorted(best or ()) if len(best or ()) > 1 else list(best or ()):
            bound = self._bind(chosen, fact, types, binding)
            if bound is not None:
                yield from self._solve(clause, rest, types, bound)

    def _bind(
        self, atom: Literal, fact: Fact, types: Mapping[str, str], binding: Binding
    ) -> Binding | None:
        bound = binding
        for term, value in zip(atom.terms, fact[1:], strict=False):
            if term[0] != "?":
                if term != value:
                    return None
            elif term in bound:
                if bound[term] != value:
                    return None
            elif not self.is_a(value, types.get(term, "object")):
                return None
            else:
                if bound is binding:
                    bound = dict(binding)
                bound[term] = value
        return bound

    def is_a(self, name: str, kind: str) -> bool:
        return kind == "object" or name in self.members.get(kind, _NONE)

    def _finish(
        self, clause: Clause, types: Mapping[str, str], binding: Binding
    ) -> Iterator[Binding]:
        """Binds what no atom mentions to every object of its type; checks what must not hold."""
        for variable, kind in types.items():
            if variable not in binding:
                for name in sorted(self.members.get(kind, ())):
                    yield from self._finish(clause, types, {**binding, variable: name})
                return
        for atom in clause.absent:
            fact = (atom.predicate, *(binding.get(t, t) for t in atom.terms))
            if fact in self.layer(atom.predicate):
                return
        if all(binding.get(a, a) != binding.get(b, b) for a, b in clause.differ):
            yield binding
