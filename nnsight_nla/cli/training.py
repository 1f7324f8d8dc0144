"""Making checkpoints and measuring them: ``nnsight-nla train av|ar | evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table
from rich.text import Text

from ..errors import NLAError
from .app import AsJson, app, err, load, out, print_json, working

HeldOut = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="The share of documents that is not trained on.")
]


@app.command()
def train(
    half: Annotated[Literal["av", "ar"], typer.Argument(help="Verbalizer or reconstructor.")],
    rows: Annotated[Path, typer.Argument(help="Labelled rows: Parquet, its sidecar beside it.")],
    base: Annotated[str, typer.Option(help="The model to start from: a folder or a Hub id.")],
    output: Annotated[Path, typer.Option("--out", help="The checkpoint's folder.")],
    steps: Annotated[int, typer.Option(min=1)] = 1000,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of a forward pass.")] = 64,
    accumulation: Annotated[int, typer.Option(min=1, help="Forward passes a step.")] = 1,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="The cosine's peak.")] = 3e-5,
    warmup: Annotated[int, typer.Option(min=0, help="Steps up to the peak.")] = 50,
    lora: Annotated[
        int | None, typer.Option(min=1, help="Train adapters of this rank; else all weights.")
    ] = None,
    lora_alpha: Annotated[int, typer.Option(min=1, help="Their scale.")] = 16,
    rslora: Annotated[bool, typer.Option(help="Divide it by the rank's root, not the rank.")] = (
        True
    ),
    bf16: Annotated[
        bool | None, typer.Option(help="Compute in bfloat16; unless said, where a GPU does.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="What the weights are loaded in.")] = None,
    recompute: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Slower, in far less memory.")
    ] = False,
    seed: Annotated[int, typer.Option()] = 0,
    layer: Annotated[int | None, typer.Option(min=0, help="K, without a sidecar.")] = None,
    base_name: Annotated[
        str | None, typer.Option(help="What the rows' sidecar calls --base.")
    ] = None,
    held_out: HeldOut = 0.05,
    every: Annotated[
        int, typer.Option(min=1, help="Steps between measurements and points of resumption.")
    ] = 100,
    measured: Annotated[int, typer.Option(min=0, help="Held-out rows that are measured.")] = 64,
    ar: Annotated[
        str | None, typer.Option(help="A reconstructor that judges the verbalizer: the FVE.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest measured reply.")] = 200,
    tensorboard: Annotated[Path | None, typer.Option(help="A folder for its events.")] = None,
    as_json: AsJson = False,
) -> None:
    """Train a half of an NLA on published rows; the same command goes on where it was killed."""
    if half == "ar" and ar is not None:
        raise NLAError("--ar judges a verbalizer; train ar has none. Leave it out.")
    with working("reading the rows"):
        from ..training import Lora, Settings, Watching
        from ..training import train as run
        from ..training.run import leads
        from ..training.trainer import has_bfloat16

        narrow = has_bfloat16() if bf16 is None else bf16
    adapters = None
    if lora is not None:
        adapters = Lora(lora, lora_alpha, "rslora" if rslora else "lora")
    trained = run(
        half,
        rows,
        base=base,
        out=output,
        settings=Settings(
            steps=steps,
            batch_size=batch_size,
            accumulation=accumulation,
            learning_rate=learning_rate,
            warmup=warmup,
            precision="bfloat16" if narrow else "float32",
            lora=adapters,
            activations="recompute" if recompute else "keep",
            seed=seed,
        ),
        watching=Watching(every, measured, ar, max_new_tokens, tensorboard),
        layer=layer,
        base_name=base_name,
        held_out=held_out,
        dtype=dtype,
        report=lambda line: err.print(Text(line)),
    )
    if not leads():
        return
    if as_json:
        print_json({"folder": str(trained.folder), "log": trained.log})
    else:
        out.print(f"{trained.folder}: NLA('{output}') loads it.", highlight=False)


@app.command()
def evaluate(
    av: Annotated[str, typer.Argument(help="The verbalizer: a folder or a Hub id.")],
    rows: Annotated[Path, typer.Argument(help="Labelled rows: Parquet, its sidecar beside it.")],
    ar: Annotated[
        str | None, typer.Option(help="The reconstructor: for FVE and retrieval.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Another verbalizer, measured on the same rows.")
    ] = None,
    held_out: HeldOut = 0.05,
    limit: Annotated[int, typer.Option(min=2, help="The most rows.")] = 200,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest reply.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the controls.")] = 0,
    dtype: Annotated[str, typer.Option(help="Of the models.")] = "auto",
    device_map: Annotated[str | None, typer.Option(help="As in transformers.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a verbalizer on held-out rows, beside controls that know nothing of the vectors."""
    with working("measuring"):
        from ..core.sampling import Sampling
        from ..training.measuring import measure

        pairs: dict[str, Any] = {}
        for name in filter(None, (av, against)):
            _, pairs[name] = load(name, ar, None, dtype, device_map, reads=False)
            pairs[name].sampling = Sampling(max_new_tokens=max_new_tokens)
        figures = measure(rows, pairs, held_out=held_out, limit=limit, seed=seed)
    if as_json:
        print_json({"rows": str(rows), "checkpoints": figures})
    else:
        out.print(_table(figures, str(rows)))


def _table(figures: dict[str, dict[str, Any]], rows: str) -> Table:
    """A row per figure, a column per checkpoint."""
    from ..core.baseline import Baseline

    columns = list(figures.values())
    over = {str(Baseline(**each["baseline"])) for each in columns if each["baseline"]}
    table = Table(
        title=f"{columns[0]['rows']} held-out rows of {rows}",
        title_justify="left",
        caption="\n".join(f"FVE over {each}" for each in sorted(over)) or "no FVE without --ar",
        caption_justify="left",
    )
    for name in ("figure", *figures):
        table.add_column(name, overflow="fold")
    for name, what in (
        ("extraction", "replies that are an explanation"),
        ("truncated", "replies that were cut off"),
        ("retrieval", "texts nearest to their own vector"),
    ):
        table.add_row(what, *(_shown(each[name]) for each in columns))
    for group, what in (
        ("fve", "FVE"), ("cosine", "cosine"), ("says", "the label's likelihood, nats a token"),
    ):  # fmt: skip
        for name in _SOURCES:
            found = [(each[group] or {}).get(name) for each in columns]
            if any(value is not None for value in found):
                table.add_row(f"{what}: {_SOURCES[name]}", *map(_shown, found))
    return table


_SOURCES = {
    "explanation": "its vector",
    "label": "the label itself",
    "null": "no vector",
    "random": "a random vector",
    "shuffled": "another row's vector",
}


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
