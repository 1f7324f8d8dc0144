"""Whole data sets: ``nnsight-nla run | merge | extract | label``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import NLAError
from .app import AsJson, app, load, load_target, out, print_json, working

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
        from ..core.sampling import Sampling

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
        out.print(f"{output}: {rows:,} rows, {errors} with an error", soft_wrap=True)


@app.command()
def extract(
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help="Texts: a file, or a Hugging Face data set.")
    ],
    output: Annotated[Path, typer.Argument(help="The Parquet file to write.")],
    target: Annotated[str | None, typer.Option(help="The target: a folder or a Hub id.")] = None,
    layer: Annotated[
        int | None, typer.Option(min=0, help="K: the output of this block, counted from 0.")
    ] = None,
    av: Annotated[
        str | None,
        typer.Option(help="A verbalizer to train further: its layer, template and marker."),
    ] = None,
    positions: Positions = "random:10",
    skip: Skip = 0,
    seed: Annotated[int, typer.Option(help="Of random positions and splits.")] = 0,
    max_tokens: MaxTokens = None,
    splits: Annotated[
        str | None, typer.Option(help="By document: train=0.9,test=0.1; a file for each.")
    ] = None,
    remote: Annotated[bool, typer.Option("--remote", help="Run it on the NDIF host.")] = False,
    chunk: Chunk = None,
    shard: Shard = None,
    strict: Strict = False,
    text_column: TextColumn = None,
    id_column: IdColumn = None,
    split: Split = None,
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    as_json: AsJson = False,
) -> None:
    """Read a target's activations over a corpus, to train on; resumable as run is."""
    with working("loading"):
        from .. import bulk

        rows = bulk.open_source(source, text=text_column, doc_id=id_column, split=split)
        model, checkpoint = _described(target, layer, av, dtype, device_map)
    report = bulk.extract(
        model,
        rows,
        output,
        checkpoint=checkpoint,
        positions=positions,
        skip=skip,
        seed=seed,
        max_tokens=max_tokens,
        splits=_shares(splits),
        chunk=chunk,
        shard=shard,
        remote=remote,
        strict=strict,
    )
    _report(report, as_json)


@app.command()
def label(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="What extract wrote.")],
    output: Annotated[Path, typer.Argument(help="The Parquet file to write.")],
    by: Annotated[
        str,
        typer.Option(
            help="module:function (a row in, its explanation or None out), or a .parquet with "
            "doc_id, n_raw_tokens and api_explanation, response or text."
        ),
    ],
    workers: Annotated[int, typer.Option(min=1, help="Calls at a time.")] = 1,
    chunk: Annotated[int, typer.Option(min=1, help="Rows between points of resumption.")] = 64,
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Give extracted rows their explanations, to train on; resumable as run is."""
    from .. import bulk

    made_by = by if by.endswith(".parquet") else _function(by)
    report = bulk.label(source, output, by=made_by, workers=workers, chunk=chunk, strict=strict)
    _report(report, as_json)


def _described(
    target: str | None, layer: int | None, av: str | None, dtype: str, device_map: str | None
) -> Any:
    """The target, and what the rows are rows of."""
    from .. import tiny
    from ..checkpoint.checkpoint import Checkpoint
    from ..models import hosts
    from ..training import describe

    if av is None and target is None:
        model, nla = tiny.load()
        return model, nla.checkpoint
    checkpoint = Checkpoint.load(av) if av is not None else None
    name = target or (checkpoint and checkpoint.base_model)
    if name is None:
        raise NLAError(f"{av} does not name its target; add --target PATH_OR_ID.")
    model = load_target(name, dtype, device_map)
    if checkpoint is None:
        if layer is None:
            raise NLAError("Which layer? Add --layer K, or --av for the layer of a verbalizer.")
        width = hosts.width(model)
        checkpoint = describe(model.tokenizer, layer=layer, d_model=width, base_model=name)
    elif layer not in (None, checkpoint.layer):
        raise NLAError(f"--layer {layer}: {av} was trained on layer {checkpoint.layer}.")
    return model, checkpoint


def _shares(splits: str | None) -> dict[str, float] | None:
    if splits is None:
        return None
    try:
        pairs = [part.split("=") for part in splits.split(",")]
        return {name.strip(): float(share) for name, share in pairs}
    except ValueError as error:
        raise NLAError(
            f"--splits {splits!r}: expected names and shares, such as train=0.9,test=0.1."
        ) from error


def _function(name: str) -> Any:
    import importlib

    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise NLAError(
            f"--by {name}: expected module:function of a module that Python finds from here "
            f"({error}), or a .parquet file."
        ) from error


def _report(report: Any, as_json: bool) -> None:
    if as_json:
        print_json({**asdict(report), "outputs": list(map(str, report.outputs))})
    else:
        out.print(str(report), soft_wrap=True, highlight=False)
