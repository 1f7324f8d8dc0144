"""Measure trust labels: compare every explanation with its controls.

A `TrustLabeller` reconstructs each text (all K samples of it) once, and compares it with its own
vector and with the other vectors of the same ``explain()`` call. The vector is also compared with
the reconstructions of the verbalizer's texts for no vector and for random directions; these are
made once per labeller. The labels are stored in the capture, so that a handle and its parts are
measured once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from ..core import similarity
from ..core.injection import unusable
from ..core.locks import Lock
from ..core.trust import PARTIAL, STRONG, Grounded, Trust, grade, margin
from ..errors import TextError
from ..explanation.caveats import (
    atypical,
    caveats,
    ignored_note,
    is_in,
    kind_note,
    quotes,
    text_so_far,
)
from ..explanation.handle import Explanation
from ..explanation.records import Capture
from .confidence import probabilities
from .controls import random_vectors
from .grounding.next_token import agrees, says_next

if TYPE_CHECKING:
    from jaxtyping import Float

    from ..core.baseline import Baseline
    from ..core.sampling import Sampling
    from ..verbalize.pending import Queue
    from ..verbalize.verbalizer import Verbalizer
    from .reconstructor import Reconstructor

RANDOM_CONTROLS = 8
"""The number of random directions that the random control averages over."""


@dataclass(frozen=True)
class Reference:
    """Reconstructions of texts that do not depend on the labelled vectors."""

    null: Float[Tensor, " d_model"] | None
    """Of the text for no vector; ``None`` if that text is empty."""
    random: Float[Tensor, "controls d_model"]
    """Of the texts for random directions, without empty texts."""


class TrustLabeller:
    """Measures trust labels; an NLA with a reconstructor gives one to its captures."""

    def __init__(
        self,
        reconstructor: Reconstructor,
        queue: Queue,
        sampling: Sampling,
        baseline: Baseline | None,
        verbalizer: Verbalizer | None = None,
    ) -> None:
        """Set up a labeller; nothing is measured yet.

        Args:
            reconstructor: Turns texts back into vectors.
            queue: Verbalizes the controls when the first label is measured.
            sampling: How the tokens of the controls are chosen.
            baseline: The denominator of the FVE; ``None`` for labels without an FVE.
            verbalizer: Says how likely its texts are; ``None`` for labels without probabilities.
        """
        self.reconstructor, self.baseline = reconstructor, baseline
        self.verbalizer = verbalizer
        self._queue, self._sampling = queue, sampling
        self._reference: Reference | None = None
        self._lock = Lock()

    def measure(self, capture: Capture, rows: Sequence[int]) -> dict[int, Trust]:
        """Label rows of a capture.

        Args:
            capture: The records of one ``explain()`` call, whose vectors are each other's controls.
            rows: The rows to label, all settled.

        Returns:
            Row to label; empty for a capture without vectors.

        Raises:
            NLAError: The reconstructor or the controls cannot be run.
        """
        if capture.vectors is None:
            return {}
        with self._lock.held():
            if self._reference is None:
                self._reference = self._measure_controls()
        return self._measure(capture, capture.vectors.float().cpu(), rows, self._reference)

    def _measure_controls(self) -> Reference:
        """Verbalize the controls in one batch and reconstruct their texts."""
        width, blank = (
            self.reconstructor.d_model,
            torch.zeros(1, self.reconstructor.d_model, dtype=torch.float32, device="cpu"),
        )
        random = random_vectors(RANDOM_CONTROLS, width, torch.Generator().manual_seed(0))
        handles = [
            Explanation.of(Capture(self._queue, blank, 1, 1, self._sampling, null=True), (1,)),
            Explanation.of(
                Capture(self._queue, random, RANDOM_CONTROLS, 1, self._sampling),
                (RANDOM_CONTROLS,),
            ),
        ]
        self._queue.resolve_only(handles)
        texts = [text for handle in handles for text in cast("list[str]", handle.text)]
        vectors = self.reconstructor.reconstruct([text for text in texts if text.strip()])
        has_null = bool(texts[0].strip())
        return Reference(vectors[0] if has_null else None, vectors[int(has_null) :])

    def _measure(
        self, capture: Capture, vectors: Tensor, rows: Sequence[int], reference: Reference
    ) -> dict[int, Trust]:
        notes = caveats(capture)
        failures = {row: capture.failure(row) for row in rows}
        said = {
            (row, k): capture.replies[row, k].text
            for row, failure in failures.items()
            if failure is None
            for k in range(capture.samples)
            if capture.replies[row, k].text.strip()
        }
        found, refused = self._reconstructed(said)
        failures |= refused
        samples: dict[int, list[Tensor]] = {}
        for (row, _), vector in found.items():
            samples.setdefault(row, []).append(vector)
        bad = unusable(vectors)
        directions = similarity.normalise(vectors)
        usable = [row for row in range(capture.count) if row not in bad]
        total, count = directions[usable].sum(dim=0), len(usable)
        foreign = _foreign(capture)
        calibration = capture.calibration
        strong, partial = (
            (STRONG, PARTIAL) if calibration is None else (calibration.strong, calibration.partial)
        )
        labels: dict[int, Trust] = {}
        for row, failure in failures.items():
            warnings = notes.get(row, ())
            if failure is not None:
                labels[row] = Trust("none", None, reason=failure, warnings=warnings)
                continue
            own, text = directions[row], found[row, 0]
            cosine = similarity.cosine(text, own).item()
            # The mean of the cosines with the others is the product with their mean direction,
            # which must not be normalised again.
            others = _product(text, (total - own) / (count - 1)) if count > 1 else None
            null = None
            if reference.null is not None:
                null = similarity.cosine(reference.null, own).item()
            chance = similarity.cosine(reference.random, own.expand_as(reference.random))
            random = chance.mean().item() if len(chance) else None
            distance = margin(cosine, others, null, random)
            agreement = _agreement(samples[row])
            reason = foreign.get(row)
            if distance is None and reason is None:
                reason = "there is no finite control to compare the cosine with"
            labels[row] = Trust(
                "none"
                if distance is None or reason is not None
                else grade(distance, agreement, strong=strong, partial=partial),
                cosine,
                None if self.baseline is None else self.baseline.fve(2 * (1 - cosine)),
                self.baseline,
                others,
                null,
                random,
                distance,
                agreement,
                warnings,
                reason,
                grounded_of(capture, row),
            )
        return self._with_probabilities(capture, vectors, labels, foreign)

    def _with_probabilities(
        self,
        capture: Capture,
        vectors: Tensor,
        labels: dict[int, Trust],
        foreign: Mapping[int, str],
    ) -> dict[int, Trust]:
        """Add the probabilities where the calibration holds: for this verbalizer's own texts."""
        calibration = capture.calibration
        if calibration is None or self.verbalizer is None or capture.labeller is not self:
            return labels
        rows = [
            row for row, label in labels.items() if label.cosine is not None and row not in foreign
        ]
        found = probabilities(
            calibration,
            self.verbalizer,
            vectors[rows],
            [capture.replies[row, 0].text for row in rows],
            [labels[row].cosine for row in rows],
        )
        for row, said in zip(rows, found, strict=True):
            if said:
                labels[row] = replace(
                    labels[row], probabilities=said, population=calibration.population
                )
        return labels

    def _reconstructed(
        self, said: dict[tuple[int, int], str]
    ) -> tuple[dict[tuple[int, int], Tensor], dict[int, str | None]]:
        """Return the vector of each (row, sample), and why the first sample of a row has none.

        If one text cannot be reconstructed (because it is too long), the others are still labelled.
        """
        reconstruct = self.reconstructor.reconstruct
        try:
            return dict(zip(said, reconstruct(list(said.values())), strict=True)), {}
        except TextError:
            found: dict[tuple[int, int], Tensor] = {}
            refused: dict[int, str | None] = {}
            for (row, sample), text in said.items():
                try:
                    found[row, sample] = reconstruct([text])[0]
                except TextError as error:
                    if sample == 0:
                        refused[row] = str(error)
            return found, refused


def _foreign(capture: Capture) -> dict[int, str]:
    """Return why vectors are not of the kind that the verbalizer was trained on, by row."""
    every = [ignored_note(each) for each in capture.ignored]
    if capture.origin.kind not in (None, "residual"):
        every.append(kind_note(str(capture.origin.kind)))
    if every:
        return dict.fromkeys(range(capture.count), "; ".join(every))
    return {
        row: f"its vector is not like those that the verbalizer was trained on: {why}"
        for row, why in atypical(capture).items()
    }


def grounded_of(capture: Capture, row: int) -> Grounded | None:
    """Return what the text shows of an explanation; ``None`` where nothing can be checked."""
    said = capture.replies[row, 0].text
    text, quoted = text_so_far(capture, row), quotes([said])
    following = None if capture.next_tokens is None else capture.next_tokens[row]
    named = says_next(said) if following else []
    quoted = [] if text is None else quoted
    if not quoted and not named:
        return None
    return Grounded(
        len(quoted),
        sum(is_in(quote, text or "") for quote in quoted),
        named[0] if named else None,
        agrees(named, following or ()) if named else None,
    )


def _product(text: Tensor, mean: Tensor) -> float:
    return (similarity.normalise(text) * mean).mean().item()


def _agreement(samples: list[Tensor]) -> float | None:
    """Return the mean cosine over all pairs of samples; ``None`` for fewer than two."""
    count = len(samples)
    if count < 2:
        return None
    directions = similarity.normalise(torch.stack(samples))
    total = directions.sum(dim=0).pow(2).mean().item()
    return (total - count) / (count * (count - 1))
