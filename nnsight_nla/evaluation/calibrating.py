"""Measure how often a verbalizer's explanations are right: fit its `Calibration`.

The input is vectors with known texts and labels, from documents that were not in the training
data::

    calibration = calibrate(nla, read_rows("calibration.parquet"), population="...")
    calibration, curves = validated(nla, calibration, read_rows("held_out_sources.parquet"))

* For each kind of statement it fits a logistic model of the probability that the statement is
  right, with the verbalizer's own log-odds of the statement as input. (The cosine of the
  reconstruction does not improve this model, for either bundled pair.)
* It sets the thresholds of the grades. *Strong* starts at the default margin (0.85), or at the
  median margin of these explanations if that is lower; *partial* starts at 0.5, or at their tenth
  percentile. So a verbalizer that captures less of its vectors is compared with itself.
* It measures how many first positions are noisy: those before the mean cosine reaches the level of
  later positions.
* It records the mean residual and the range of norms.

`validated` tests the calibration on other documents, preferably from other sources, and records how
often each statement is right there, and the expected calibration error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from ..core.calibration import FILE, Calibration, Residuals, Statement
from ..core.injection import unusable
from ..core.similarity import normalise
from ..core.trust import PARTIAL, STRONG, WHOLE, Trust
from ..errors import NLAError
from ..explanation.handle import Explanation
from ..storage.atomic import atomic_file
from ..verbalize.verbalizer import Verbalizer
from .confidence import features, log_odds, said
from .grounding.forms import Form, form_of, truth_of
from .reliability import Reliability, reliability

if TYPE_CHECKING:
    from ..explanation.protocols import ExplainsAndReconstructs
    from .grounding.rows import GroundedRows

_CALIBRATED = 0.05
"""The largest calibration error at which the verbalizer's own probability is kept."""
_STRONG, _PARTIAL = 0.5, 0.1
"""The quantiles of the margin."""
_TYPICAL, _NORM = 0.01, 0.005
"""The shares of vectors that are left out at both ends."""
_RIDGE = 1e-3
_NEAR, _WINDOW = 0.9, 3
"""A position is as good as later ones if `_WINDOW` positions from it have this share of their mean
cosine."""


def calibrate(
    nla: ExplainsAndReconstructs,
    source: GroundedRows,
    *,
    population: str,
    form: Form | None = None,
    early: GroundedRows | None = None,
) -> Calibration:
    """Measure a calibration.

    Args:
        nla: The NLA, with its reconstructor.
        source: Vectors with texts and labels, of documents that were not trained on.
        population: A description of these vectors, shown with every probability.
        form: The form of the labels; by default one of the bundled pairs'. If the form is unknown,
            everything except the probabilities is measured.
        early: Vectors of all positions of some documents, to measure how many first positions are
            noisy; without it, that is not measured.

    Raises:
        NLAError: The NLA has no reconstructor, or there are too few rows.
    """
    if not nla.has_reconstructor:
        raise NLAError("calibrate() needs a reconstructor: NLA(av, ar=...).")
    if len(source) < 50:
        raise NLAError(f"source has {len(source)} rows; a calibration needs 50 or more.")
    form = form or form_of(source.rows)
    statements = [Statement(each.name, (each.after, *each.until), {}) for each in form or ()]
    residuals = _residuals(source)
    told = _told(nla, source, statements, residuals, form)
    fitted = [each for each in (_fitted(each, told) for each in statements) if each is not None]
    needed = tuple(line.name for line in form or () if line.needed)
    if needed and set(needed) <= {each.name for each in fitted}:
        whole = _fitted(Statement(WHOLE, None, {}, all_of=needed), told, fitted)
        fitted = [*([] if whole is None else [whole]), *fitted]
    margins = sorted(each.margin for each in told.labels if each.margin is not None)
    if not margins:
        raise NLAError(
            f"None of the {len(source)} explanations of {source.name} could be compared with its "
            "vector, so there is nothing to calibrate. Look at them: nla.explain(source.vectors)."
        )
    return Calibration(
        population=population,
        n=len(source),
        statements=tuple(fitted),
        strong=min(STRONG, _quantile(margins, _STRONG)),
        partial=min(PARTIAL, _quantile(margins, _PARTIAL)),
        noisy_positions=None if early is None else noisy_positions(nla, early),
        residuals=residuals,
        sidecar_hash=nla.checkpoint.sidecar_hash,
    )


def validated(
    nla: ExplainsAndReconstructs,
    calibration: Calibration,
    source: GroundedRows,
    *,
    form: Form | None = None,
) -> tuple[Calibration, dict[str, Reliability]]:
    """Measure a calibration on other documents.

    Returns:
        The calibration, whose statements have their rate and error there, and the reliability curve
        of each statement.

    Raises:
        NLAError: No label of the rows is of a known form.
    """
    form = form or form_of(source.rows)
    if form is None:
        raise NLAError(
            f"{source.name} has no labels of a known form; describe it: form=(Line(...),)."
        )
    told = _told(nla, source, calibration.statements, calibration.residuals, form)
    curves: dict[str, Reliability] = {}
    found: list[Statement] = []
    for each in calibration.statements:
        predicted, right = told.predictions(calibration.statements, each.name)
        curve = reliability(predicted, right)
        if curve is not None:
            curves[each.name] = curve
        found.append(each if curve is None else replace(each, rate=curve.rate, error=curve.error))
    return replace(calibration, statements=tuple(found)), curves


def noisy_positions(nla: ExplainsAndReconstructs, source: GroundedRows) -> int:
    """Return the number of first positions whose explanations are worse than later ones.

    Args:
        nla: The NLA, with its reconstructor.
        source: Vectors of all positions of some documents, with their positions.

    Raises:
        NLAError: There are fewer than 20 positions.
    """
    told = nla.explain(source.vectors)
    nla.resolve(told)
    by: dict[int, list[float]] = {}
    for row, label in zip(source.rows, _labels(told), strict=True):
        if row.position is not None:
            by.setdefault(row.position, []).append(label.cosine or 0.0)
    places = sorted(by)
    if len(places) < 20 or places[0] != 0:
        raise NLAError(
            f"{source.name} has {len(places)} positions, from {places[0] if places else 'none'}; "
            "expected 20 or more, from 0: nnsight-nla extract --positions all --skip 0."
        )
    means = {place: fmean(by[place]) for place in places}
    later = fmean(means[place] for place in places[len(places) // 2 :])
    return next(
        (
            place
            for number, place in enumerate(places)
            if all(means[each] >= _NEAR * later for each in places[number : number + _WINDOW])
        ),
        places[-1],
    )


def save(
    calibration: Calibration, folder: str | Path, curves: Mapping[str, Reliability] | None = None
) -> Path:
    """Write a calibration into its verbalizer's folder, with the curves it was tested by.

    Raises:
        CheckpointError: It could not be read again: a number is not finite, say.
        NLAError: The file cannot be written.
    """
    path = Path(folder) / FILE
    notes = {**calibration.notes}
    if curves:
        notes["reliability"] = {name: curve.to_dict() for name, curve in curves.items()}
    text = json.dumps(replace(calibration, notes=notes).to_dict(), ensure_ascii=False)
    Calibration.from_dict(json.loads(text), str(path))
    with atomic_file(path) as file:
        file.write(f"{text}\n".encode())
    return path


@dataclass(frozen=True)
class _Told:
    """Explanations with their labels, features and truth."""

    labels: list[Trust]
    features: list[dict[str, dict[str, float | None]]]
    right: list[dict[str, bool] | None]

    def of(self, statement: Statement) -> list[tuple[dict[str, float | None], bool]]:
        """Return features and truth where both are known."""
        return [
            (row[statement.name], right[statement.name])
            for row, right in zip(self.features, self.right, strict=True)
            if right is not None and statement.name in right and statement.name in row
        ]

    def predictions(
        self, statements: Sequence[Statement], name: str
    ) -> tuple[list[float], list[bool]]:
        """Return the probabilities of one of the statements, and whether it was right."""
        known = [
            (said(statements, row).get(name), right[name])
            for row, right in zip(self.features, self.right, strict=True)
            if right is not None and name in right
        ]
        pairs = [(p, right) for p, right in known if p is not None]
        return [p for p, _ in pairs], [right for _, right in pairs]


def _told(
    nla: ExplainsAndReconstructs,
    source: GroundedRows,
    statements: Sequence[Statement],
    residuals: Residuals | None,
    form: Form | None,
) -> _Told:
    told = nla.explain(source.vectors)
    nla.resolve(told)
    texts, malformed = told.extracted()
    labels = _labels(told)
    good = [row for row in range(len(texts)) if row not in malformed]
    verbalizer = Verbalizer(nla.runtime, nla.checkpoint, nla.prompt)
    found = features(
        statements,
        residuals,
        verbalizer,
        source.vectors[good],
        [str(texts[row]) for row in good],
        [labels[row].cosine for row in good],
    )
    truth = truth_of(form)
    needed = [line.name for line in form or () if line.needed]
    right: list[dict[str, bool] | None] = []
    for row in good:
        label = source.rows[row].label
        known = None if truth is None or label is None else truth(texts[row], label)
        if known is not None:
            known = {**known, WHOLE: all(known[name] for name in needed)}
        right.append(known)
    return _Told([labels[row] for row in good], found, right)


def _labels(told: Explanation) -> list[Trust]:
    found: Any = told.trust
    return list(found)


def _fitted(
    statement: Statement, told: _Told, others: Sequence[Statement] = ()
) -> Statement | None:
    """Return the simplest model that is calibrated; ``None`` for a statement that is not made.

    If the verbalizer's own probability is calibrated already, it stays as it is: a correction that
    is fitted on some sources holds on others only as far as they are alike.

    Args:
        statement: The statement, without a model.
        told: Explanations whose truth is known.
        others: The models of the statements that it stands for.
    """
    own = replace(statement, weights={"intercept": 0.0, "log_odds": 1.0})
    predicted, right = told.predictions([*others, own], own.name)
    curve = reliability(predicted, right)
    if curve is None:
        return None
    if curve.error <= _CALIBRATED or len(set(right)) < 2:
        return own
    odds = [[1.0, log_odds(each)] for each in predicted]
    x = torch.tensor(odds, dtype=torch.float64, device="cpu")
    y = torch.tensor(right, dtype=torch.float64, device="cpu")
    intercept, slope = _logistic(x, y).tolist()
    fitted = replace(statement, weights={"intercept": intercept, "log_odds": slope})
    better = reliability(*told.predictions([*others, fitted], fitted.name))
    return fitted if better is not None and better.error < curve.error else own


def _logistic(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the coefficients of a logistic regression, with a slight ridge, by Newton's steps."""
    ridge = _RIDGE * torch.eye(x.shape[1], dtype=x.dtype, device="cpu")
    ridge[0, 0] = 0.0
    weights = torch.zeros(x.shape[1], dtype=x.dtype, device="cpu")
    for _ in range(50):
        p = (x @ weights).sigmoid()
        slope = x.T @ (p - y) / len(y) + ridge @ weights
        curve = (x * (p * (1 - p))[:, None]).T @ x / len(y) + ridge
        step = torch.linalg.solve(
            curve + 1e-9 * torch.eye(len(curve), dtype=x.dtype, device="cpu"), slope
        )
        weights = weights - step
        if float(step.abs().max()) < 1e-9:
            break
    return weights


def _residuals(source: GroundedRows) -> Residuals:
    bad = unusable(source.vectors)
    vectors = source.vectors[[row for row in range(len(source)) if row not in bad]]
    if not len(vectors):
        raise NLAError(f"None of the {len(source)} vectors of {source.name} has a direction.")
    mean = normalise(vectors).mean(dim=0)
    near = torch.nn.functional.cosine_similarity(vectors, mean[None], dim=-1)
    norms = vectors.norm(dim=-1)
    return Residuals(
        tuple(float(f"{value:.4g}") for value in mean.tolist()),
        *(
            float(f"{each.quantile(share):.4g}")
            for each, share in ((near, _TYPICAL), (norms, _NORM), (norms, 1 - _NORM))
        ),
    )


def _quantile(values: Sequence[float], share: float) -> float:
    known = torch.tensor(values, dtype=torch.float32, device="cpu")
    return float(f"{known.quantile(share):.4g}")
