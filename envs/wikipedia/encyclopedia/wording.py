"""Pages of the bundled encyclopedia: each fact in one of several wordings, the opening sentence
first.

A page has at most five sentences, so that `search[…]`, which shows five, shows all of it; about one
page in three also has an irrelevant sentence.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from stepagent.envs.wikipedia.corpus import Page
from stepagent.envs.wikipedia.encyclopedia import names
from stepagent.envs.wikipedia.encyclopedia.facts import Encyclopedia, Entity


@dataclass(frozen=True)
class Written:
    """A page, and which of its sentences states which fact."""

    page: Page
    sentences: dict[str, int]
    """Relation → index of the sentence."""


def write(entities: Encyclopedia, seed: int) -> dict[str, Written]:
    """Title → page, for the complete encyclopedia."""
    return {
        e.title: _write(e, entities, random.Random(f"page {seed} {e.title}"))
        for e in entities.values()
    }


def _write(entity: Entity, entities: Encyclopedia, rng: random.Random) -> Written:
    values = {
        relation.replace(" ", "_"): _name(value, entities)
        for relation, value in entity.facts.items()
    }
    values |= {"n": entity.name, "a_genre": _article(entity.facts.get("genre", ""))}
    if entity.kind == "person":
        man = entity.facts["gender"] == "man"
        values |= {
            "s": "He" if man else "She",
            "he": "he" if man else "she",
            "his": "his" if man else "her",
        }
        values |= {"child": "son" if man else "daughter", "year": entity.facts["born"].split()[-1]}
        values["an_occupation"] = _article(entity.facts["occupation"])
        values["was"] = "was" if "died" in entity.facts else "is"
    if entity.kind == "country":
        values["people"] = names.COUNTRIES[entity.title][0]
    opening, *others = _WORDINGS[entity.kind]
    rng.shuffle(others)
    sentences: list[str] = []
    sentence_of: dict[str, int] = {}
    for needed, wordings in (opening, *others):
        # The opening may be said with fewer facts: each of its wordings needs what it names.
        fitting = [w for w in wordings if all(r in entity.facts for r in _relations(w))]
        if not fitting or not all(relation in entity.facts for relation in needed):
            continue
        wording = rng.choice(fitting)
        sentence_of |= dict.fromkeys(_relations(wording), len(sentences))
        sentences.append(_capital(wording.format(**values)))
    if len(sentences) < 5 and rng.random() < 0.35 and entity.kind in _ASIDES:
        sentences.append(rng.choice(_ASIDES[entity.kind]).format(**values))
    return Written(Page(entity.title, "\n".join(sentences)), sentence_of)


def _relations(wording: str) -> list[str]:
    """The facts that a wording states."""
    relations = [part.split("}")[0].replace("_", " ") for part in wording.split("{")[1:]]
    return [_TOLD_AS.get(name, name) for name in relations if name not in _WORDS]


_WORDS = {"n", "s", "he", "his", "child", "was", "year", "people"}
_TOLD_AS = {"a genre": "genre", "an occupation": "occupation"}


def _name(value: str, entities: Encyclopedia) -> str:
    """A page's name; any other value unchanged."""
    return entities[value].name if value in entities else value


def _article(noun: str) -> str:
    return f"an {noun}" if noun[:1] in "aeiou" else f"a {noun}"


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


_LIFE = ("born", "died")
_WORDINGS: dict[str, list[tuple[tuple[str, ...], tuple[str, ...]]]] = {
    # kind: the opening, then the other sentences, each (facts needed, wordings to choose from)
    "person": [
        (
            ("occupation",),
            (
                "{n} ({born} – {died}) was {an_occupation} from {birthplace}.",
                "{n}, born in {birthplace} on {born}, {was} {an_occupation}.",
                "{n} (born {born} in {birthplace}) {was} {an_occupation}.",
                "{n} {was} {an_occupation} who was born in {birthplace} on {born}.",
            ),
        ),
        (
            ("father", "mother"),
            (
                "{s} was the {child} of {father} and {mother}.",
                "{his} father was {father}, {his} mother {mother}.",
                "{his} parents were {father} and {mother}.",
                "{father} and {mother} were {his} parents.",
            ),
        ),
        (
            ("spouse",),
            (
                "{s} married {spouse} in {married}.",
                "In {married} {he} was married to {spouse}.",
                "{his} spouse was {spouse}.",
            ),
        ),
        (
            ("university",),
            (
                "{s} studied at {university}.",
                "{s} was educated at {university}.",
                "{s} held a degree from {university}.",
            ),
        ),
        (
            ("known for",),
            (
                "{s} is best known for {known_for}.",
                "{his} best known work is {known_for}.",
                "{his} name is linked with {known_for}.",
            ),
        ),
    ],
    "film": [
        (
            (),
            (
                "{n} is {a_genre} film of {released} directed by {director}.",
                "{n} is {a_genre} film that came out in {released}; its director was {director}.",
                "Directed by {director}, {n} is {a_genre} film released in {released}.",
                "{n} ({released}) is {a_genre} film by the director {director}.",
            ),
        ),
        (
            (),
            (
                "It stars {star} in the main role.",
                "The leading part is played by {star}.",
                "{star} plays the lead.",
            ),
        ),
        (
            (),
            (
                "{composer} wrote the music.",
                "The music was composed by {composer}.",
                "Its score is by {composer}.",
            ),
        ),
        (
            (),
            (
                "It was produced by {studio}.",
                "The film was made at {studio}.",
                "{studio} produced it.",
            ),
        ),
    ],
    "novel": [
        (
            (),
            (
                "{n} is {a_genre} novel by {author}.",
                "{n} is {a_genre} novel written by {author}.",
                "Written by {author}, {n} is {a_genre} novel.",
            ),
        ),
        (
            (),
            (
                "It was published in {released} by {publisher}.",
                "{publisher} published it in {released}.",
                "The first edition came out at {publisher} in {released}.",
            ),
        ),
    ],
    "album": [
        (
            (),
            (
                "{n} is {a_genre} album by {performer}.",
                "{n} is {a_genre} album recorded by the singer {performer}.",
                "{n} is an album of {genre} songs performed by {performer}.",
            ),
        ),
        (
            (),
            (
                "It was released in {released} by {label}.",
                "{label} brought it out in {released}.",
                "It appeared in {released} on the label {label}.",
            ),
        ),
    ],
    "company": [
        (
            (),
            (
                "{n} is a {business} with its headquarters in {headquarters}.",
                "{n} is a {business} based in {headquarters}.",
                "{n}, a {business}, has its seat in {headquarters}.",
            ),
        ),
        (
            (),
            (
                "It was founded in {founded} by {founder}.",
                "{founder} founded the company in {founded}.",
                "The firm goes back to {founder}, who started it in {founded}.",
            ),
        ),
    ],
    "landmark": [
        (
            (),
            (
                "{n} is a sight of {town}, designed by {architect}.",
                "{n} stands in {town} and was designed by the architect {architect}.",
                "{n} in {town} is a work of the architect {architect}.",
            ),
        ),
        ((), ("It was opened in {opened}.", "It opened to the public in {opened}.")),
    ],
    "event": [
        (
            (),
            (
                "The {n} took place in {town} in {year}.",
                "The {n} was held in the town of {town} in {year}.",
            ),
        ),
        (
            (),
            (
                "It was won by {winner}.",
                "The winner was {winner}.",
                "{winner} took the first prize.",
            ),
        ),
    ],
    "university": [
        (
            (),
            (
                "{n} is a university in {town}, founded in {founded}.",
                "Founded in {founded}, {n} is a university in the town of {town}.",
            ),
        ),
    ],
    "town": [
        (
            (),
            (
                "{n} is a town in the region {region} on the {river}.",
                "{n} is a town on the {river} in {region}.",
                "Lying on the {river}, {n} is a town of the region {region}.",
            ),
        ),
        ((), ("It has {population} inhabitants.", "Its population is {population}.")),
    ],
    "region": [
        (
            (),
            (
                "{n} is a region of {country} with the seat {seat}.",
                "{n} is a region in {country}; its seat is {seat}.",
                "The region {n} belongs to {country} and is governed from {seat}.",
            ),
        ),
    ],
    "country": [
        (
            (),
            (
                "{n} is a country whose capital is {capital}.",
                "{n} is a country with the capital {capital}.",
            ),
        ),
        ((), ("Its currency is the {currency}.", "The {people} people pay with the {currency}.")),
        ((), ("The official language is {language}.",)),
    ],
    "river": [((), ("The {n} is a river {length} long.", "The {n} is a river of {length}."))],
}
_TOLD_AS |= {name.replace(" ", "_"): name for name in ("known for",)}
_ASIDES = {
    "person": (
        "Little is known about {his} early years.",
        "A street bears {his} name.",
        "{his} letters were published later.",
    ),
    "film": (
        "Critics were divided.",
        "Most of it was shot in one summer.",
        "It was shown at several festivals.",
    ),
    "novel": ("It has been translated several times.", "A film was planned but never made."),
    "album": ("It sold well for years.", "It was recorded in a single week."),
    "company": ("It is still run by the family.", "At its height it had three hundred workers."),
    "landmark": ("It was restored twice.", "Many visitors come every year."),
    "event": ("Heavy rain delayed the beginning.", "More people came than ever before."),
    "university": ("Its library is open to all.", "It has four faculties."),
    "town": ("A market is held every Friday.", "The old town hall burnt down long ago."),
    "river": ("It freezes over in cold winters.", "It is known for its trout."),
}
