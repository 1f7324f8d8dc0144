"""Label a matrix of directions, and put the labels that mean something first.

A direction (a row of a sparse autoencoder's decoder, a principal component, a row of a weight
matrix) gets a fluent text like any other vector. Whether the text is about this direction is a
question for its controls: the reconstruction of the text is compared with the other rows, with the
text for no vector and with those for random directions. The table is sorted by that margin::

    labels = nla.label(sae.W_dec[:200], names=features)
    labels.to_pandas().head()
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

from ..errors import InjectionError, shown
from ..explanation.arguments import check_vectors
from ..explanation.caveats import kind_note
from ..view.escaping import html, readable
from ..view.table import table

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from ..checkpoint.origin import Kind
    from ..core.sampling import Sampling
    from ..core.trust import Trust
    from ..explanation.handle import Explanation
    from ..explanation.protocols import ExplainsAndReconstructs

_LINES, _LONGEST = 20, 4000


@dataclass(frozen=True)
class Label:
    """The label of one direction."""

    name: str
    """Its name."""
    row: int
    """Its row in the matrix, from 0."""
    text: str | None
    """The explanation; ``None`` if the row cannot have one."""
    margin: float | None
    """How far the text beats the best of its controls: 0 no better, 1 a perfect cosine."""
    cosine: float | None
    """The cosine of the direction with the reconstruction of the text."""
    others: float | None
    """The mean cosine of that reconstruction with the other rows."""
    null: float | None
    """The cosine of the direction with the reconstruction of the text for no vector."""
    random: float | None
    """The mean cosine with the reconstructions of texts for random directions."""
    grade: str
    """The grade of the trust label: ``none`` for anything but residuals."""
    error: str | None
    """Why the text or the margin is missing; ``None`` if neither is."""


class Labels(Sequence[Label]):
    """Labels of directions, those that beat their controls by most first."""

    def __init__(self, labels: Sequence[Label], explanation: Explanation, note: str | None) -> None:
        """Use ``nla.label`` to make one."""
        self._labels = tuple(labels)
        self.explanation, self.note = explanation, note

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: Any) -> Any:
        return self._labels[index]

    def to_pandas(self) -> pd.DataFrame:
        """Return a table with a row per direction, in this order."""
        import pandas as pd

        found = pd.DataFrame([asdict(each) for each in self._labels], columns=list(_COLUMNS))
        return found.astype(dict.fromkeys(_FIGURES, "Float64"))

    def __repr__(self) -> str:
        return f"<Labels of {len(self)} directions>"

    def __str__(self) -> str:
        lines = [f"{_figure(each.margin):>6}  {each.name}: {_said(each)}" for each in self._labels]
        left = [f"... and {len(lines) - _LINES} more; .to_pandas() has all"]
        kept = lines[:_LINES] + (left if len(lines) > _LINES else [])
        return "\n".join(["margin  direction", *kept, *([] if self.note is None else [self.note])])

    def _repr_html_(self) -> str:
        rows = [
            [html(each.name), *_figures(each), html(readable(_said(each), _LONGEST))]
            for each in self._labels
        ]
        return table(("direction", *_FIGURES, "text"), rows, caption=html(self.note or ""))


_FIGURES = ("margin", "cosine", "others", "null", "random")
_COLUMNS = tuple(Label.__dataclass_fields__)


def label_directions(
    nla: ExplainsAndReconstructs,
    directions: object,
    names: Sequence[object] | None,
    *,
    kind: Kind,
    sampling: Sampling | None,
) -> Labels:
    """Label the rows of a matrix; see `NLA.label`."""
    check_vectors(directions, nla.checkpoint.d_model)
    matrix = cast("Tensor", directions)
    if matrix.ndim != 2:
        raise InjectionError(
            f"label: expected a matrix [rows, {nla.checkpoint.d_model}], got {list(matrix.shape)}. "
            "For one direction or a batch of another shape: nla.explain(vectors, kind='direction')."
        )
    called = list(range(len(matrix))) if names is None else list(names)
    if isinstance(names, str) or len(called) != len(matrix):
        raise InjectionError(
            f"label: names={shown(names)} has {len(called)} names for {len(matrix)} directions. "
            "Pass a list with one for each row."
        )
    thoughts = nla.explain(matrix, kind=kind, sampling=sampling)
    texts, reasons = thoughts.extracted()
    trust = cast("list[Trust]", thoughts.trust)
    labels = [
        Label(
            str(name), row, texts[row], label.margin, label.cosine, label.others, label.null,
            label.random, str(label.grade), reasons.get(row),
        )
        for row, (name, label) in enumerate(zip(called, trust, strict=True))
    ]  # fmt: skip
    labels.sort(key=lambda each: -round(_known(each.margin), 2))
    return Labels(labels, thoughts, None if kind == "residual" else kind_note(kind))


def _known(margin: float | None) -> float:
    return -math.inf if margin is None else margin


def _figures(label: Label) -> list[str]:
    return [_figure(getattr(label, name)) for name in _FIGURES]


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:z.2f}"


def _said(label: Label) -> str:
    return f"[{label.error}]" if label.text is None else " ".join(label.text.split())
