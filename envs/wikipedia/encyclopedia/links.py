"""How questions express the relations of the bundled encyclopedia.

`{}` stands for the subject: a name, or the noun phrase of the link before.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Link:
    """How one relation is expressed."""

    phrases: tuple[str, ...]
    """Noun phrases for its value; none if the value is not a page."""
    question_forms: tuple[str, ...]
    """Questions for its value."""


_TABLE = """
film.director | the director of {} | Who directed {}? / Who was the director of {}?
film.star | the star of {} / the lead actor of {} | Who stars in {}? / Who plays the lead in {}?
film.composer | the composer of {} | Who composed the music of {}? / Who wrote the score of {}?
film.studio | the studio that produced {} | Which studio produced {}?
film.released | | In which year was {} released?
novel.author | the author of {} | Who wrote {}? / Who is the author of {}?
novel.publisher | the publisher of {} | Who published {}?
novel.released | | In which year was {} published?
album.performer | the performer of {} / the singer of {} | Who performed {}? / Who recorded {}?
album.label | the record label of {} | Which label released {}?
album.released | | In which year was {} released?
person.father | the father of {} | Who was the father of {}? / Who is the father of {}?
person.mother | the mother of {} | Who was the mother of {}? / Who is the mother of {}?
person.spouse | the spouse of {} | Who was the spouse of {}? / Whom did {} marry?
person.birthplace | the birthplace of {} | Where was {} born? / In which town was {} born?
person.university | the university of {} | At which university did {} study? / Where did {} study?
person.born | | When was {} born? / What is the date of birth of {}?
person.occupation | | What was the occupation of {}?
company.founder | the founder of {} | Who founded {}? / Who was the founder of {}?
company.headquarters | the town where {} is based | In which town is {} based?
company.founded | | In which year was {} founded? / When was {} founded?
landmark.architect | the architect of {} | Who designed {}? / Who was the architect of {}?
landmark.town | the town of {} | In which town does {} stand?
event.winner | the winner of {} | Who won {}? / Who was the winner of {}?
event.town | the town that hosted {} | Which town hosted {}? / Where was {} held?
university.town | the town of {} | In which town is {}?
university.founded | | In which year was {} founded? / When was {} founded?
town.region | the region of {} | In which region is {}? / Which region does {} belong to?
town.river | the river of {} | On which river is {}? / Which river flows through {}?
town.population | | How many inhabitants does {} have? / What is the population of {}?
region.country | the country of {} | In which country is {}? / Which country does {} belong to?
region.seat | the seat of {} | What is the seat of {}? / From which town is {} governed?
country.capital | the capital of {} | What is the capital of {}?
country.currency | | What is the currency of {}?
country.language | | What is the official language of {}?
river.length | | How long is {}?
"""
LINKS: dict[str, dict[str, Link]] = {}
"""Kind of page → relation → how it is expressed."""
for _row in _TABLE.strip().splitlines():
    _name, _phrases, _asked = _row.split("|")
    _kind, _relation = _name.strip().split(".")
    _texts = [tuple(t.strip() for t in cell.split("/") if t.strip()) for cell in (_phrases, _asked)]
    LINKS.setdefault(_kind, {})[_relation] = Link(*_texts)

NAMED = {
    "film": "the film {}",
    "novel": "the novel {}",
    "album": "the album {}",
    "event": "the {}",
    "river": "the {}",
}
"""How a question names a page of some kinds; the others by the name alone."""
INFERENCES = {
    "paternal grandfather": ("father", "father"),
    "paternal grandmother": ("father", "mother"),
    "maternal grandfather": ("mother", "father"),
    "maternal grandmother": ("mother", "mother"),
    "father-in-law": ("spouse", "father"),
    "mother-in-law": ("spouse", "mother"),
}
"""A relative → the two links that lead there."""

_Forms = tuple[tuple[str, bool], ...]
COMPARED: tuple[tuple[str, str, _Forms], ...] = (
    (
        "film",
        "released",
        (
            ("Which film came out first, {} or {}?", True),
            ("Which film was released later, {} or {}?", False),
        ),
    ),
    (
        "novel",
        "released",
        (
            ("Which novel was published first, {} or {}?", True),
            ("Which novel was published later, {} or {}?", False),
        ),
    ),
    (
        "album",
        "released",
        (
            ("Which album was released first, {} or {}?", True),
            ("Which album is more recent, {} or {}?", False),
        ),
    ),
    (
        "person",
        "born",
        (
            ("Who was born first, {} or {}?", True),
            ("Who was born later, {} or {}?", False),
            ("Who is older, {} or {}?", True),
        ),
    ),
    (
        "company",
        "founded",
        (
            ("Which company was founded first, {} or {}?", True),
            ("Which company is younger, {} or {}?", False),
        ),
    ),
    (
        "town",
        "population",
        (
            ("Which town has more inhabitants, {} or {}?", False),
            ("Which town is smaller, {} or {}?", True),
        ),
    ),
)
"""Kind, relation, and (question, whether the smaller value is the answer)."""
MAKERS: tuple[tuple[str, str, _Forms], ...] = (
    (
        "film",
        "director",
        (
            ("Which film has the director who was born first, {} or {}?", True),
            ("Which film has the director who was born later, {} or {}?", False),
        ),
    ),
    (
        "novel",
        "author",
        (
            ("Which novel has the author who was born first, {} or {}?", True),
            ("Which novel has the younger author, {} or {}?", False),
        ),
    ),
    (
        "album",
        "performer",
        (
            ("Which album has the older performer, {} or {}?", True),
            ("Which album has the performer who was born later, {} or {}?", False),
        ),
    ),
)
"""Kind of work, role of its maker, and questions on when the makers were born."""
SHARED = (
    "Were {} and {} born in the same town?",
    "Do {} and {} come from the same town?",
    "Is the birthplace of {} the same as that of {}?",
)
"""Whether two people were born in the same town."""
