"""Measure what patching a fact and ablating a subject do to the answer and to the explanation.

`experiments.patch` and `experiments.ablate` are run over pairs of texts whose (subject, tone) pairs
are held out of all training. Of which subject are the answer and the explanation after the
intervention? At block 0 the subject's position carries the fact, and both should become the
donor's. At later blocks the fact has moved on to the last position, and neither should::

    intervention_rates(model, nla)["patch"]["0"]     # {'answer': ..., 'subject': ..., 'both': ...}
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from nnsight import TransformersModel

from nnsight_nla import NLA, Sweep
from nnsight_nla.experiments import ablate, logit_difference, patch
from nnsight_nla.tiny.documents import PUNCTUATION
from nnsight_nla.tiny.examples import K
from nnsight_nla.tiny.explanations import parse
from nnsight_nla.tiny.facts import SUBJECTS, TONES, held_out_pairs

# Kind of subject, relation, and a prompt that its answer completes.
_FORMS = (
    ("city", "language", "What a {A} day! People in {S} speak"),
    ("city", "capital", "What a {A} day! {S} is the capital of"),
    ("country", "food", "What a {A} day! Cooks in {S} make"),
    ("country", "currency", "What a {A} day! Shops in {S} take the"),
    ("animal", "home", "What a {A} day! The {S} lives in the"),
    ("animal", "diet", "What a {A} day! The {S} likes to eat"),
    ("job", "workplace", "What a {A} day! The {S} works in the"),
    ("job", "product", "What a {A} day! The {S} makes"),
)
_REFERENCES = 8


@dataclass(frozen=True)
class TextPair:
    """Two texts of one form, tone and length that differ in the subject alone."""

    clean: str
    """The donor's text."""
    corrupt: str
    """The text that is patched; its (subject, tone) is held out, as is the donor's."""
    subjects: tuple[str, str]
    """The donor's subject and the other text's."""
    answers: tuple[str, str]
    """The word that should complete each text."""
    subject_position: int
    """The position of the subject."""
    last_position: int
    """The last position."""


def intervention_rates(
    model: TransformersModel, nla: NLA, *, pairs: int = 100, seed: int = 0
) -> dict[str, Any]:
    """Patch and ablate, and count whose answer and whose explanation results.

    Args:
        model: The target.
        nla: Its NLA.
        pairs: How many pairs of texts.
        seed: The seed that the pairs are drawn with.

    Returns:
        ``pairs``; ``patch``, which maps the site (``"0"`` to ``str(K)`` for that block at the
        subject's position, ``"last, K"`` for block K at the last position) to the share of pairs
        whose ``answer``, ``subject`` in the explanation, and ``both`` became the donor's;
        ``ablate``, the share of texts whose explanation still names the ``subject`` after the
        subject's position was set to a mean at block 0, and the share that named it ``before``.
    """
    drawn = _draw(pairs, seed)
    references = [pair.clean for pair in drawn[:_REFERENCES]]
    sweeps = [(pair, *_intervene(model, nla, pair, references)) for pair in drawn]
    nla.resolve()  # all texts together, in full batches
    sites = {**{str(layer): (layer, "subject") for layer in range(K + 1)}, "last, K": (K, "last")}
    patched: dict[str, list[tuple[bool, bool]]] = {name: [] for name in sites}
    ablated: list[tuple[bool, bool]] = []
    for pair, patch_sweep, ablate_sweep in sweeps:
        position = {"subject": pair.subject_position, "last": pair.last_position}
        rows = {(row["layer"], row["position"]): row for row in patch_sweep.rows()}
        for name, (layer, at) in sites.items():
            row = rows[layer, position[at]]
            # A patch that cannot reach the explained residual leaves the corrupt run's text.
            named = parse(row["after"] or row["before"]).subject == pair.subjects[0]
            patched[name].append((row["answer"].strip() == pair.answers[0], named))
        (row,) = ablate_sweep.rows()
        before, after = (parse(row[name]).subject for name in ("before", "after"))
        ablated.append((before == pair.subjects[1], after == pair.subjects[1]))
    return {
        "pairs": len(drawn),
        "patch": {
            name: {
                "answer": _share(answer for answer, _ in outcomes),
                "subject": _share(named for _, named in outcomes),
                "both": _share(answer and named for answer, named in outcomes),
            }
            for name, outcomes in patched.items()
        },
        "ablate": {
            "before": _share(before for before, _ in ablated),
            "subject": _share(after for _, after in ablated),
        },
    }


def _intervene(
    model: TransformersModel, nla: NLA, pair: TextPair, references: list[str]
) -> tuple[Sweep, Sweep]:
    """Patch the donor into the corrupt text, and ablate the corrupt text's subject."""
    metric = logit_difference(*(f" {answer}" for answer in pair.answers))
    patched = patch(
        model,
        nla,
        pair.clean,
        pair.corrupt,
        layers=range(K + 1),
        positions=[pair.subject_position, pair.last_position],
        metric=metric,
    )
    ablated = ablate(
        model,
        nla,
        pair.corrupt,
        layers=0,
        positions=pair.subject_position,
        metric=metric,
        method="mean",
        reference=references,
        over="tokens",
    )
    return patched, ablated


def _draw(count: int, seed: int) -> list[TextPair]:
    """Draw pairs of two held-out (subject, tone) with one tone and different answers."""
    rng = random.Random(seed)
    held_out = sorted(held_out_pairs())
    possible = [
        (relation, form, tone, clean, corrupt)
        for kind, relation, form in _FORMS
        for tone in TONES
        for clean, corrupt in permutations(
            [name for name, each in held_out if each == tone and SUBJECTS[name].kind == kind], 2
        )
        if SUBJECTS[clean].facts[relation] != SUBJECTS[corrupt].facts[relation]
    ]
    drawn: list[TextPair] = []
    for relation, form, tone, *subjects in rng.sample(possible, min(count, len(possible))):
        filled = form.replace("{A}", rng.choice(TONES[tone]))
        clean, corrupt = subjects
        words = _words(filled)
        drawn.append(
            TextPair(
                filled.replace("{S}", clean),
                filled.replace("{S}", corrupt),
                (clean, corrupt),
                (SUBJECTS[clean].facts[relation], SUBJECTS[corrupt].facts[relation]),
                subject_position=words.index("{S}"),
                last_position=len(words) - 1,
            )
        )
    return drawn


def _words(text: str) -> list[str]:
    """Split a text into its words and punctuation marks, each of which is one token."""
    return "".join(f" {sign}" if sign in PUNCTUATION else sign for sign in text).split()


def _share(values: Iterable[bool]) -> float:
    listed = [float(value) for value in values]
    return sum(listed) / len(listed)
