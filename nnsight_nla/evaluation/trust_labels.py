"""Measuring trust: every explanation of a capture against its controls, in one batch of texts.

`judge` reconstructs each text (all K samples of it) once, and holds it against its own vector, the
other vectors of the same ``explain()`` call, and the reconstructions of what the verbalizer says
with nothing written and for random directions. The controls are made once per NLA; the labels are
kept on the capture, so a handle and its parts are measured once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core import similarity
from ..core.trust import Trust, grade, margin
from ..errors import ReconstructionError
from ..explanation.caveats import caveats
from ..explanation.records import Capture

if TYPE_CHECKING:
    from jaxtyping import Float

    from ..core.baseline import Baseline
    from .controls import Controls

RANDOM_CONTROLS = 8
"""How many random directions the random control is a mean over."""


@dataclass(frozen=True)
class Reference:
    """What the reconstructor makes of texts that know nothing of any vector."""

    null: Float[Tensor, " d_model"] | None
    """Of the text for no vector; ``None`` where that text is empty."""
    random: Float[Tensor, "controls d_model"]
    """Of the texts for random directions."""

    @staticmethod
    def measure(nla: Any) -> Reference:
        """Make the controls of `nla` and reconstruct their texts."""
        controls: Controls = nla.controls(RANDOM_CONTROLS)
        nla.resolve([controls.null, controls.random])
        texts = [controls.null.text, *controls.random.text]
        said = [text for text in texts if text.strip()]
        vectors = nla.reconstruct(said)
        first = 1 if texts[0].strip() else 0
        return Reference(vectors[0] if first else None, vectors[first:])


def judge(
    nla: Any, capture: Capture, rows: list[int], reference: Reference, baseline: Baseline | None
) -> dict[int, Trust]:
    """Label rows of a capture.

    Args:
        nla: What turns text back into vectors.
        capture: One ``explain()`` call; its rows are each other's controls.
        rows: Those to label; they have settled.
        reference: The controls of this NLA.
        baseline: The FVE's denominator, where there is one.

    Returns:
        Row to label.
    """
    if capture.vectors is None:
        return {}
    notes = caveats(capture)
    labels: dict[int, Trust] = {}
    good: list[int] = []
    for row in rows:
        reason = capture.failure(row)
        if reason is None:
            good.append(row)
        else:
            labels[row] = Trust("none", None, reason=reason, warnings=notes.get(row, ()))
    if not good:
        return labels
    said = {
        (row, k): capture.replies[row, k].text
        for row in good
        for k in range(capture.samples)
        if capture.replies[row, k].text.strip()
    }
    back, refused = _reconstructed(nla, said)
    for row, reason in refused.items():
        labels[row] = Trust("none", None, reason=reason, warnings=notes.get(row, ()))
    samples: dict[int, list[Tensor]] = {}
    for (row, _), vector in back.items():
        samples.setdefault(row, []).append(vector)
    directions = similarity.normalise(capture.vectors.float().cpu())
    usable = [row for row in range(capture.count) if row not in capture.errors]
    total, count = directions[usable].sum(dim=0), len(usable)
    for row in (row for row in good if row not in refused):
        own, text = directions[row], back[row, 0]
        cosine = similarity.cosine(text, own).item()
        rest = (total - own) / max(count - 1, 1)
        # The mean of cosines is the product with the mean direction, which is shorter than one.
        others = _product(text, rest) if count > 1 else None
        null = None if reference.null is None else similarity.cosine(reference.null, own).item()
        chance = similarity.cosine(reference.random, own.expand_as(reference.random))
        random = chance.mean().item() if len(chance) else None
        far = margin(cosine, others, null, random)
        agreement = _agreement(samples[row])
        labels[row] = Trust(
            grade(far, agreement),
            cosine,
            None if baseline is None else baseline.fve(2 * (1 - cosine)),
            baseline,
            others,
            null,
            random,
            far,
            agreement,
            notes.get(row, ()),
        )
    return labels


def _reconstructed(
    nla: Any, said: dict[tuple[int, int], str]
) -> tuple[dict[tuple[int, int], Tensor], dict[int, str]]:
    """The vector of each (row, sample), and the rows whose first text is refused, with the reason.

    One text that cannot be read (too long, say) must not take the labels of all others with it.
    """
    try:
        return dict(zip(said, nla.reconstruct(list(said.values())), strict=True)), {}
    except ReconstructionError:
        back: dict[tuple[int, int], Tensor] = {}
        refused: dict[int, str] = {}
        for (row, sample), text in said.items():
            try:
                back[row, sample] = nla.reconstruct(text)
            except ReconstructionError as error:
                if sample == 0:
                    refused[row] = str(error)
        return back, refused


def _product(text: Tensor, mean: Tensor) -> float:
    return (similarity.normalise(text) * mean).mean().item()


def _agreement(samples: list[Tensor]) -> float | None:
    """The mean cosine over all pairs of samples."""
    count = len(samples)
    if count < 2:
        return None
    directions = similarity.normalise(torch.stack(samples))
    total = directions.sum(dim=0).pow(2).mean().item()
    return (total - count) / (count * (count - 1))
