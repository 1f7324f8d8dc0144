"""Evaluate a verbalizer on held-out vectors, against null, random and shuffled controls.

All checkpoints get the same figures, so that they can be compared::

    figures = evaluate(nla, held_out_vectors, labels)
    figures["fve"]["explanation"], figures["fve"]["shuffled"], figures["retrieval"]

* **extraction**: the share of replies that are well-formed explanations; **truncated**: the share
  that reached the length limit.
* **fve** (and cosine) of the reconstructions: from the ``explanation``; from the ``label``, an
  upper bound set by the reconstructor; and from the controls, whose texts do not depend on the
  vector: ``null`` (nothing injected), ``random`` (a random direction of the same norm) and
  ``shuffled`` (another row's vector). A reply that is not well-formed counts as a cosine of 0.
* **retrieval**: the share of texts whose reconstruction is closer to their own vector than to any
  other row's.
* **says**: the log-likelihood of the label, in nats per token, with each of these vectors injected.
  It needs no reconstructor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..checkpoint.reply import remainder, wrap
from ..core.baseline import Baseline
from ..core.similarity import normalise
from ..errors import NLAError
from ..explanation.asked import check_single
from ..explanation.handle import Explanation
from ..verbalize.likelihood import likelihoods
from ..verbalize.verbalizer import Verbalizer
from .controls import Controls
from .controls import controls as make_controls
from .score import pair, score

if TYPE_CHECKING:
    from jaxtyping import Float

    from ..explanation.protocols import Explains, ExplainsAndReconstructs, Reconstructs
    from .score import Score

Figures = dict[str, Any]
"""Nested mappings of numbers and names, ready for JSON."""


def evaluate(
    nla: ExplainsAndReconstructs,
    vectors: Float[Tensor, "rows d_model"],
    labels: Sequence[str] | None = None,
    *,
    baseline: Baseline | None = None,
    seed: int = 0,
) -> Figures:
    """Evaluate a verbalizer on held-out vectors.

    Args:
        nla: The NLA; without a reconstructor there is neither FVE nor retrieval.
        vectors: Raw residuals; at least two.
        labels: The text that each explanation should be, if known.
        baseline: The denominator of the FVE; by default the NLA's own, or else these vectors'.
        seed: The seed of the controls.

    Raises:
        NLAError: There are fewer than two vectors, or another number of labels.
    """
    if len(vectors) < 2:
        raise NLAError(
            f"vectors has {len(vectors)} rows, and at least two are needed: a control is another "
            "row's vector. Hold out more documents."
        )
    if labels is not None and len(labels) != len(vectors):
        raise NLAError(f"Got {len(labels)} labels for {len(vectors)} vectors; pass one for each.")
    told, controls = explained(nla, vectors, seed=seed)
    figures: Figures = {
        "rows": len(vectors),
        "extraction": 1 - len(told.extracted()[1]) / len(vectors),
        "truncated": _mean([finish == "length" for finish in told.finish]),
        "fve": None,
        "cosine": None,
        "baseline": None,
        "retrieval": None,
        "says": None if labels is None else _says(nla, vectors, labels, controls),
    }
    if nla.has_reconstructor:
        over = baseline or nla.baseline
        over = over or Baseline.from_vectors(vectors, name=f"these {len(vectors)} vectors")
        sources: dict[str, Any] = {"explanation": told, **texts_of(controls, len(vectors))}
        if labels is not None:
            sources["label"] = list(labels)
        means = round_trip(nla, sources, vectors, over)
        figures |= {
            "fve": {name: mean["fve"] for name, mean in means.items()},
            "cosine": {name: mean["cosine"] for name, mean in means.items()},
            "baseline": over.to_dict(),
            "retrieval": retrieval(nla, told, vectors),
        }
    return figures


def explained(
    nla: Explains, vectors: Float[Tensor, "rows d_model"], *, seed: int = 0
) -> tuple[Explanation, Controls]:
    """Explain the vectors and as many controls, all in the same batches.

    Returns:
        The handle on the explanations, and the controls.
    """
    check_single(nla.checkpoint, "evaluate")
    told = nla.explain(vectors)
    controls = make_controls(nla, len(vectors), vectors.shape[-1], vectors.detach(), seed)
    nla.resolve()
    return told, controls


def texts_of(controls: Controls, rows: int) -> dict[str, list[str | None]]:
    """Return the texts of each control, one per row; ``None`` for a malformed reply."""
    null = controls.null.extracted()
    found: dict[str, list[str | None]] = {"null": [_proper(*null, 0)] * rows}
    for name, handle in (("random", controls.random), ("shuffled", controls.shuffled)):
        if handle is not None:
            found[name] = [_proper(*handle.extracted(), row) for row in range(rows)]
    return found


def round_trip(
    nla: Reconstructs,
    sources: dict[str, Any],
    vectors: Float[Tensor, "rows d_model"],
    baseline: Baseline,
) -> dict[str, dict[str, float]]:
    """Measure how well the texts of each source reconstruct the vectors.

    Args:
        nla: An NLA with a reconstructor.
        sources: Name to a handle or a list of texts, one per vector; a missing text counts as a
            cosine of 0.
        vectors: The vectors that the reconstructions are compared with.
        baseline: The denominator of the FVE.

    Returns:
        Name to the mean cosine, MSE and FVE.
    """
    held = {
        name: source if isinstance(source, Explanation) else [each or "" for each in source]
        for name, source in sources.items()
    }
    return {name: _score(nla, source, vectors, baseline).mean for name, source in held.items()}


def retrieval(
    nla: Reconstructs, told: Explanation, vectors: Float[Tensor, "rows d_model"]
) -> float:
    """Return the share of texts whose reconstruction is closest to their own vector."""
    texts, reasons = told.extracted()
    good = [row for row in range(len(texts)) if row not in reasons]
    if not good:
        return 0.0
    found = normalise(nla.reconstruct([str(texts[row]) for row in good]))
    nearest = (found @ normalise(vectors.float().cpu()).T).argmax(dim=-1).tolist()
    return sum(map(int.__eq__, nearest, good)) / len(texts)


def _score(
    nla: Reconstructs, source: Explanation | list[str], vectors: Tensor, baseline: Baseline
) -> Score:
    texts, held, reasons = pair(source, vectors, vectors.shape[-1])
    return score(nla.reconstruct, texts, held, reasons, baseline=baseline, failures="zero")


def _says(
    nla: Explains, vectors: Tensor, labels: Sequence[str], controls: Controls
) -> dict[str, float]:
    """Return the mean log-likelihood of the labels with each kind of vector, in nats per token."""
    verbalizer = Verbalizer(nla.runtime, nla.checkpoint, nla.prompt)
    tagged = [remainder(wrap(label), nla.prompt.opened) for label in labels]
    ids = verbalizer.tokenizer(tagged, add_special_tokens=False)["input_ids"]
    everyone = torch.ones(len(vectors), dtype=torch.bool, device="cpu")
    shuffled = vectors[list(controls.order or range(len(vectors)))]
    kinds: dict[str, tuple[Tensor, Tensor]] = {
        "explanation": (vectors, everyone),
        "null": (vectors, ~everyone),
        "random": (controls.random.vectors, everyone),
        "shuffled": (shuffled, everyone),
    }
    found: dict[str, float] = {}
    for name, (written, given) in kinds.items():
        found[name] = likelihoods(verbalizer, written, given, ids).mean().item()
    return found


def _proper(texts: Sequence[str | None], reasons: dict[int, str], row: int) -> str | None:
    return None if row in reasons else texts[row]


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values)
