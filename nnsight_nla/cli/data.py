"""Whole data sets: ``nnsight-nla run | merge``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from .shell import AsJson, app, load, out, print_json, working

Positions = Annotated[
    str,
    typer.Option(
        help="Which tokens: all, last, every:N, random:N, regex:PATTERN (where each match ends), "
        "or class:word, capital, number, punctuation, sentence, newline."
    ),
]
Skip = Annotated[int, typer.Option(min=0, help="Leave out positions below this.")]
MaxTokens = Annotated[
    int | None, typer.Option(min=1, help="Read only so many tokens of each document.")
]
Chunk = Annotated[
    int | None, typer.Option(min=1, help="Rows of INPUT between two points of resumption.")
]
Shard = Annotated[
    str | None, typer.Option(help="i/n: do only part i of n; put them together with merge.")
]
Strict = Annotated[
    bool, typer.Option("--strict", help="End at the first bad row; else it is recorded.")
]
TextColumn = Annotated[str | None, typer.Option(help="The column of the texts.")]
IdColumn = Annotated[str | None, typer.Option(help="The column of the rows' names.")]
Split = Annotated[str | None, typer.Option(help="Of a Hugging Face data set.")]
Dtype = Annotated[str, typer.Option(help="Of the models, with --av.")]
DeviceMap = Annotated[str | None, typer.Option(help="As in transformers, with --av.")]


@app.command()
def run(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="Texts (.jsonl, .parquet, a Hugging Face data set's folder or name) or vectors "
            "(.parquet with activation_vector, .safetensors, .npy).",
        ),
    ],
    output: Annotated[Path, typer.Argument(help="The Parquet file to write.")],
    positions: Positions = "all",
    skip: Skip = 0,
    max_tokens: MaxTokens = None,
    av: Annotated[str | None, typer.Option(help="The verbalizer: a folder or a Hub id.")] = None,
    ar: Annotated[str | None, typer.Option(help="The reconstructor, likewise: for scores.")] = None,
    target: Annotated[str | None, typer.Option(help="The target: a folder or a Hub id.")] = None,
    remote: Annotated[bool, typer.Option("--remote", help="Run all on the NDIF host.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest explanation.")] = 200,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Of the sampling.")] = 1.0,
    samples: Annotated[int, typer.Option(min=1, help="Explanations per vector.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    score: Annotated[bool, typer.Option(help="Turn texts back into vectors, with --ar.")] = True,
    vectors: Annotated[bool, typer.Option("--vectors", help="Write the vectors too.")] = False,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Vectors per batch; found and recorded unless given.")
    ] = None,
    chunk: Chunk = None,
    shard: Shard = None,
    strict: Strict = False,
    text_column: TextColumn = None,
    id_column: IdColumn = None,
    split: Split = None,
    tensor: Annotated[str | None, typer.Option(help="Of a .safetensors file.")] = None,
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    as_json: AsJson = False,
) -> None:
    """Explain a data set; the same command goes on where it was interrupted."""
    with working("loading"):
        from .. import bulk
        from ..sampling import Sampling

        rows = bulk.open_source(
            source, text=text_column, doc_id=id_column, split=split, tensor=tensor
        )
        reads = rows.kind == "texts"
        model, nla = load(av, ar, target, dtype, device_map, remote=remote, reads=reads)
    report = bulk.run(
        nla,
        rows,
        output,
        model=model,
        positions=positions,
        skip=skip,
        max_tokens=max_tokens,
        samples=samples,
        sampling=Sampling(temperature, top_p, max_new_tokens=max_new_tokens, seed=seed),
        score=score,
        vectors=vectors,
        batch_size=batch_size,
        chunk=chunk,
        shard=shard,
        remote=remote,
        strict=strict,
    )
    _report(report, as_json)


@app.command()
def merge(
    inputs: Annotated[list[Path], typer.Argument(help="The outputs of all shards.")],
    output: Annotated[Path, typer.Argument(help="The Parquet file to write.")],
    as_json: AsJson = False,
) -> None:
    """Put the outputs of all shards together, as one run would have written them."""
    with working("merging"):
        from .. import bulk

        rows, errors = bulk.merge(inputs, output)
    if as_json:
        print_json({"output": str(output), "rows": rows, "errors": errors})
    else:
        out.print(f"{output}: {rows:,} rows, {errors} of them with an error", soft_wrap=True)


def _report(report: Any, as_json: bool) -> None:
    if as_json:
        print_json({**asdict(report), "outputs": list(map(str, report.outputs))})
    else:
        out.print(str(report), soft_wrap=True, highlight=False)
