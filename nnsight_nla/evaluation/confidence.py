"""Predict how probable it is that an explanation is right, with a checkpoint's calibration.

The features need no truth: the verbalizer's own likelihood of its text, of the whole and of the
part that makes a statement; the cosine of the text's reconstruction with the vector; and how
typical the vector is. `nnsight-nla calibrate` fits a logistic model to them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..checkpoint.reply import CLOSE, remainder, wrap
from ..core.calibration import Calibration, Residuals, Statement
from ..verbalize.likelihood import token_likelihoods

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from ..verbalize.verbalizer import Verbalizer

_MOST_ODDS = 12.0
"""Log-odds beyond this are rounding errors of a likelihood near 0 or 1."""
Features = dict[str, float | None]
"""Values of `calibration.FEATURES`, by name."""


def probabilities(
    calibration: Calibration,
    verbalizer: Verbalizer,
    vectors: Float[Tensor, "rows d_model"],
    texts: Sequence[str],
    cosines: Sequence[float | None],
) -> list[dict[str, float]]:
    """Return the probability of each kind of statement, for each explanation.

    Args:
        calibration: The verbalizer's.
        verbalizer: It wrote the explanations.
        vectors: Their vectors, raw.
        texts: The explanations, without tags.
        cosines: Of each text's reconstruction with its vector; ``None`` if unknown.

    Returns:
        For each text a mapping by statement; what cannot be known is left out.

    Raises:
        NLAError: The verbalizer cannot be run.
    """
    if not calibration.statements or not len(texts):
        return [{} for _ in texts]
    rows = features(
        calibration.statements, calibration.residuals, verbalizer, vectors, texts, cosines
    )
    return [said(calibration.statements, row) for row in rows]


def said(statements: Sequence[Statement], row: Mapping[str, Features]) -> dict[str, float]:
    """Return the probability of each statement from its features; unknown ones are left out.

    >>> word = Statement("word", None, {"log_odds": 1.0})
    >>> both = Statement("both", None, {"log_odds": 1.0}, all_of=("word", "word"))
    >>> found = said([both, word], {"word": {"log_odds": 0.0}})
    >>> round(found["both"], 3), found["word"]
    (0.25, 0.5)
    """
    found = {each.name: each.probability(row[each.name]) for each in statements if not each.all_of}
    for each in statements:
        if each.all_of:
            # Of those that the explanation makes.
            parts = [found.get(name) for name in each.all_of]
            known = [part for part in parts if part is not None]
            odds = log_odds(math.prod(known)) if known else None
            found[each.name] = each.probability({"log_odds": odds})
    ordered = {each.name: found[each.name] for each in statements}
    return {name: value for name, value in ordered.items() if value is not None}


def log_odds(probability: float) -> float:
    """Return the log-odds of a probability, within what a likelihood can tell.

    >>> log_odds(0.5), log_odds(0.0), log_odds(1.0)
    (0.0, -12.0, 12.0)
    """
    if probability <= 0 or probability >= 1:
        return math.copysign(_MOST_ODDS, probability - 0.5)
    odds = math.log(probability) - math.log1p(-probability)
    return max(-_MOST_ODDS, min(_MOST_ODDS, odds))


def features(
    statements: Sequence[Statement],
    residuals: Residuals | None,
    verbalizer: Verbalizer,
    vectors: Float[Tensor, "rows d_model"],
    texts: Sequence[str],
    cosines: Sequence[float | None],
) -> list[dict[str, Features]]:
    """Return the features of each explanation, by statement."""
    if not len(texts):
        return []
    tokenizer: Any = verbalizer.tokenizer
    whole = [remainder(wrap(text), verbalizer.prompt.opened) for text in texts]
    offsets = bool(getattr(tokenizer, "is_fast", False))
    coded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=offsets)
    given = torch.ones(len(texts), dtype=torch.bool, device="cpu")
    tokens = token_likelihoods(verbalizer, vectors, given, coded["input_ids"])
    typical = None if residuals is None else residuals.typical(vectors).tolist()
    found: list[dict[str, Features]] = []
    for row, (text, said, likely) in enumerate(zip(texts, whole, tokens, strict=True)):
        common: Features = {
            "likelihood": float(likely.mean()),
            "cosine": cosines[row],
            "typical": None if typical is None else typical[row],
        }
        spans = coded["offset_mapping"][row] if offsets else None
        found.append(
            {
                each.name: {**common, "log_odds": _log_odds(each, text, said, spans, likely)}
                for each in statements
                if not each.all_of
            }
        )
    return found


def _log_odds(
    statement: Statement, text: str, said: str, spans: Any, likely: Tensor
) -> float | None:
    """Return the log-odds of the part that makes a statement, by the verbalizer itself."""
    part = statement.span(text)
    if part is None or (spans is None and statement.part is not None):
        return None
    nats = likely
    if spans is not None:
        begin = len(said) - len(CLOSE) - 1 - len(text)  # See `wrap`.
        first, last = begin + part[0], begin + part[1]
        nats = likely[[i for i, (start, end) in enumerate(spans) if start < last and end > first]]
    total = float(nats.double().sum())
    if not len(nats) or not math.isfinite(total):
        return None
    total = min(total, -1e-9)
    odds = total - math.log(-math.expm1(total))
    return max(-_MOST_ODDS, min(_MOST_ODDS, odds))
