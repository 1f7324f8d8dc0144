"""The sentences of the world, as templates.

``{S}`` is the subject, ``{A}`` the answer, ``{T}`` an adjective of the tone, ``{N}`` a person's
name, ``{P}`` that person's pronoun, and ``{a}`` the article that fits the word after it.
"""

from __future__ import annotations

from collections.abc import Mapping

NAMES: Mapping[str, tuple[str, ...]] = {
    "She": ("Anna", "Clara", "Emma", "Grace", "Iris", "Kate", "Mary", "Olga"),
    "He": ("Ben", "David", "Felix", "Henry", "Jack", "Leo", "Noah", "Peter"),
}
"""The names of people, by pronoun."""

OPENERS = (
    "What {a} {T} day !",
    "It is {a} {T} morning .",
    "The day is {T} .",
    "This is {a} {T} evening .",
)
"""The opening sentences of a text with a tone."""
TAILS = (", which is {T}", ", and it is {T}")
"""The clauses that may end a fact in a text with a tone."""
_PLACE_INTROS = ("We talk about {S} .", "This story is about {S} .", "Today we visit {S} .")
INTROS: Mapping[str, tuple[str, ...]] = {
    "city": _PLACE_INTROS,
    "country": _PLACE_INTROS,
    "animal": (
        "We talk about the {S} .",
        "This story is about {a} {S} .",
        "Today we see {a} {S} .",
    ),
    "job": ("We meet {N} the {S} .", "This story is about {N} the {S} .", "{N} is {a} {S} ."),
}
"""The sentences that introduce a subject, by its kind."""
QUESTIONS: Mapping[str, str] = {
    "city": "Tell me about {S} .",
    "country": "Tell me about {S} .",
    "animal": "Tell me about the {S} .",
    "job": "Tell me about {a} {S} .",
}
"""The user's question before a document in chat form, by the kind of subject."""
Sentences = tuple[tuple[str, ...], tuple[str, ...]]
"""The sentences of a relation: first those that name the subject, then those that do not."""
_FACTS: Mapping[str, Sentences] = {
    "capital of": (
        ("{S} is the capital of {A}", "{S} is the main city of {A}"),
        ("It is the capital of {A}",),
    ),
    "capital": (
        ("The capital of {S} is {A}", "The main city of {S} is {A}"),
        ("Its capital is {A}",),
    ),
    "language": (
        ("People in {S} speak {A}", "The language of {S} is {A}"),
        ("There people speak {A}", "Its language is {A}"),
    ),
    "currency": (
        ("Shops in {S} take the {A}", "The money of {S} is the {A}"),
        ("There shops take the {A}", "Its money is the {A}"),
    ),
    "continent": (("{S} lies in {A}", "{S} is a place in {A}"), ("It lies in {A}",)),
    "food": (
        ("People in {S} eat {A}", "Cooks in {S} make {A}"),
        ("There people eat {A}", "Its food is {A}"),
    ),
    "group": (("The {S} is a kind of {A}",), ("It is a kind of {A}",)),
    "home": (
        ("The {S} lives in the {A}", "The home of the {S} is the {A}"),
        ("It lives in the {A}", "Its home is the {A}"),
    ),
    "diet": (
        ("The {S} likes to eat {A}", "The food of the {S} is {A}"),
        ("It likes to eat {A}",),
    ),
    "sound": (("The {S} says {A}", "The sound of the {S} is {a} {A}"), ("It says {A}",)),
    "young": (
        ("The young {S} is called {a} {A}", "A baby {S} is {a} {A}"),
        ("Its baby is called {a} {A}",),
    ),
    "workplace": (
        ("The {S} works in the {A}", "{N} the {S} goes to the {A}"),
        ("{P} works in the {A}", "{P} goes to the {A}"),
    ),
    "tool": (
        ("The {S} uses the {A}", "{N} the {S} needs the {A}"),
        ("{P} uses the {A}", "{P} needs the {A}"),
    ),
    "product": (
        ("The {S} makes {A}", "{N} the {S} is known for {A}"),
        ("{P} makes {A}", "{P} is known for {A}"),
    ),
}


def sentences(kind: str, relation: str) -> Sentences:
    """Return the sentences that state `relation` of a subject of `kind`."""
    return _FACTS["capital of" if (kind, relation) == ("city", "capital") else relation]
