"""Measure a policy on held-out vectors: how much its texts carry, and whether they are true.

The reward can rise while texts get no truer, because the reconstructor is fooled or moves along. So
the fraction of variance explained is measured with the warm start's reconstructor (``fve``) and,
where it is trained too, with the current one (``fve_trained``); and where the file has the texts
that its vectors were read in, explanations are compared with these (``grounded_...``), as
`evaluation.grounded` does. Texts are greedy, by the engine that inference uses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ...checkpoint.reply import extract
from ...core.baseline import Baseline
from ...core.sampling import Sampling
from ...core.similarity import cosine
from ...errors import NLAError
from ...evaluation.grounding.matching import match
from ...evaluation.grounding.rows import GroundedRows, has_texts, read_rows
from ...evaluation.score import score
from ...explanation.handle import Explanation
from ..files import Report
from ..grounded_figures import PREFIX, SOURCE, by_text
from ..held_out import Figures, Metric
from ..published import Published
from ..rows import TrainingError
from .pair import Pair
from .settings import RLWatching

POSITION = f"{PREFIX}position"
"""The share of texts whose reconstruction is nearest to their own vector, of five positions of the
same document."""
_POSITIONS = 10
"""The most rows of a document that serve as candidates."""


@dataclass(frozen=True)
class HeldOutVectors:
    """Held-out rows to measure a policy on."""

    vectors: Float[Tensor, "rows d_model"]
    """The vectors, raw."""
    labels: list[str]
    """The explanation in each row; empty where the file has none."""
    grounded: GroundedRows | None
    """The same rows first, with their texts, and then other positions of their documents; ``None``
    where texts are not compared."""

    def __len__(self) -> int:
        return len(self.vectors)


def read_held_out(
    source: Published, d_model: int, watching: RLWatching, report: Report | None
) -> HeldOutVectors | None:
    """Read held-out rows; ``None`` if nothing is measured.

    Args:
        source: The training rows; the documents that they leave out are measured.
        d_model: The width of a vector.
        watching: How many rows, and whether to compare texts.
        report: Called with a line where texts cannot be compared.

    Raises:
        TrainingError: No document is held out, or texts are to be compared and there are none.
    """
    if not watching.rows or source.part == "all":
        return None
    rows = Published(source.file, part="held out", held_out=source.held_out, limit=watching.rows)
    if len(rows) == 0:
        raise TrainingError(
            f"{source.file} has no document among the {source.held_out:.0%} that are held out. "
            "Hold out more (held_out=0.2), or none (held_out=0)."
        )
    vectors = torch.cat(list(rows.vectors(d_model)))
    labels = _labels(rows, d_model)
    grounded = None
    if watching.grounded is not False and has_texts(rows.file):
        try:
            grounded = _grounded(source, rows, labels)
        except NLAError as error:
            if watching.grounded:
                raise TrainingError(str(error)) from error
            if report is not None:
                report(f"no grounded figures: {error}")
    elif watching.grounded:
        raise TrainingError(
            f"{source.file} does not have the texts that its vectors were read in, which "
            "grounded=True compares explanations with. `nnsight-nla extract` writes them. Read the "
            "vectors again, or leave grounded out."
        )
    return HeldOutVectors(vectors, labels, grounded)


def names_of(
    rows: HeldOutVectors, judges: Mapping[str, Metric], *, fve: bool, trained: bool
) -> list[str]:
    """Return the names of the figures; a measurement may lack some of those by text."""
    names = ["extraction", "length", "cosine", *(["fve"] if fve else [])]
    names += ["fve_trained"] if fve and trained else []
    if rows.grounded is not None:
        count = len(rows)
        told = [row.label or row.text for row in rows.grounded.rows[:count]]
        names += by_text(rows.grounded.rows[:count])(told, told, rows.vectors)
        # As if every reconstruction were perfect: it tells whether there are candidates.
        names += _matches(
            rows.grounded,
            told,
            lambda _, vectors: torch.zeros(len(vectors), dtype=torch.float32, device="cpu"),
        )
    return [*names, *judges]


def measure(
    pair: Pair,
    rows: HeldOutVectors,
    baseline: Baseline | None,
    watching: RLWatching,
    max_new_tokens: int,
) -> Figures:
    """Return the figures of the current policy.

    Args:
        pair: The policy and the reconstructors.
        rows: From `read_held_out`.
        baseline: The denominator of the FVE; without it there is none.
        watching: Has the caller's own figures.
        max_new_tokens: The longest text.
    """
    pair.hand_over()
    handle = pair.nla.explain(rows.vectors, sampling=Sampling(max_new_tokens=max_new_tokens))
    pair.nla.resolve(handle)
    texts, failed = _texts(handle)
    lengths = [handle.capture.replies[row, 0].new_tokens for row in range(len(rows))]
    figures: Figures = {
        "extraction": 1 - len(failed) / len(texts),
        "length": sum(lengths) / len(lengths),
    }
    with pair.fixed_reconstructor():
        back = _reconstructions(pair.reconstruct, texts)
        figures |= _carried(back, texts, rows.vectors, failed, baseline)
        if rows.grounded is not None:
            figures |= by_text(rows.grounded.rows[: len(rows)])(texts, rows.labels, rows.vectors)
            figures |= _matches(
                rows.grounded, texts, lambda told, vectors: cosine(back(told), vectors.cpu())
            )
    if pair.reconstructor is not None:
        now = _reconstructions(pair.reconstruct, texts)
        figures |= {
            f"{name}_trained": value
            for name, value in _carried(now, texts, rows.vectors, failed, baseline).items()
            if name == "fve"
        }
    for name, judge in watching.judges.items():
        figures[name] = float(judge(texts, rows.labels, rows.vectors))
    return figures


def _texts(handle: Explanation) -> tuple[list[str], dict[int, str]]:
    """Return the texts, empty where the reply is not proper, and why it is not."""
    texts, failed = handle.extracted()
    return ["" if number in failed else text or "" for number, text in enumerate(texts)], dict(
        failed
    )


def _reconstructions(
    reconstruct: Callable[[list[str]], Tensor], texts: Sequence[str]
) -> Callable[[Sequence[str]], Tensor]:
    different = list(dict.fromkeys(filter(str.strip, texts)))
    found = dict(zip(different, reconstruct(different), strict=True)) if different else {}
    return lambda these: torch.stack([found[text] for text in these])


def _carried(
    back: Callable[[Sequence[str]], Tensor],
    texts: list[str],
    vectors: Tensor,
    failed: dict[int, str],
    baseline: Baseline | None,
) -> Figures:
    """Return cosine and FVE; a failed reply counts as a cosine of 0."""
    mean = score(back, texts, vectors, failed, baseline=baseline, failures="zero").mean
    return {name: mean[name] for name in ("cosine", "fve") if mean.get(name) is not None}


def _matches(
    grounded: GroundedRows, texts: Sequence[str], scores: Callable[[Sequence[str], Tensor], Tensor]
) -> Figures:
    told, numbers = [text or None for text in texts], range(len(texts))
    found = {
        SOURCE: match("source", told, grounded, numbers, scores),
        POSITION: match("position", told, grounded, numbers, scores),
    }
    return {name: each.value for name, each in found.items() if each is not None}


def _grounded(source: Published, rows: Published, labels: list[str]) -> GroundedRows:
    """Read the texts of the rows, and after them of other rows of their documents."""
    numbers, documents = rows.numbers(), rows.documents()
    every = Published(source.file, part="held out", held_out=source.held_out)
    taken = {each: documents.count(each) for each in documents}
    known = set(numbers)
    for number, document in zip(every.numbers(), every.documents(), strict=True):
        if number not in known and 0 < taken.get(document, 0) < _POSITIONS:
            taken[document] += 1
            numbers.append(number)
    found = read_rows(source.file, numbers)
    given = [*labels, *[""] * (len(numbers) - len(labels))]
    labelled = [
        row if row.label or not label else replace(row, label=label)
        for row, label in zip(found.rows, given, strict=True)
    ]
    return GroundedRows(tuple(labelled), found.vectors, found.name)


def _labels(rows: Published, d_model: int) -> list[str]:
    if not rows.has_labels:
        return [""] * len(rows)
    return [extract(each)[0] for batch in rows.batches(d_model) for each in batch.responses]
