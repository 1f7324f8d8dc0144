"""Draw the course of a training: losses, and figures on held-out rows, by step.

After the training, later from its folder, or while it runs::

    trained = train("av", "rows.parquet", base=base, out="av")
    plot_log(trained)
    plot_log("av")
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import shown
from ..view.escaping import html
from ..view.figure import TEMPLATE
from .rows import TrainingError
from .saving import read_sidecar

if TYPE_CHECKING:
    import plotly.graph_objects as go

_MEASURED = "eval_"
_COLOURS = len(TEMPLATE["layout"]["colorway"])
_STATES = "*/trainer_state.json"
_EXPECTED = (
    "expected what train() returned, its log, or the folder of a checkpoint that train() made or "
    "is making"
)


def plot_log(source: Any, *, only: Sequence[str] | None = None) -> go.Figure:
    """Draw losses, and figures on held-out rows, by step; the kept step is a line.

    Args:
        source: What `train` returned, its log, or a folder: the checkpoint's (``out``), also while
            the training runs, or that of its state (``out.training``).
        only: The figures to draw, such as ``["loss", "fve"]``; all unless given. ``"loss"`` is the
            loss of the training, and that of held-out rows.

    Raises:
        TrainingError: There is no log, or no such figure in it.
    """
    from plotly.subplots import make_subplots

    log = _log(source)
    names = [name for name in dict.fromkeys(key for line in log for key in line)
             if name == "loss" or name.startswith(_MEASURED)]  # fmt: skip
    if not names:
        raise TrainingError(f"{shown(source)} has no figures: {_EXPECTED}.")
    if only is not None:
        known = dict.fromkeys(map(_figure, names))
        for each in only:
            if each not in known:
                raise TrainingError(
                    f"only={shown(list(only))}: the log has no {each!r}. It has "
                    f"{', '.join(map(repr, known))}."
                )
        names = [name for name in names if _figure(name) in only]
    panels = [
        (title, some)
        for title, some in (
            ("loss", [name for name in names if _figure(name).endswith("loss")]),
            ("held-out rows", [name for name in names if not _figure(name).endswith("loss")]),
        )
        if some
    ]
    figure = make_subplots(cols=len(panels), subplot_titles=[title for title, _ in panels])
    kept = [line["step"] for line in log if "kept" in line]
    for column, (_, some) in enumerate(panels, start=1):
        for number, name in enumerate(some):
            points = [(line["step"], line[name]) for line in log if name in line]
            figure.add_scatter(
                x=[step for step, _ in points],
                y=[value for _, value in points],
                name=html(_label(name)),
                mode="lines+markers",
                line={"dash": "dot" if number >= _COLOURS else "solid"},
                row=1,
                col=column,
            )
        if kept:
            # Plotly writes "new text" for a text that is None.
            said = {"annotation_text": "kept"} if column == 1 else {}
            figure.add_vline(x=kept[-1], line_dash="dot", row=1, col=column, **said)  # pyright: ignore
    figure.update_xaxes(title="step")
    figure.update_layout(template=TEMPLATE, height=400)
    return figure


def _figure(name: str) -> str:
    return name.removeprefix(_MEASURED)


def _label(name: str) -> str:
    if name == "loss":
        return "training loss"
    return "held-out loss" if name == f"{_MEASURED}loss" else _figure(name).replace("_", " ")


def _log(source: Any) -> list[dict[str, Any]]:
    if isinstance(source, str | Path):
        return _of_folder(Path(source).expanduser())
    lines = getattr(source, "log", source)
    if isinstance(lines, Sequence) and all(isinstance(line, Mapping) for line in lines):
        return [dict(line) for line in lines if "step" in line]
    raise TrainingError(f"Got {shown(source)}: {_EXPECTED}.")


def _of_folder(folder: Path) -> list[dict[str, Any]]:
    """Return the log of a finished checkpoint, or else the newest of a state that is saved."""
    listed = read_sidecar(folder).get("training_log")
    if isinstance(listed, list) and listed:
        return _log(listed)
    for work in (folder, folder.with_name(f"{folder.name}.training")):
        states = sorted(work.glob(_STATES), key=lambda file: file.stat().st_mtime)
        for state in reversed(states):
            try:
                history = json.loads(state.read_text("utf-8"))["log_history"]
            except (OSError, ValueError, KeyError):
                continue  # It is being written, or removed.
            return _log(history)
    raise TrainingError(f"{folder} has no log of a training: {_EXPECTED}.")
