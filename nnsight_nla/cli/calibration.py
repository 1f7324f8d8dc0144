"""Measure how often a verbalizer's explanations are right: ``nnsight-nla calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from ..errors import NLAError
from . import options
from .app import command, load_nla, print_json, spinner
from .app import out as console
from .tables import new_table

if TYPE_CHECKING:
    from rich.table import Table

    from ..core.calibration import Calibration
    from ..evaluation.reliability import Reliability


@command()
def calibrate(
    av: Annotated[Path, Argument(metavar="AV", help="The verbalizer's folder.")],
    rows: options.LabelledRows,
    ar: Annotated[str, Option(metavar="AR", help="The reconstructor: a folder or a Hub id.")],
    population: Annotated[
        str,
        Option(
            metavar="TEXT",
            help="A description of the vectors. It is shown with every probability, because the "
            "probability holds for such vectors only.",
        ),
    ],
    test: Annotated[
        Path | None,
        Option(metavar="ROWS", help="Labelled rows of other documents, to measure the error on."),
    ] = None,
    early: Annotated[
        Path | None,
        Option(
            metavar="ROWS",
            help="Rows at all positions of some documents (from extract --positions all), to "
            "measure how many first positions are noisy.",
        ),
    ] = None,
    held_out: options.HeldOut = 0.05,
    limit: Annotated[int, Option(min=50, metavar="N", help="Measure at most N rows.")] = 1000,
    engine: options.Engine = "fast",
    vllm: options.Vllm = None,
    url: options.Url = None,
    dtype: options.Dtype = "auto",
    device_map: options.DeviceMap = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure how often explanations are right, and store the result in AV for trust labels.

    It writes AV/nla_calibration.json: a model of the probability of each kind of statement, the
    thresholds of the trust label, the number of noisy first positions, and typical vectors.
    """
    if not av.is_dir():
        raise NLAError(f"{av} is not a folder, so nothing can be stored in it. Download it first.")
    with spinner("measuring"):
        from ..core.calibration import FILE
        from ..evaluation.calibrating import calibrate as measure
        from ..evaluation.calibrating import save, validated
        from ..evaluation.grounding.rows import read_rows
        from ..training.published import Published

        texts = options.engine_of(engine, vllm, url)
        nla = load_nla(str(av), ar, dtype, device_map, texts=texts)
        source = Published(
            rows, part="held out" if 0 < held_out < 1 else "all", held_out=held_out, limit=limit
        )
        calibration = measure(
            nla,
            read_rows(rows, source.numbers()),
            population=population,
            early=None if early is None else read_rows(early),
        )
        curves: dict[str, Reliability] = {}
        if test is not None:
            tested = read_rows(test, Published(test, limit=limit).numbers())
            calibration, curves = validated(nla, calibration, tested)
        save(calibration, av, curves)
    if as_json:
        print_json(calibration.to_dict())
    else:
        console.print(_table(calibration, curves))
        console.print(f"{av / FILE}: trust labels of NLA('{av}') now use it.", highlight=False)


def _table(calibration: Calibration, curves: dict[str, Reliability]) -> Table:
    table = new_table(
        *("statement", "right", "mean probability", "calibration error", "vectors"),
        title=f"{calibration.population}: {calibration.n:,} vectors",
        caption="\n".join(
            [
                f"strong from a margin of {calibration.strong:z.2f}, partial from "
                f"{calibration.partial:z.2f}",
                "noisy positions: "
                + (
                    "not measured"
                    if calibration.noisy_positions is None
                    else f"the first {calibration.noisy_positions}"
                ),
            ]
        ),
    )
    for each in calibration.statements:
        curve = curves.get(each.name)
        shown: list[Any] = ["", "", "", ""]
        if curve is not None:
            figures = (curve.rate, curve.predicted, curve.error)
            shown = [*(f"{figure:z.3f}" for figure in figures), curve.n]
        table.add_row(each.name, *map(str, shown))
    return table
