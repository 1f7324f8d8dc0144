"""`Sweep`: a table of interventions, each with its effect and the explanations before and after.

Use it as a table, a plot or a file::

    sweep.to_pandas()                       # a row per cell and explained position
    sweep.plot()                            # layers × positions, the explanations on hover
    sweep.to_html("sweep.html")             # the same as a page, to send or publish
    sweep.differences()                     # what was added and removed, cosines, effects
    sweep.differences("text, not output")   # where the state changed and the answer did not
    sweep.to_parquet("sweep.parquet")       # with the vectors; Sweep.from_parquet, resume=

``before`` is the run without the intervention (for a patch: the corrupt run), ``after`` the run
with it, and ``clean`` the run that a patch takes its values from. The texts are generated together
when they are first needed; equal vectors are explained once. A cell that cannot change the
explained residual has no ``after``; its ``reach`` says why (see `records`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from ..checkpoint.origin import Claims, Origin
from ..core.similarity import cosine
from ..errors import ExperimentError, shown
from ..evaluation.compare import Difference, difference, text_distances
from ..storage.atomic import atomic_file
from . import page, picture, records, storage
from .records import REACHES, Cell, Header, Outcome, Texts, reach

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from ..explanation.protocols import ExplainsAndReconstructs

_DECIMALS = 4
"""How precisely a share of the largest effect is known; the rest is rounding errors."""
_SHOWN = 12

Order = Literal["place", "text, not output", "output, not text"]
"""How `Sweep.differences` sorts."""


class Sweep:
    """Interventions, their effects, and the explanations before and after."""

    def __init__(
        self,
        header: Header,
        cells: Sequence[Cell],
        runs: Mapping[str, Outcome],
        outcomes: Mapping[Cell, Outcome],
        nla: ExplainsAndReconstructs | None = None,
        known: Texts | None = None,
        identity: Mapping[str, str] | None = None,
    ) -> None:
        """Use `patch`, `ablate`, `steer` or `Sweep.from_parquet` to make one."""
        self.header = header
        self.cells = tuple(cells)
        self.runs = dict(runs)
        self.outcomes = {cell: outcomes[cell] for cell in self.cells if cell in outcomes}
        self.nla = nla
        self._identity = dict(identity or {})
        every = [*self.runs.values(), *self.outcomes.values()]
        vectors = [vector for each in every for vector in each.residuals.values()]
        self.texts = Texts(vectors, nla, known)

    @property
    def identity(self) -> dict[str, str]:
        """Hashes of the metric and of the verbalizer, if known."""
        return {**storage.identify_verbalizer(self.nla), **self._identity}

    @property
    def complete(self) -> bool:
        """Whether every cell was run."""
        return len(self.outcomes) == len(self.cells)

    def effect(self, value: float | None) -> float | None:
        """Return the effect of a run with this metric.

        For `patch` it is normalised: 1 for the clean run, 0 for the corrupt run. Otherwise it is
        the difference from the untouched run, in the metric's unit.
        """
        return records.effect(value, self.header, self.runs)

    def rows(self) -> list[dict[str, Any]]:
        """Return plain records: one for each cell and explained position.

        Raises:
            VerbalizationError: Verbalizing failed; what had settled is kept.
        """
        places = [(cell, at) for cell in self.outcomes for at in self.header.explained.of(cell)]
        base = self.runs[self.header.baseline].residuals
        pairs = [(base.get(at), self.outcomes[cell].residuals.get(at)) for cell, at in places]
        angles = _angles(pairs)
        return [self._row(*place, angle) for place, angle in zip(places, angles, strict=True)]

    def to_pandas(self) -> pd.DataFrame:
        """Return the table; missing numbers are ``<NA>``, missing texts ``None``."""
        return _frame(self.rows())

    def differences(self, order: Order = "place", *, distances: bool = True) -> pd.DataFrame:
        """Return what each intervention changed: words, vectors and output, in one row.

        Args:
            order: ``"place"`` keeps all rows in the table's order. ``"text, not output"`` keeps the
                rows whose text changed, and sorts first those where the text changed much and the
                output little. ``"output, not text"`` keeps the rows whose output changed, and sorts
                in the reverse order. Both leave out rows whose text could not change, and rows
                without a text. They sort by `change` minus ``|effect|``, each as a share of its
                maximum; what is equal to four decimals keeps the table's order.
            distances: Whether to add the distance between the reconstructions of the two texts.

        Returns:
            The place, both texts, `removed`, `added` (runs of words), `change`, `cosine` (of the
            two vectors), `text_distance` (1 − cosine of the two reconstructions; ``<NA>`` without
            a reconstructor), `metric`, `effect`, and `error` (why a row has no text).

        Raises:
            ExperimentError: `order` is not one of the three.
        """
        if order not in get_args(Order):
            raise ExperimentError(
                f"differences({order!r}): expected one of {', '.join(map(repr, get_args(Order)))}."
            )
        rows = self.rows()
        found = self.compared(rows, distances=distances)
        table: list[dict[str, Any]] = [
            {
                **{name: row[name] for name in _COPIED},
                **asdict(each),
                "removed": list(each.removed),
                "added": list(each.added),
            }
            for row, each in zip(rows, found, strict=True)
        ]
        if order == "place":
            return _frame(table)
        kept = [
            record
            for record in table
            if record["reach"] == REACHES
            and record["change"] is not None
            and record["effect"] is not None
        ]
        most = max((abs(each["effect"]) for each in kept), default=0.0) or 1.0
        widest = max((each["change"] for each in kept), default=0.0) or 1.0

        def beyond(each: Mapping[str, Any]) -> float:
            return round(each["change"] / widest - abs(each["effect"]) / most, _DECIMALS)

        if order == "text, not output":
            kept = sorted((each for each in kept if each["change"]), key=beyond, reverse=True)
        else:
            moved = [each for each in kept if abs(each["effect"]) > 10**-_DECIMALS * most]
            kept = sorted(moved, key=beyond)
        return _frame(kept)

    def compared(
        self, rows: Sequence[Mapping[str, Any]], *, distances: bool = True
    ) -> list[Difference]:
        """Return the `Difference` of each of these rows of the table."""
        reconstruct = None
        if distances and self.nla is not None and self.nla.has_reconstructor:
            reconstruct = self.nla.reconstruct
        pairs = [(row["before"], row["after"]) for row in rows]
        apart = text_distances(pairs, reconstruct)
        return [
            difference(
                row["before"],
                row["after"],
                cosine=row["cosine"],
                text_distance=distance,
                effect=row["effect"],
                error="; ".join(filter(None, [row["error"], why])) or None,
            )
            for row, (distance, why) in zip(rows, apart, strict=True)
        ]

    def to_parquet(self, path: str | Path) -> Path:
        """Store the sweep, complete or not, with its vectors; `from_parquet` reads it back.

        Args:
            path: The file. It is replaced when the new one is complete; a crash leaves the old one.

        Raises:
            ExperimentError: The file cannot be written.
            VerbalizationError: Verbalizing failed; what had settled is kept.
        """
        return storage.write(
            Path(path), self.header, self.cells, self.runs, self.outcomes, self.texts, self.identity
        )

    @classmethod
    def from_parquet(
        cls,
        path: str | Path,
        *,
        nla: ExplainsAndReconstructs | None = None,
        claims: Claims = "check",
    ) -> Sweep:
        """Read a stored sweep.

        Args:
            path: The file.
            nla: Needed for distances between texts, and for texts that were not generated yet.
            claims: ``"ignore"`` accepts an NLA for a different model or layer than the file's
                vectors.

        Raises:
            ExperimentError: The file does not hold a sweep, or one of a later version or of
                another model or layer.
        """
        header, cells, runs, outcomes, known, identity = storage.read(Path(path))
        if nla is not None:
            place = {"model": "the target", "layer": "the layer"}
            source = {name: f"{what} of {Path(path).name}" for name, what in place.items()}
            origin = Origin(header.target, header.k, source=source)
            what = str(path)
            origin.check(nla.checkpoint, what, claims=claims, error=ExperimentError)
        return cls(header, cells, runs, outcomes, nla, known, identity)

    def plot(
        self,
        *,
        value: Literal["effect", "change"] = "effect",
        form: Literal["grid", "curves"] = "grid",
    ) -> go.Figure:
        """Plot a heat map of layers × positions, or curves over doses, with explanations on hover.

        Args:
            value: What the colour shows: the effect on the metric, or the share of words that
                changed in the explanation. A dot marks a text that changed, a dash one that could
                not change. The scale ends at the largest value.
            form: ``"grid"`` (of heads: layers × heads), or ``"curves"`` for the value over the
                doses of a `steer`: a line for each place, and a band from the smallest to the
                largest value of its random directions.

        Raises:
            ExperimentError: An option is none of these, or the sweep has no doses for curves.
        """
        if form not in ("grid", "curves"):
            raise ExperimentError(f"plot(form={shown(form)}): expected 'grid' or 'curves'.")
        draw, rows = picture.curves if form == "curves" else picture.heat_map, self.rows()
        return draw(self.header, rows, self.compared(rows, distances=False), value)

    def to_html(
        self, path: str | Path, *, value: Literal["effect", "change"] = "effect", title: str = ""
    ) -> Path:
        """Write a page with the heat map, the curves over doses, and the largest effects.

        It is one file for any browser, without scripts, and below 1 MB. It fits a phone, and
        follows its light or dark mode. The texts of a cell are shown while the pointer is on it, or
        after a tap.

        Args:
            path: The file; a file that is there is replaced when the new one is complete.
            value: What the colour shows, as for `plot`.
            title: The page's title; by default what the sweep measures.

        Returns:
            The path of the page.

        Raises:
            ExperimentError: `value` is something else, or the file cannot be written.
            VerbalizationError: Verbalizing failed; what had settled is kept.
        """
        rows = self.rows()
        compared = self.compared(rows, distances=False)
        made = page.page(self.header, rows, compared, value, self._summary(rows), title)
        with atomic_file(Path(path), error=ExperimentError) as file:
            file.write(made.encode())
        return Path(path)

    def _row(self, cell: Cell, at: int, angle: float | None) -> dict[str, Any]:
        header, outcome = self.header, self.outcomes[cell]
        tokens = header.tokens[header.baseline]
        base = self.runs[header.baseline].residuals.get(at)
        vector = outcome.residuals.get(at)
        before, after = self.texts.of(base), self.texts.of(vector)
        row: dict[str, Any] = {
            "experiment": header.experiment,
            "site": cell.site,
            "layer": cell.layer,
            "head": cell.head,
            "position": cell.position,
            "token": "every" if cell.position is None else tokens[cell.position],
            "kind": cell.kind,
            "dose": cell.dose,
            "metric": outcome.metric,
            "effect": self.effect(outcome.metric),
            "answer": outcome.answer,
            "explained_at": at,
            "explained_token": tokens[at],
            "reach": reach(cell.layer, cell.position, header.k, at),
            "before": before.text,
            "after": after.text,
            "cosine": angle,
        }
        if header.experiment == "patch":
            clean = self.texts.of(self.runs["clean"].residuals.get(at))
            source = None if cell.source is None else header.tokens["clean"][cell.source]
            row |= {"clean": clean.text, "source": cell.source, "source_token": source}
        both = before.text is not None and after.text is not None
        errors = {"before": before.error, "after": after.error}
        row["text_changed"] = before.text != after.text if both else None
        row["warnings"] = list(after.warnings)
        said = [f"{name}: this vector {why}" for name, why in errors.items() if why]
        row["error"] = "; ".join(said) or None
        return row

    def __len__(self) -> int:
        return len(self.outcomes)

    def __repr__(self) -> str:
        done = f"{len(self.outcomes)} of {len(self.cells)} cells"
        done = f"{len(self.cells)} cells" if self.complete else done
        return f"<Sweep {self.header.experiment} of {self.header.target!r}: {done}>"

    def _repr_html_(self) -> str:
        return self._summary(self.rows())

    def _summary(self, rows: Sequence[Mapping[str, Any]]) -> str:
        # As precise as it is shown, so that rounding errors order nothing.
        top = sorted(rows, key=lambda row: -round(abs(row["effect"] or 0.0), 3))[:_SHOWN]
        largest = list(zip(top, self.compared(top, distances=False), strict=True))
        done = f"{len(self.outcomes)} of {len(self.cells)} cells"
        return picture.summary(self.header, self.runs, self.texts, done, largest, len(rows))


def _angles(pairs: Sequence[tuple[Tensor | None, Tensor | None]]) -> list[float | None]:
    """Return the cosine between each two vectors, ``None`` where one has no direction."""
    both = [(i, a, b) for i, (a, b) in enumerate(pairs) if a is not None and b is not None]
    found: list[float | None] = [None] * len(pairs)
    if both:
        before = torch.stack([a for _, a, _ in both])
        after = torch.stack([b for _, _, b in both])
        norms = before.norm(dim=-1) * after.norm(dim=-1)
        usable = (norms.isfinite() & (norms > 0)).tolist()
        for (i, *_), angle, good in zip(both, cosine(before, after).tolist(), usable, strict=True):
            found[i] = min(1.0, angle) if good else None
    return found


_COPIED = (
    "site", "layer", "head", "position", "token", "kind", "dose", "explained_at", "reach",
    "metric", "answer",
)  # fmt: skip
_NUMBERS = {
    "Int64": ("layer", "head", "position", "explained_at", "source"),
    "Float64": ("dose", "metric", "effect", "cosine", "change", "text_distance"),
    "boolean": ("text_changed",),
}


def _frame(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return a table whose missing numbers are ``<NA>``, never NaN."""
    import pandas as pd

    names = list(records[0]) if records else []
    kinds = {name: kind for kind, columns in _NUMBERS.items() for name in columns}
    return pd.DataFrame(
        {
            name: pd.Series([record[name] for record in records], dtype=kinds.get(name, "object"))
            for name in names
        }
    )
