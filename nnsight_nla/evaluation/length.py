"""Measure how reconstruction and truth grow with the length of the text.

The first line of a text may already carry most of the vector, and later lines may add most of the
false statements. Each explanation is cut to its first line and to its first n tokens, and each cut
is scored like a full text, for reconstruction and for truth::

    curve = over_length(nla, thought, rows=source.rows)
    curve.points["line"].fve, curve.points["whole"].right["next"]
    curve.plot()

``nla.score(thought, upto=["line", 8, 16])`` measures the reconstruction alone; see `curve`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from ..checkpoint.reply import first_line
from ..core.baseline import Baseline
from ..core.numeric import is_int
from ..errors import ReconstructionError, shown
from .grounding.forms import Truth, known_truth
from .score import Failures, pair, score

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from jaxtyping import Float
    from torch import Tensor

    from ..explanation.handle import Explanation
    from ..explanation.protocols import ExplainsAndReconstructs
    from .grounding.rows import GroundedRow

LENGTHS = ("line", 4, 8, 16, 24, 32, 48, 64, 96, 128, "whole")
"""Where explanations are cut: after the first line, after n tokens, or not at all."""


@dataclass(frozen=True)
class Point:
    """Explanations of one length."""

    tokens: float
    """The mean number of tokens that are left."""
    cosine: float
    """The mean cosine of the reconstructions with the vectors."""
    fve: float | None
    """The FVE; ``None`` without a baseline."""
    right: dict[str, float] = field(default_factory=dict[str, float])
    """By statement, the share that is right; empty without labels."""


@dataclass(frozen=True)
class OverLength:
    """Figures over the length of the text."""

    points: dict[str, Point]
    """By length: ``"line"``, a number of tokens, ``"whole"``."""
    n: int
    """The number of explanations."""
    baseline: Baseline | None
    """The denominator of the FVE."""

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "points": {name: asdict(point) for name, point in self.points.items()},
            "n": self.n,
            "baseline": None if self.baseline is None else self.baseline.to_dict(),
        }

    def __str__(self) -> str:
        return "\n".join(
            f"{name:>6} {point.tokens:7.1f} tokens  cosine {point.cosine:z.3f}"
            + ("" if point.fve is None else f"  FVE {point.fve:z.3f}")
            for name, point in self.points.items()
        )

    def plot(self) -> go.Figure:
        """Draw FVE (or cosine) and truth over the mean number of tokens."""
        import plotly.graph_objects as go

        from ..view.figure import TEMPLATE

        line = self.points.get("line")
        cut = sorted(
            (point for name, point in self.points.items() if name != "line"),
            key=lambda point: point.tokens,
        )
        tokens = [point.tokens for point in cut]
        measure = "cosine" if self.baseline is None else "fve"
        figure = go.Figure(layout={"template": TEMPLATE})
        curves = {("cosine" if self.baseline is None else "FVE"): (measure, None)}
        names = dict.fromkeys(name for point in cut for name in point.right)
        curves |= {f"{name} is right": ("right", name) for name in names}
        for label, (attribute, name) in curves.items():
            every = [getattr(point, attribute) for point in cut]
            values = every if name is None else [each.get(name) for each in every]
            figure.add_scatter(
                x=tokens,
                y=values,
                name=label,
                mode="lines+markers",
                line={
                    "dash": "solid" if name is None else "dot",
                    "width": 3 if name is None else 2,
                },
            )
        if line is not None:
            figure.add_vline(x=line.tokens, annotation_text="first line", line_dash="dash")
        figure.update_xaxes(title="tokens of the explanation (mean)")
        figure.update_yaxes(title="FVE and share that is right", range=[None, 1.02])
        return figure


def over_length(
    nla: ExplainsAndReconstructs,
    explanation: Explanation | Any,
    vectors: Float[Tensor, "*shape d_model"] | None = None,
    *,
    upto: Sequence[str | int] = LENGTHS,
    rows: Sequence[GroundedRow] | None = None,
    truth: Truth | None = None,
    baseline: Baseline | None = None,
) -> OverLength:
    """Measure explanations that are cut to several lengths; a malformed reply counts 0.

    Args:
        nla: The NLA, with its reconstructor.
        explanation: A handle, or texts of `vectors`' shape.
        vectors: The vectors; a handle's own unless given.
        upto: Where to cut: ``"line"``, numbers of the verbalizer's tokens, ``"whole"``. Numbers
            that no explanation reaches are left out.
        rows: The text of each vector, with its label, in flat order; without labels, only the
            reconstruction is measured.
        truth: Compares an explanation with its label; by default that of the bundled pairs.
        baseline: The denominator of the FVE; the NLA's own unless given.

    Raises:
        CheckpointError: The NLA has no reconstructor.
        ReconstructionError: `upto` has something else, or texts, vectors and rows do not fit.
    """
    for each in upto:
        check_upto(each)
    given, held, reasons = pair(explanation, vectors, nla.checkpoint.d_model)
    texts = [None if row in reasons else text for row, text in enumerate(given)]
    if rows is not None and len(rows) != len(texts):
        raise ReconstructionError(f"Got {len(rows)} rows for {len(texts)} explanations.")
    truth = truth or (None if rows is None else known_truth(rows))
    longest = max(map(len, _ids(nla.av.tokenizer, texts)), default=0)
    reached = [each for each in upto if isinstance(each, str) or each < longest]
    over = baseline or nla.baseline
    right = partial(_right, rows=rows, truth=truth)
    return _measured(nla, texts, held, reasons, reached, over, "zero", right)


def curve(
    nla: ExplainsAndReconstructs,
    explanation: Explanation | Any,
    vectors: Float[Tensor, "*shape d_model"] | None,
    *,
    upto: Sequence[str | int],
    baseline: Baseline | None,
    failures: Failures,
) -> OverLength:
    """Score explanations that are cut to each of several lengths; see `NLA.score`.

    As in a score of one length, a reply needs no tags. Every length that was asked for has a point.
    """
    if not upto:
        raise ReconstructionError("upto is empty: expected lengths, such as ['line', 8, 16].")
    for each in upto:
        check_upto(each)
    texts, held, reasons = pair(explanation, vectors, nla.checkpoint.d_model)
    return _measured(nla, texts, held, reasons, upto, baseline, failures, lambda _: {})


def _measured(
    nla: ExplainsAndReconstructs,
    texts: Sequence[str | None],
    held: Tensor,
    reasons: dict[int, str],
    upto: Sequence[str | int],
    over: Baseline | None,
    failures: Failures,
    right: Callable[[Sequence[str | None]], dict[str, float]],
) -> OverLength:
    """Return the figures of texts at each length."""
    tokenizer, points = nla.av.tokenizer, dict[str, Point]()
    ids = _ids(tokenizer, texts)
    for each in upto:
        shorter, empty = shortened(tokenizer, texts, reasons, each, ids)
        found = score(nla.reconstruct, shorter, held, empty, baseline=over, failures=failures)
        counted = found.cosine.flatten().isfinite().tolist()
        left = _ids(tokenizer, [text for text, one in zip(shorter, counted, strict=True) if one])
        mean = found.mean
        tokens = sum(map(len, left)) / len(left)
        points[str(each)] = Point(tokens, mean["cosine"], mean.get("fve"), right(shorter))
    return OverLength(points, len(texts), over)


def shortened(
    tokenizer: Any,
    texts: Sequence[str | None],
    reasons: dict[int, str],
    upto: str | int,
    ids: Sequence[Sequence[int]] | None = None,
) -> tuple[list[str | None], dict[int, str]]:
    """Return texts cut to a length, and why rows that have no text have none.

    Args:
        tokenizer: The verbalizer's.
        texts: One per row; ``None`` where there is none.
        reasons: Row to the reason why its whole explanation failed.
        upto: ``"line"``, a number of tokens, or ``"whole"``.
        ids: The tokens of each text, if the caller has them.

    Raises:
        ReconstructionError: `upto` is something else.
    """
    check_upto(upto)
    coded = [None] * len(texts) if ids is None else ids
    shorter = [
        None if text is None else cut(tokenizer, text, upto, each)
        for text, each in zip(texts, coded, strict=True)
    ]
    empty = [row for row, text in enumerate(shorter) if not (text or "").strip()]
    return shorter, {row: reasons.get(row, "nothing is left") for row in empty}


def _ids(tokenizer: Any, texts: Sequence[str | None]) -> list[list[int]]:
    return [tokenizer(text or "", add_special_tokens=False)["input_ids"] for text in texts]


def check_upto(given: object) -> None:
    """Check where a text is to be cut.

    Raises:
        ReconstructionError: It is neither ``"line"``, ``"whole"`` nor a number of tokens from 1.
    """
    if given not in ("line", "whole") and not is_int(given, 1):
        raise ReconstructionError(
            f"upto has {shown(given)}: expected 'line', 'whole', or numbers of tokens from 1."
        )


def cut(tokenizer: Any, text: str, upto: str | int, ids: Sequence[int] | None = None) -> str:
    """Return the beginning of a text.

    Args:
        tokenizer: The verbalizer's.
        text: The text.
        upto: ``"line"``, a number of tokens, or ``"whole"``.
        ids: The text's tokens, if the caller has them.
    """
    if upto == "whole":
        return text
    if upto == "line":
        return first_line(text)
    given = tokenizer(text, add_special_tokens=False)["input_ids"] if ids is None else list(ids)
    if len(given) <= int(upto):
        return text
    return tokenizer.decode(given[: int(upto)], skip_special_tokens=True).rstrip("\ufffd")


def _right(
    texts: Sequence[str | None], rows: Sequence[GroundedRow] | None, truth: Truth | None
) -> dict[str, float]:
    if rows is None or truth is None:
        return {}
    said = [truth(text, row.label) for text, row in zip(texts, rows, strict=True) if row.label]
    known = [each for each in said if each is not None]
    names = dict.fromkeys(name for each in known for name in each)
    found = {name: [each[name] for each in known if name in each] for name in names}
    return {name: sum(values) / len(values) for name, values in found.items()}
