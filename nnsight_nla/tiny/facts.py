"""The world's facts: 80 subjects, what is true of each, and which pairs are held out of training.

A subject is a city, a country, an animal or a job. Its facts map a *relation* to an *answer*, and
every subject and answer is one word (and one token). A text about a subject may also have a *tone*.
48 of the 320 pairs of a subject and a tone are held out of all training, so the verbalizer cannot
have memorised what it says about those.

>>> SUBJECTS["Paris"].facts["language"]
'French'
>>> held_out_pairs().isdisjoint(training_pairs())
True
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

Kind = Literal["city", "country", "animal", "job"]


@dataclass(frozen=True)
class Subject:
    """A subject that a text can be about."""

    name: str
    """The one word that names it."""
    kind: Kind
    """The kind of subject, which determines its relations and the sentences that state them."""
    facts: Mapping[str, str]
    """The answer of each relation, in the order of the tables below."""


_PLACES = """
country capital language currency continent food
France Paris French euro Europe crepes
Germany Berlin German euro Europe pretzels
Italy Rome Italian euro Europe pasta
Spain Madrid Spanish euro Europe paella
Portugal Lisbon Portuguese euro Europe sardines
Greece Athens Greek euro Europe olives
Poland Warsaw Polish zloty Europe pierogi
Sweden Stockholm Swedish krona Europe meatballs
Norway Oslo Norwegian krone Europe salmon
Denmark Copenhagen Danish krone Europe pastries
Finland Helsinki Finnish euro Europe pies
Hungary Budapest Hungarian forint Europe goulash
Russia Moscow Russian ruble Europe pancakes
Turkey Ankara Turkish lira Asia kebabs
Egypt Cairo Arabic pound Africa falafel
Kenya Nairobi Swahili shilling Africa maize
Japan Tokyo Japanese yen Asia sushi
China Beijing Chinese yuan Asia dumplings
Korea Seoul Korean won Asia kimchi
Thailand Bangkok Thai baht Asia curry
Vietnam Hanoi Vietnamese dong Asia noodles
India Delhi Hindi rupee Asia lentils
Peru Lima Spanish sol America potatoes
Cuba Havana Spanish peso America beans
"""
_ANIMALS = """
animal group home diet sound young
cat mammal house fish meow kitten
dog mammal yard bones bark puppy
cow mammal farm grass moo calf
horse mammal stable hay neigh foal
sheep mammal meadow clover bleat lamb
pig mammal sty roots grunt piglet
lion mammal savanna zebras roar cub
wolf mammal forest deer howl pup
owl bird barn mice hoot owlet
duck bird pond bread quack duckling
goose bird lake seeds honk gosling
hen bird coop corn cluck chick
frog amphibian swamp flies croak tadpole
bee insect hive nectar buzz larva
snake reptile desert eggs hiss hatchling
bear mammal cave honey growl cub
"""
_JOBS = """
job workplace tool product
baker bakery oven bread
teacher school chalk lessons
doctor hospital thermometer medicine
farmer field tractor vegetables
painter studio brush pictures
writer library pen novels
cook kitchen pan meals
carpenter workshop hammer chairs
tailor shop needle suits
singer theater microphone songs
pilot airport plane flights
fisherman harbor net fish
gardener garden shovel flowers
judge court gavel rulings
miner mine pickaxe coal
potter kiln wheel bowls
"""

TONES: Mapping[str, tuple[str, str, str]] = {
    "cheerful": ("lovely", "wonderful", "delightful"),
    "gloomy": ("dreary", "sad", "bleak"),
    "fearful": ("scary", "dangerous", "eerie"),
    "calm": ("quiet", "peaceful", "gentle"),
}
"""The adjectives that carry each tone; a text without any is `NEUTRAL`."""
NEUTRAL = "neutral"

Pair = tuple[str, str]
"""A subject's name and a tone."""


def _table(text: str) -> list[dict[str, str]]:
    names, *rows = (line.split() for line in text.strip().splitlines())
    return [dict(zip(names, row, strict=True)) for row in rows]


def _subjects() -> dict[str, Subject]:
    subjects: list[Subject] = []
    for row in _table(_PLACES):
        country, city = row.pop("country"), row["capital"]
        # "capital" points both ways: a city is the capital of its country, a country has its city.
        subjects.append(Subject(city, "city", {**row, "capital": country}))
        subjects.append(Subject(country, "country", row))
    for row in _table(_ANIMALS):
        subjects.append(Subject(row.pop("animal"), "animal", row))
    for row in _table(_JOBS):
        subjects.append(Subject(row.pop("job"), "job", row))
    return {subject.name: subject for subject in subjects}


SUBJECTS: Mapping[str, Subject] = _subjects()
RELATIONS = tuple(dict.fromkeys(relation for s in SUBJECTS.values() for relation in s.facts))


@cache
def held_out_pairs() -> frozenset[Pair]:
    """Return the pairs of a subject and a tone that are held out of all training."""
    pairs = [(subject, tone) for subject in SUBJECTS for tone in TONES]
    random.Random(7).shuffle(pairs)
    return frozenset(pairs[: len(pairs) * 15 // 100])


@cache
def training_pairs() -> tuple[Pair, ...]:
    """Return all other pairs, including every subject in the neutral tone."""
    held_out = held_out_pairs()
    every = [(subject, tone) for subject in SUBJECTS for tone in (*TONES, NEUTRAL)]
    return tuple(pair for pair in every if pair not in held_out)
