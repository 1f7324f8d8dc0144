"""What the experiments find on the pair: patching a fact, and ablating a subject.

`experiments.patch` and `experiments.ablate` themselves are run over pairs of texts whose (subject,
tone) pair is held out of all training, and the answer and the explanation are counted: whose are
they after the intervention? At block 0 the subject's position carries the fact, and both should
become the donor's; where the fact has moved to the last position, neither should.

    rates(model, nla)["patch"]["0"]     # {'answer': ..., 'subject': ..., 'both': ...}
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .documents import PUNCTUATION
from .explanations import parse
from .facts import SUBJECTS, TONES, held_out_pairs
from .target import K

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
class Pair:
    """Two texts of one form, tone and length that differ in the subject alone."""

    clean: str
    """The donor's text."""
    corrupt: str
    """The text that is patched; its (subject, tone) is held out, as is the donor's."""
    subjects: tuple[str, str]
    """The donor's subject and the other."""
    answers: tuple[str, str]
    """What each should end in."""
    position: int
    """Where the subject stands."""


def rates(model: Any, nla: Any, *, pairs: int = 100, seed: int = 0) -> dict[str, Any]:
    """Patch and ablate, and count.

    Args:
        model: The target.
        nla: Its NLA.
        pairs: How many pairs of texts.
        seed: Of the pairs.

    Returns:
        ``pairs``; ``patch``, from where the subject's position was patched (``"0"`` to ``str(K)``,
        and ``"last, K"`` for the last position at K) to the share of pairs whose ``answer``,
        ``subject`` in the explanation, and ``both`` became the donor's; ``ablate``, the share of
        texts whose explanation still names the ``subject`` after the subject's position was set to
        a mean at block 0, and the share that named it ``before``.
    """
    from ..experiments import ablate, logit_difference, patch

    drawn = _draw(pairs, seed)
    places = {**{str(layer): (layer, True) for layer in range(K + 1)}, "last, K": (K, False)}
    sweeps: list[tuple[Pair, Any, Any]] = []
    for pair in drawn:
        metric = logit_difference(*(f" {answer}" for answer in pair.answers))
        at = [pair.position, _length(pair.corrupt) - 1]
        patched = patch(
            model, nla, pair.clean, pair.corrupt, layers=range(K + 1), positions=at, metric=metric
        )
        others = [each.clean for each in drawn[:_REFERENCES]]
        ablated = ablate(
            model,
            nla,
            pair.corrupt,
            layers=0,
            positions=pair.position,
            metric=metric,
            method="mean",
            reference=others,
            over="tokens",
        )
        sweeps.append((pair, patched, ablated))
    # All texts together, in full batches.
    nla.resolve()
    found: dict[str, list[tuple[bool, bool]]] = {name: [] for name in places}
    kept: list[tuple[bool, bool]] = []
    for pair, patched, ablated in sweeps:
        last = _length(pair.corrupt) - 1
        rows = {(row["layer"], row["position"]): row for row in patched.rows()}
        for name, (layer, at_subject) in places.items():
            row = rows[layer, pair.position if at_subject else last]
            # What cannot reach the explained residual leaves the corrupt run's text.
            named = parse(row["after"] or row["before"]).subject == pair.subjects[0]
            found[name].append((row["answer"].strip() == pair.answers[0], named))
        (row,) = ablated.rows()
        before, after = (parse(row[name]).subject for name in ("before", "after"))
        kept.append((before == pair.subjects[1], after == pair.subjects[1]))
    return {
        "pairs": len(drawn),
        "patch": {
            name: {
                "answer": _share(answer for answer, _ in flips),
                "subject": _share(named for _, named in flips),
                "both": _share(answer and named for answer, named in flips),
            }
            for name, flips in found.items()
        },
        "ablate": {
            "before": _share(before for before, _ in kept),
            "subject": _share(after for _, after in kept),
        },
    }


def _draw(count: int, seed: int) -> list[Pair]:
    """Pairs of two held-out (subject, tone) with one tone and different answers."""
    rng = random.Random(seed)
    held_out = sorted(held_out_pairs())
    possible = [
        (kind, relation, form, tone, clean, corrupt)
        for kind, relation, form in _FORMS
        for tone in TONES
        for clean, corrupt in _ordered(
            [name for name, each in held_out if each == tone and SUBJECTS[name].kind == kind]
        )
        if SUBJECTS[clean].facts[relation] != SUBJECTS[corrupt].facts[relation]
    ]
    drawn: list[Pair] = []
    for _, relation, form, tone, clean, corrupt in rng.sample(possible, min(count, len(possible))):
        filled = form.replace("{A}", rng.choice(TONES[tone]))
        texts = [filled.replace("{S}", name) for name in (clean, corrupt)]
        answers = (SUBJECTS[clean].facts[relation], SUBJECTS[corrupt].facts[relation])
        position = _words(filled).index("{S}")
        drawn.append(Pair(texts[0], texts[1], (clean, corrupt), answers, position))
    return drawn


def _ordered(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    return ((a, b) for a in names for b in names if a != b)


def _words(text: str) -> list[str]:
    """Every word and every sign is one token."""
    return "".join(f" {sign}" if sign in PUNCTUATION else sign for sign in text).split()


def _length(text: str) -> int:
    return len(_words(text))


def _share(values: Any) -> float:
    listed = [float(value) for value in values]
    return sum(listed) / len(listed)
