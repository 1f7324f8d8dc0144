"""What is measured while a training runs, and the step that is kept by it.

`Watching` is what the user asks for. `check_watching` refuses what cannot be, before anything is
read; `read_held_out` reads the held-out rows and knows the names of the figures, before any weights
are loaded; `to_measure` makes of them what the trainer measures.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from ..checkpoint.checkpoint import Checkpoint
from ..errors import NLAError
from ..evaluation.grounding.rows import has_texts
from ..models.fingerprint import fingerprint_folder
from .files import Report
from .grounded_figures import (
    SOURCE,
    by_reconstruction,
    by_text,
    can_match,
    grounded_rows,
)
from .held_out import HeldOut, Metric, Several
from .published import Published
from .rows import TrainingError

Role = Literal["av", "ar"]


@dataclass(frozen=True)
class Watching:
    """What to measure and save while a training runs."""

    every: int = 100
    """Steps between two measurements on held-out rows, and two training checkpoints."""
    rows: int = 64
    """The number of held-out rows to measure; 0 for none."""
    ar: str | Path | None = None
    """A reconstructor, to measure a verbalizer's texts: ``fve``, and ``grounded_source``, the share
    of texts whose reconstruction is closest to their own vector, of those of four documents."""
    max_new_tokens: int = 200
    """The longest reply of a measurement, in tokens."""
    tensorboard: Path | None = None
    """The folder of TensorBoard's events."""
    judges: Mapping[str, Metric] = field(default_factory=dict[str, "Metric"])
    """More metrics, by name: of a verbalizer's texts, their labels and their vectors."""
    keep: bool = False
    """Whether to keep the state of a finished training, so that more steps can continue it."""
    best: str | None = None
    """The figure by which the best of the measured steps is kept, such as ``"fve"``,
    ``"grounded_next"`` or the name of one of the `judges`; ``None`` keeps the last step. Larger is
    better, except for names that end in ``loss``."""
    grounded: bool | None = None
    """Whether to compare a verbalizer's texts with the texts that the vectors were read in, as
    figures named ``grounded_...``; ``None`` does so if the file of rows has those texts."""

    def fixed(self) -> dict[str, Any]:
        """Return the options that a training cannot be resumed without.

        The checkpoints of steps that were not the best by this figure are gone, and figures of
        other rows, lengths or reconstructors cannot be compared with those that are known.
        """
        if self.best is None:
            return {}
        ar = None if self.ar is None else Path(self.ar).expanduser()
        return {
            "best": self.best,
            "measured_rows": self.rows,
            "max_new_tokens": self.max_new_tokens,
            "reconstructor": fingerprint_folder(ar) if ar and ar.is_dir() else self.ar and str(ar),
        }


@dataclass(frozen=True)
class HeldOutRows:
    """Held-out rows, before anything is loaded that measures with them."""

    rows: Published
    """The rows."""
    documents: list[str] | None
    """The document of each, for `SOURCE`; ``None`` if that is not measured."""
    by_text: Several | None
    """Compares explanations with the texts that the vectors were read in."""
    names: tuple[str, ...]
    """The figures by text; a measurement may lack some, where no explanation mentions anything."""


def check_watching(watching: Watching, role: Role, rows: str | Path, held_out: float) -> None:
    """Raise if `watching` asks for what a training on this file cannot measure."""
    for asked, what in ((watching.best is not None, f"best={watching.best!r}"),
                        (watching.grounded is True, "grounded=True")):  # fmt: skip
        if asked and not (watching.rows and held_out):
            none = f"held_out={held_out!r}" if watching.rows else "Watching(rows=0)"
            some = "held_out=0.05" if watching.rows else "Watching(rows=64)"
            raise TrainingError(
                f"{what} needs figures of held-out rows, and {none} measures none. Measure some, "
                f"as in {some}, or leave {what.partition('=')[0]} out."
            )
    if watching.grounded and role == "ar":
        raise TrainingError(
            "grounded=True compares a verbalizer's texts with the rows' own, and this trains a "
            "reconstructor, which writes none. Leave grounded out."
        )
    if watching.grounded and not has_texts(rows):
        raise TrainingError(
            f"{rows} does not have the texts that its vectors were read in, which grounded=True "
            "compares explanations with. `nnsight-nla extract` writes them. Read the vectors "
            "again, or leave grounded out."
        )


def read_held_out(
    source: Published, checkpoint: Checkpoint, role: Role, watching: Watching, report: Report | None
) -> HeldOutRows | None:
    """Read the held-out rows, and check the name of the figure that the best step is kept by.

    Returns:
        ``None`` if nothing is measured.

    Raises:
        TrainingError: No document is held out, or there is no such figure.
    """
    if source.asks and (role == "ar" or watching.ar is not None or watching.grounded):
        raise TrainingError(
            f"{source.file} has questions and answers. They train an oracle (av), which has no "
            "reconstructor and no explanations: leave ar and grounded out."
        )
    if source.several and (role == "ar" or watching.ar is not None or watching.grounded):
        raise TrainingError(
            f"{source.file} has explanations of several vectors each. They train a verbalizer (av) "
            "with a marker for each, which has no reconstructor, and whose texts are not compared "
            "with those that the vectors were read in: leave ar and grounded out."
        )
    if not watching.rows or source.part == "all":
        return None
    rows = Published(
        source.file, part="held out", held_out=source.held_out, limit=watching.rows,
        scratch=source.scratch,
    )  # fmt: skip
    if len(rows) == 0:
        raise TrainingError(
            f"{source.file} has no document among the {source.held_out:.0%} that are held out. "
            "Hold out more (held_out=0.2), or none (held_out=0)."
        )
    documents = None
    if role == "av" and watching.ar is not None and watching.grounded is not False:
        documents = rows.documents()
        documents = documents if can_match(documents) else None
    compare, names = None, ()
    explains = role == "av" and not source.asks and not source.several
    if explains and watching.grounded is not False and has_texts(rows.file):
        compare, names = _texts(rows, checkpoint, watching, report)
    found = HeldOutRows(rows, documents, compare, names)
    # Whether there is an FVE is not known before every row was read.
    _check_best(watching, role, found, fve=role == "ar" or watching.ar is not None)
    return found


def to_measure(
    found: HeldOutRows, base: str | Path, checkpoint: Checkpoint, role: Role, watching: Watching
) -> HeldOut:
    """Return what the trainer measures.

    Raises:
        TrainingError: The best step is to be kept by the FVE, and the rows have no baseline.
    """
    measured = checkpoint.baseline is not None and (role == "ar" or watching.ar is not None)
    _check_best(watching, role, found, fve=measured)
    figures: list[Several] = []
    if role == "av" and watching.ar is not None and measured:
        figures.append(by_reconstruction(base, watching.ar, checkpoint, found.documents))
    if found.by_text is not None:
        figures.append(found.by_text)
    return HeldOut(
        found.rows,
        watching.every,
        checkpoint.baseline,
        watching.judges,
        watching.max_new_tokens,
        figures=tuple(figures),
        best=watching.best,
        sometimes=frozenset(found.names),
    )


def _texts(
    rows: Published, checkpoint: Checkpoint, watching: Watching, report: Report | None
) -> tuple[Several | None, tuple[str, ...]]:
    """Return what compares explanations with the rows' texts, and the names of its figures."""
    try:
        texts = grounded_rows(rows, checkpoint.d_model)
    except TrainingError:
        raise
    except NLAError as error:
        if watching.grounded:
            raise TrainingError(str(error)) from error
        if report is not None:
            report(f"no grounded figures: {error}")
        return None, ()
    measure = by_text(texts)
    labels = [row.label or "" for row in texts]
    # A verbalizer that writes like its labels has their figures.
    return measure, tuple(
        measure(labels, labels, torch.zeros(0, dtype=torch.float32, device="cpu"))
    )


def _check_best(watching: Watching, role: Role, found: HeldOutRows, *, fve: bool) -> None:
    best = watching.best
    own = "accuracy" if found.rows.asks else "cosine" if role == "ar" else "extraction"
    names: Collection[str] = ["loss", own, *(["fve"] if fve else [])]
    if role == "av":
        names = [*names, *([SOURCE] if found.documents and fve else []), *watching.judges]
        names = [*names, *found.names]
    if best is None or best in names:
        return
    hint = ""
    if role == "av" and watching.ar is None and best in ("fve", SOURCE):
        hint = " A reconstructor measures it: pass ar=."
    raise TrainingError(
        f"best={best!r} is not measured in this training. Expected one of {', '.join(names)}.{hint}"
    )
