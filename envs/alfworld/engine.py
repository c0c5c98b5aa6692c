"""The fast engine: plays `game.tw-pddl` exactly as TextWorld's PDDL engine does.

The reference translates the problem twice with Fast Downward and, at every step, instantiates every
action and derives every command. Here a game is read into indexed facts (`FactStore`); a command is
matched against the templates of its actions, its precondition is looked up, its effects are
applied, and one text is derived. Consequences of the translator that are reproduced:

- an action that would change nothing (going to the current place) does not exist;
- a fact that an effect deletes is known to be false from then on: `not_p(…)` holds for the text;
- names are numbered from the sorted ids downwards (upstream's demangler without shuffling).

`engine="textworld"` is the reference itself (`envs.alfworld.reference`).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from stepagent.envs.alfworld import grammar as twl2
from stepagent.envs.alfworld import pddl
from stepagent.envs.alfworld.fact_store import Binding, Facts, FactStore
from stepagent.envs.alfworld.grammar import Each, Entity, Grammar, Symbol, Text, Wording
from stepagent.envs.alfworld.pddl import Action, Clause, Domain, Fact, GameError, Problem
from stepagent.envs.alfworld.text import Writer

NOTHING = "Nothing happens."
_MARKS = (("_bar_", "|"), ("_minus_", "-"), ("_plus_", "+"), ("_dot_", "."), ("_comma_", ","))


@dataclass(frozen=True)
class Command:
    """An action that is possible now, and the command for it."""

    text: str
    action: Verb
    binding: Binding
    clause: Clause


@dataclass(frozen=True)
class Verb:
    """One action of the domain with its wording, ready to be matched."""

    action: Action
    wording: Wording
    pattern: re.Pattern[str] | None
    """The command with its parameters as groups; None: commands must be derived and compared."""
    types: tuple[dict[str, str], ...]
    """For each clause of the precondition: every variable → its type."""


@dataclass
class Game:
    """A loaded game: what never changes. `start()` plays it."""

    domain: Domain
    problem: Problem
    grammar: Grammar
    facts: FactStore
    entities: dict[str, Entity]
    by_name: dict[str, str] = field(default_factory=dict)
    """Name in the text → id."""
    verbs: tuple[Verb, ...] = ()

    def start(self) -> Play:
        return Play(self)


def load(data: Mapping[str, Any]) -> Game:
    """A game from the content of a `game.tw-pddl`. Raises GameError that says what is wrong."""
    for key in ("pddl_domain", "grammar", "pddl_problem"):
        if not isinstance(data.get(key), str):
            raise GameError(f"the game has no text in {key!r}")
    domain = pddl.read_domain(data["pddl_domain"])
    grammar = twl2.read(data["grammar"])
    problem = pddl.read_problem(data["pddl_problem"])
    members = _members(domain, problem)
    fluents = domain.fluents | {f"not_{name}" for name in domain.fluents}
    facts = FactStore(
        Facts(f for f in problem.init if f[0] not in fluents),
        Facts(f for f in problem.init if f[0] in fluents),
        fluents,
        members,
    )
    entities = name_entities(problem)
    game = Game(domain, problem, grammar, facts, entities)
    game.by_name = {entity.name: name for name, entity in entities.items()}
    game.verbs = tuple(_verb(action, grammar) for action in domain.actions)
    return game


def parse(text: str | bytes) -> dict[str, Any]:
    """The JSON of a game file. Raises GameError if it is none."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GameError(f"no JSON, or cut off: {error}") from None
    if not isinstance(data, dict):
        raise GameError("a JSON object was expected")
    return data


def _members(domain: Domain, problem: Problem) -> dict[str, frozenset[str]]:
    members: dict[str, set[str]] = {"object": set(problem.types)}
    for name, kind in problem.types.items():
        for _ in range(20):
            members.setdefault(kind, set()).add(name)
            if kind == "object" or domain.parents.get(kind, kind) == kind:
                break
            kind = domain.parents[kind]
    return {kind: frozenset(names) for kind, names in members.items()}


def name_entities(problem: Problem) -> dict[str, Entity]:
    """Ids that occur in a fact → entities with upstream's names, such as `sinkbasin 1`."""
    ids = sorted({name for fact in problem.init for name in fact[1:]})
    kinds = {i: _kind(i) for i in ids}
    left = Counter(kind for kind in kinds.values() if kind)
    entities = {}
    for i in ids:
        kind, name = kinds[i], f"{_plain(i)} "
        if kind:
            name = f"{kind} {left[kind]}"
            left[kind] -= 1
        entities[i] = Entity(i, problem.types[i], name)
    return entities


def _kind(identifier: str) -> str:
    """`apple_bar_…` → apple; "" for what is not in the room (the agent, types)."""
    head, bar, _ = identifier.partition("_bar_")
    return (head + "basin" if "basin" in identifier else head) if bar else ""


def _plain(identifier: str) -> str:
    for mark, sign in _MARKS:
        identifier = identifier.replace(mark, sign)
    return identifier


def _verb(action: Action, grammar: Grammar) -> Verb:
    wording = grammar.actions.get(action.name)
    if wording is None:
        raise GameError(f"the grammar has no wording for the action {action.name}")
    types = tuple({**dict(action.parameters), **dict(c.types)} for c in action.clauses)
    names = {variable[1:] for variable, _ in action.parameters}
    return Verb(action, wording, _pattern(wording.template, names), types)


def _pattern(template: tuple[Symbol, ...], names: set[str]) -> re.Pattern[str] | None:
    """`take {o} from {r}` → a pattern with the groups o and r."""
    parts, seen = [], set()
    for symbol in template:
        if isinstance(symbol, Text):
            parts.append(re.escape(symbol.text))
            continue
        if not isinstance(symbol, Each) or len(symbol.names) != 1:
            return None
        (name,) = symbol.names
        if name not in names or name in seen:
            return None
        seen.add(name)
        parts.append(f"(?P<{name}>.+?)")
    return re.compile("".join(parts), re.DOTALL)


class Play:
    """One episode of a game. The first text is `intro()`; then `step(command)`."""

    def __init__(self, game: Game):
        self.game, self.facts = game, game.facts.copy()
        self.writer = Writer(game.grammar, game.entities)
        self._understood: tuple[str, Command | None] | None = None

    def copy(self) -> Play:
        twin = Play.__new__(Play)
        twin.game, twin.facts, twin.writer = self.game, self.facts.copy(), self.writer
        twin._understood = self._understood
        return twin

    def intro(self) -> str:
        return self.writer.derive(twl2.symbols("#intro#"), self.facts, {})

    def won(self) -> bool:
        goal = self.game.problem.goal
        for clause in goal:
            if next(self.facts.solve(clause, dict(clause.types), {}), None) is not None:
                return True
        return False

    def knows(self, text: str) -> bool:
        """Whether the text is a command that is possible now."""
        return self.understand(text) is not None

    def step(self, text: str) -> str | None:
        """Carries out the command and returns the feedback; None if it is not possible now."""
        command = self.understand(text)
        return None if command is None else self.do(command)

    def find(self, action: str, partial: Binding) -> Command | None:
        """The first command of an action with these parameters that is possible now."""
        verb = next((v for v in self.game.verbs if v.action.name == action), None)
        return None if verb is None else next(self._commands(verb, partial), None)

    def understand(self, text: str) -> Command | None:
        """The action of the command, if it is possible now."""
        if self._understood is None or self._understood[0] != text:
            self._understood = (text, self._matched(text))
        return self._understood[1]

    def _matched(self, text: str) -> Command | None:
        for verb in self.game.verbs:
            if verb.pattern is None:
                partial: Binding = {}
            elif match := verb.pattern.fullmatch(text):
                by_name = self.game.by_name
                partial = {f"?{n}": by_name.get(v, "") for n, v in match.groupdict().items()}
                if "" in partial.values():
                    continue
            else:
                continue
            for command in self._commands(verb, partial):
                if command.text == text:
                    return command
        return None

    def commands(self) -> list[Command]:
        """Everything that is possible now, one command for each text, sorted."""
        commands_by_text: dict[str, Command] = {}
        for verb in self.game.verbs:
            for command in self._commands(verb, {}):
                commands_by_text.setdefault(command.text, command)
        return [commands_by_text[text] for text in sorted(commands_by_text)]

    def admissible(self) -> list[str]:
        """Upstream's admissible commands: sorted, each once."""
        return [command.text for command in self.commands()]

    def _commands(self, verb: Verb, partial: Binding) -> Iterator[Command]:
        facts, seen = self.facts, set()
        parameters = [variable for variable, _ in verb.action.parameters]
        for kinds, clause in zip(verb.types, verb.action.clauses, strict=True):
            if not all(facts.is_a(v, kinds.get(k, "object")) for k, v in partial.items()):
                continue
            for binding in facts.solve(clause, kinds, partial):
                key = tuple(binding[p] for p in parameters)
                if key in seen or not _changes(verb.action, clause, binding):
                    continue
                seen.add(key)
                scope = self._scope(verb.action, binding)
                text = self.writer.derive(verb.wording.template, facts, scope)
                yield Command(text, verb, binding, clause)

    def _scope(self, action: Action, binding: Binding) -> dict[tuple[str, str], str]:
        return {(v[1:], kind): binding[v] for v, kind in action.parameters}

    def do(self, command: Command) -> str:
        """Applies the command's effects; returns the feedback."""
        self._understood = None
        facts, binding, changes = self.facts, command.binding, []
        for effect in command.action.action.effects:
            if not effect.when or any(
                next(facts.solve(c, dict(c.types), dict(binding)), None) is not None
                for c in effect.when
            ):
                changes.append((_ground(effect.literal, binding), effect.literal.positive))
        added = {fact for fact, positive in changes if positive}
        for fact, positive in changes:
            if not positive and fact not in added:
                facts.fluent.discard(fact)
                facts.fluent.add((f"not_{fact[0]}", *fact[1:]))
        for fact in added:
            facts.fluent.discard((f"not_{fact[0]}", *fact[1:]))
            facts.fluent.add(fact)
        scope = self._scope(command.action.action, binding)
        return self.writer.derive(command.action.wording.feedback, facts, scope)


def _ground(literal: pddl.Literal, binding: Binding) -> Fact:
    return (literal.predicate, *(binding.get(term, term) for term in literal.terms))


def _changes(action: Action, clause: Clause, binding: Binding) -> bool:
    """Whether the action does anything beyond its own precondition."""
    effects = [(_ground(e.literal, binding), e.literal.positive, e.when) for e in action.effects]
    added = {fact for fact, positive, _ in effects if positive}
    held = {_ground(atom, binding) for atom in clause.atoms}
    missing = {_ground(atom, binding) for atom in clause.absent}
    return any(
        when or (fact not in held if positive else fact not in added and fact not in missing)
        for fact, positive, when in effects
    )
