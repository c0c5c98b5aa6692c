"""The facts of the bundled encyclopedia: births, works, places and so on.

Every fact belongs to the page that states it: `entity.facts["director"]` is the title of another
page, `entity.facts["born"]` a value. Facts agree with one another: parents are older than their
children, marriages are mutual, nobody makes a film before adulthood or after death.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from stepagent.envs.wikipedia.encyclopedia import names

NOW = 2015
"""Nothing happens later."""
UNIVERSITIES = 44
PEOPLE, TOWNS, FILMS, NOVELS, ALBUMS, EVENTS, LANDMARKS = 1040, 190, 320, 230, 190, 130, 90


@dataclass
class Entity:
    """One page's subject."""

    title: str
    """Title of its page; unique."""
    name: str
    """What texts call it: the title without an addition such as `(film)`."""
    kind: str
    """person, town, region, country, river, university, company, film, novel, album, event, …"""
    facts: dict[str, str] = field(default_factory=dict)
    """Relation → title of another page, or a value (a date, a year, a number, a word)."""

    def year(self, relation: str) -> int:
        """The year of a fact that is a date or a year."""
        return int(self.facts[relation].split()[-1])


Encyclopedia = dict[str, Entity]


def generate(seed: int) -> Encyclopedia:
    """Title → entity, in the order in which they were drawn."""
    return _Maker(random.Random(f"stepagent world {seed}")).encyclopedia()


class _Maker:
    def __init__(self, rng: random.Random):
        self.rng = rng
        self.all: Encyclopedia = {}
        self.kinds: dict[str, list[Entity]] = {}
        self.used: set[tuple[str, str]] = set()
        """(name, kind) of the works so far."""

    def encyclopedia(self) -> Encyclopedia:
        self._places()
        self._people()
        self._marriages()
        self._companies()
        self._landmarks()
        self._works()
        self._events()
        return self.all

    def _add(self, kind: str, title: str, **facts: str) -> Entity:
        entity = Entity(title, title, kind, facts)
        assert title not in self.all, title
        self.all[title] = entity
        self.kinds.setdefault(kind, []).append(entity)
        return entity

    def _of(self, kind: str, test: Callable[[Entity], bool] | None = None) -> list[Entity]:
        entities = self.kinds.get(kind, [])
        return entities if test is None else [entity for entity in entities if test(entity)]

    def _fresh(self, draw: Callable[[], str]) -> str:
        """A title that is not taken yet."""
        while (title := draw()) in self.all:
            pass
        return title

    # Places ---------------------------------------------------------------------------------------

    def _places(self) -> None:
        rng = self.rng
        for title, (_, language, currency) in names.COUNTRIES.items():
            self._add("country", title, language=language, currency=currency)
        for name in names.RIVERS:
            self._add("river", f"River {name}", length=f"{rng.randrange(40, 900)} km")
        countries = self._of("country")
        for number, name in enumerate(names.REGION_NAMES):
            for head in rng.sample(names.REGION_HEADS, 4):
                country = countries[number] if rng.random() < 0.7 else rng.choice(countries)
                self._add("region", f"{head} {name}", country=country.title)
        regions, rivers = self._of("region"), self._of("river")
        for number in range(TOWNS):
            title = self._fresh(lambda: rng.choice(names.TOWN_HEADS) + rng.choice(names.TOWN_TAILS))
            region = regions[number % len(regions)]
            self._add(
                "town",
                title,
                region=region.title,
                river=rng.choice(rivers).title,
                population=f"{rng.randrange(12, 9000) * 100:,}",
            )
        for region in regions:
            towns = self._of("town", lambda t: t.facts["region"] == region.title)  # noqa: B023
            region.facts["seat"] = rng.choice(towns).title
        for country in countries:
            seats = [r.facts["seat"] for r in regions if r.facts["country"] == country.title]
            country.facts["capital"] = rng.choice(seats)
        for town in rng.sample(self._of("town"), UNIVERSITIES):
            title = self._fresh(lambda: f"{rng.choice(names.FAMILIES)} College")
            founded = str(rng.randrange(1450, 1855))
            self._add("university", title, town=town.title, founded=founded)

    # People ---------------------------------------------------------------------------------------

    def _people(self) -> None:
        """Couples of a first generation, and children of those who are old enough."""
        genders = ("man", "woman")
        couples: deque[tuple[Entity, Entity]] = deque()
        for _ in range(90):
            first = self._person(self.rng.randrange(1840, 1880), self.rng.choice(genders))
            couples.append(self._couple(first))
        while len(self._of("person")) < PEOPLE:
            husband, wife = couples.popleft()
            for _ in range(self.rng.choice((1, 2, 2, 3))):
                grown_up = max(husband.year("born"), wife.year("born")) + 21
                born = grown_up + self.rng.randrange(14)
                child = self._person(born, self.rng.choice(genders), (husband, wife))
                if child.year("born") < 1965 and self.rng.random() < 0.55:
                    couples.append(self._couple(child))

    def _person(
        self, born: int, gender: str, parents: tuple[Entity, Entity] | None = None
    ) -> Entity:
        rng = self.rng
        first_names = names.MEN if gender == "man" else names.WOMEN
        family = parents[0].title.split()[-1] if parents else None
        title = self._fresh(
            lambda: f"{rng.choice(first_names)} {family or rng.choice(names.FAMILIES)}"
        )
        kinds, weights = zip(*names.OCCUPATIONS, strict=True)
        person = self._add(
            "person",
            title,
            gender=gender,
            occupation=rng.choices(kinds, weights)[0],
            born=self._date(born),
            birthplace=rng.choice(self._of("town")).title,
        )
        died = born + rng.randrange(48, 92)
        if died < NOW:
            person.facts["died"] = self._date(died)
        if parents:
            person.facts |= {"father": parents[0].title, "mother": parents[1].title}
        if rng.random() < 0.5:
            schools = self._of("university", lambda u: u.year("founded") < born + 18)
            person.facts["university"] = rng.choice(schools).title
        return person

    def _couple(self, person: Entity) -> tuple[Entity, Entity]:
        """Gives the person a spouse whose parents have no pages; returns (husband, wife)."""
        other = "woman" if person.facts["gender"] == "man" else "man"
        spouse = self._person(person.year("born") + self.rng.randrange(-4, 5), other)
        self._marry(person, spouse)
        return (person, spouse) if other == "woman" else (spouse, person)

    def _marry(self, one: Entity, two: Entity) -> None:
        first = max(one.year("born"), two.year("born")) + 20
        year = str(first)
        one.facts |= {"spouse": two.title, "married": year}
        two.facts |= {"spouse": one.title, "married": year}

    def _marriages(self) -> None:
        """Some of those without a spouse marry each other, across families."""
        free = self._of("person", lambda p: "spouse" not in p.facts)
        men = [p for p in free if p.facts["gender"] == "man"]
        women = [p for p in free if p.facts["gender"] == "woman"]
        for man in men:
            fitting = [
                w
                for w in women
                if abs(w.year("born") - man.year("born")) < 6
                and w.title.split()[-1] != man.title.split()[-1]
            ]
            if fitting and self.rng.random() < 0.5:
                wife = self.rng.choice(fitting)
                women.remove(wife)
                self._marry(man, wife)

    def _date(self, year: int) -> str:
        return f"{self.rng.randrange(1, 29)} {self.rng.choice(names.MONTHS)} {year}"

    # What people make -----------------------------------------------------------------------------

    def _active(self, occupation: str, year: int) -> list[Entity]:
        """People with that occupation who were adult and alive in that year."""
        spans = self._working[occupation]
        return [person for first, last, person in spans if first <= year <= last]

    def _companies(self) -> None:
        self._working: dict[str, list[tuple[int, int, Entity]]] = {}
        for person in self._of("person"):
            span = (person.year("born") + 22, _last_work(person), person)
            self._working.setdefault(person.facts["occupation"], []).append(span)
        rng, towns = self.rng, self._of("town")
        for kind, (endings, count) in names.COMPANIES.items():
            for _ in range(count):
                year = rng.randrange(1880, 1960)
                founder = rng.choice(self._active("entrepreneur", year))
                title = self._fresh(
                    lambda: f"{rng.choice(names.FAMILIES)} {rng.choice(endings)}"  # noqa: B023
                )
                self._add(
                    "company",
                    title,
                    business=kind,
                    founder=founder.title,
                    headquarters=rng.choice(towns).title,
                    founded=str(year),
                )
                founder.facts.setdefault("known for", title)

    def _landmarks(self) -> None:
        rng, towns = self.rng, self._of("town")
        for _ in range(LANDMARKS):
            year = rng.randrange(1890, 2005)
            architect = rng.choice(self._active("architect", year))
            title = self._fresh(
                lambda: f"{rng.choice(names.FAMILIES)} {rng.choice(names.LANDMARKS)}"
            )
            self._add(
                "landmark",
                title,
                architect=architect.title,
                town=rng.choice(towns).title,
                opened=str(year),
            )
            architect.facts.setdefault("known for", title)

    def _works(self) -> None:
        makers: dict[str, tuple[int, dict[str, str], str, str]] = {
            # kind: (how many, role → occupation, role of the company, its business)
            "film": (
                FILMS,
                {"director": "film director", "star": "actor", "composer": "composer"},
                "studio",
                "film studio",
            ),
            "novel": (NOVELS, {"author": "novelist"}, "publisher", "publishing house"),
            "album": (ALBUMS, {"performer": "singer"}, "label", "record label"),
        }
        for kind, (count, roles, role, business) in makers.items():
            for _ in range(count):
                self._work(kind, roles, role, business)

    def _work(self, kind: str, roles: dict[str, str], role: str, business: str) -> None:
        rng = self.rng
        year = rng.randrange(1925 if kind != "album" else 1950, NOW)
        companies = self._of(
            "company", lambda c: c.facts["business"] == business and c.year("founded") < year
        )
        name = f"The {rng.choice(names.ADJECTIVES)} {rng.choice(names.NOUNS)}"
        while (name, kind) in self.used:
            name = f"The {rng.choice(names.ADJECTIVES)} {rng.choice(names.NOUNS)}"
        self.used.add((name, kind))
        # A film and a novel may share a name: the title of the later one says which it is.
        title = f"{name} ({kind})" if name in self.all else name
        work = self._add(kind, title, genre=rng.choice(names.GENRES[kind].split(",")))
        work.name = name
        work.facts |= {"released": str(year), role: rng.choice(companies).title}
        for maker, occupation in roles.items():
            person = rng.choice(self._active(occupation, year))
            work.facts[maker] = person.title
            person.facts.setdefault("known for", title)

    def _events(self) -> None:
        rng, towns = self.rng, self._of("town")
        for _ in range(EVENTS):
            contest, occupation = rng.choice(list(names.CONTESTS.items()))
            year = rng.randrange(1925, NOW)
            winner = rng.choice(self._active(occupation, year))
            town = rng.choice(towns)
            title = self._fresh(
                lambda: f"{year} {rng.choice(names.FAMILIES)} {contest}"  # noqa: B023
            )
            self._add("event", title, winner=winner.title, town=town.title, year=str(year))
            winner.facts.setdefault("won", title)


def _last_work(person: Entity) -> int:
    """The last year in which a person makes anything."""
    last = person.year("born") + 70
    return min(last, person.year("died") - 1) if "died" in person.facts else min(last, NOW)
