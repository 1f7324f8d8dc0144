"""Process data sets: ``nnsight-nla run | merge | extract | label``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.text import Text
from typer import Argument, Option

from ..errors import NLAError
from . import options
from .app import command, err, load, load_nla, load_target, out, print_json, spinner
from .functions import import_function

if TYPE_CHECKING:
    from nnsight.modeling.transformers import TransformersModel

    from ..bulk.pipeline import Report
    from ..checkpoint.checkpoint import Checkpoint


@command()
def run(
    source: Annotated[
        str,
        Argument(
            metavar="INPUT",
            help="Texts (.jsonl, .parquet, or the folder or name of a Hugging Face data set), or "
            "vectors (.safetensors, .npy, or .parquet with a column activation_vector).",
        ),
    ],
    output: options.Output,
    positions: options.Positions = "all",
    skip: options.Skip = 0,
    max_tokens: options.MaxTokens = None,
    model: options.Model = "tiny",
    av: options.Av = None,
    ar: options.Ar = None,
    target: options.Target = None,
    remote: options.Remote = False,
    engine: options.Engine = "fast",
    vllm: options.Vllm = None,
    url: options.Url = None,
    max_new_tokens: options.MaxNewTokens = 200,
    upto: options.Upto = None,
    temperature: options.Temperature = 0.0,
    top_p: Annotated[
        float,
        Option(
            metavar="X",
            help="Nucleus sampling: sample from the likeliest tokens with this total probability. "
            "Needs --temperature.",
        ),
    ] = 1.0,
    samples: options.Samples = 1,
    seed: options.SamplingSeed = 0,
    score: Annotated[
        bool, Option(help="Score each explanation with the reconstructor, if there is one.")
    ] = True,
    vectors: Annotated[bool, Option("--vectors", help="Also write the vectors.")] = False,
    batch_size: Annotated[
        int | None,
        Option(min=1, metavar="N", help="Vectors per batch. Default: as many as fit in memory."),
    ] = None,
    chunk: options.Chunk = None,
    shard: options.Shard = None,
    strict: options.Strict = False,
    text: options.TextColumn = None,
    doc_id: options.IdColumn = None,
    vector: options.VectorColumn = None,
    split: options.Split = None,
    insist: options.Insist = False,
    tensor: Annotated[
        str | None, Option(metavar="NAME", help="The tensor in a .safetensors file.")
    ] = None,
    question: Annotated[
        str | None, Option(metavar="TEXT", help="What an oracle is asked about every row.")
    ] = None,
    question_column: Annotated[
        str | None, Option(metavar="NAME", help="The column that holds each row's question.")
    ] = None,
    choices: options.Choices = None,
    no_controls: Annotated[
        bool,
        Option("--no-controls", help="Do not ask an oracle each question without the vectors too."),
    ] = False,
    layer: Annotated[
        int | None,
        Option(
            min=0,
            metavar="N",
            help="The vectors are the output of block N, counted from 0, of those that the "
            "verbalizer was trained on. Default: the first of them.",
        ),
    ] = None,
    dtype: options.Dtype = "auto",
    device_map: options.DeviceMap = None,
    as_json: options.AsJson = False,
) -> None:
    """Explain a data set. Run the same command again to resume after an interruption."""
    with spinner("loading"):
        from .. import bulk
        from ..core.sampling import Sampling

        rows = bulk.open_source(
            source, text=text, vector=vector, doc_id=doc_id, question=question_column, split=split,
            tensor=tensor,
        )  # fmt: skip
        texts = options.engine_of(engine, vllm, url)
        if rows.kind == "texts" or (av is None and url is None):
            target_model, nla = load(
                av, ar, target, dtype, device_map, remote=remote, pair=model, texts=texts
            )
        else:
            target_model = None
            nla = load_nla(av, ar, dtype, device_map, remote=remote, texts=texts)
    report = bulk.run(
        nla.at_layer(options.block_of(nla, layer)),
        rows,
        output,
        model=target_model,
        question=question,
        choices=options.words_of(choices),
        controls=not no_controls,
        positions=positions,
        skip=skip,
        max_tokens=max_tokens,
        samples=samples,
        sampling=Sampling(
            temperature,
            top_p,
            max_new_tokens=max_new_tokens,
            seed=seed,
            upto=options.upto_of(upto),
        ),
        score=score,
        vectors=vectors,
        batch_size=batch_size,
        chunk=chunk,
        shard=shard,
        remote=remote,
        strict=strict,
        claims="ignore" if insist else "check",
    )
    _report(report, as_json)


@command()
def merge(
    inputs: Annotated[list[Path], Argument(metavar="SHARDS...", help="The outputs of all shards.")],
    output: options.Output,
    as_json: options.AsJson = False,
) -> None:
    """Combine the outputs of all shards into the file that a single run would have written."""
    with spinner("merging"):
        from .. import bulk

        rows, errors = bulk.merge(inputs, output)
    if as_json:
        print_json({"output": str(output), "rows": rows, "errors": errors})
    else:
        out.print(f"{output}: {rows:,} rows, {errors} with an error", soft_wrap=True)


@command()
def extract(
    source: Annotated[
        str,
        Argument(
            metavar="INPUT",
            help="Texts: .jsonl, .parquet, or the folder or name of a Hugging Face data set.",
        ),
    ],
    output: options.Output,
    target: options.Target = None,
    layer: Annotated[
        int | None,
        Option(min=0, metavar="N", help="The block whose output is read, counted from 0."),
    ] = None,
    av: Annotated[
        str | None,
        Option(
            metavar="AV",
            help="Use the layer, template and marker of this verbalizer. Default: the one of tiny, "
            "unless --target is given.",
        ),
    ] = None,
    positions: options.Positions = "random:10",
    skip: options.Skip = 0,
    seed: Annotated[
        int, Option(metavar="N", help="The seed of the random positions and the splits.")
    ] = 0,
    max_tokens: options.MaxTokens = None,
    splits: Annotated[
        str | None,
        Option(
            metavar="NAME=X,...",
            help="Split by document, one file per split, such as train=0.9,test=0.1.",
        ),
    ] = None,
    next_tokens: Annotated[
        int,
        Option(
            min=0,
            metavar="N",
            help="Also write the target's N likeliest next tokens at each position.",
        ),
    ] = 0,
    remote: options.Remote = False,
    chunk: options.Chunk = None,
    shard: options.Shard = None,
    strict: options.Strict = False,
    text: options.TextColumn = None,
    doc_id: options.IdColumn = None,
    split: options.Split = None,
    insist: options.Insist = False,
    marker: Annotated[
        str | None,
        Option(
            metavar="CHAR",
            help="The character at whose token the vector is injected. Default: a rare one.",
        ),
    ] = None,
    template: Annotated[
        str | None,
        Option(
            metavar="TEXT",
            help="The verbalizer's user message, with {injection_char} for the marker.",
        ),
    ] = None,
    system: Annotated[
        str | None,
        Option(
            metavar="TEXT",
            help="The system message before --template. Default: the chat template's own.",
        ),
    ] = None,
    ar_template: Annotated[
        str | None,
        Option(metavar="TEXT", help="The reconstructor's prompt, with {explanation} for the text."),
    ] = None,
    dtype: options.Dtype = "auto",
    device_map: options.DeviceMap = None,
    as_json: options.AsJson = False,
) -> None:
    """Extract a target's activations over a corpus as training rows. Run it again to resume."""
    with spinner("loading"):
        from .. import bulk

        rows = bulk.open_source(source, text=text, doc_id=doc_id, split=split)
        given = {
            "marker": marker,
            "template": template,
            "system": system,
            "ar_template": ar_template,
        }
        written = {name: value for name, value in given.items() if value is not None}
        model, checkpoint = _target_and_checkpoint(target, layer, av, dtype, device_map, written)
    from ..training.saving import MARKERS

    if av is None and marker is None and checkpoint.marker != MARKERS[0]:
        err.print(Text(f"The marker is {checkpoint.marker}: this tokenizer splits {MARKERS[0]}."))
    report = bulk.extract(
        model,
        rows,
        output,
        checkpoint=checkpoint,
        positions=positions,
        skip=skip,
        seed=seed,
        max_tokens=max_tokens,
        splits=_parse_splits(splits),
        next_tokens=next_tokens,
        chunk=chunk,
        shard=shard,
        remote=remote,
        strict=strict,
        claims="ignore" if insist else "check",
    )
    _report(report, as_json)


@command()
def label(
    source: Annotated[Path, Argument(metavar="INPUT", help="A file that extract wrote.")],
    output: options.Output,
    by: Annotated[
        str,
        Option(
            metavar="MODULE:FUNCTION|FILE",
            help="A function that gets a row and returns its explanation or None; or a .parquet "
            "file with the columns doc_id, n_raw_tokens, and api_explanation, response or text.",
        ),
    ],
    workers: Annotated[int, Option(min=1, metavar="N", help="The number of concurrent calls.")] = 1,
    chunk: Annotated[
        int,
        Option(
            min=1,
            metavar="N",
            help="Rows per chunk. A resumed run repeats at most one unfinished chunk.",
        ),
    ] = 64,
    strict: options.Strict = False,
    edited: Annotated[
        Literal["refuse", "accept"],
        Option(
            help="Whether to resume after the function was edited, and keep the labels of its "
            "earlier version."
        ),
    ] = "refuse",
    as_json: options.AsJson = False,
) -> None:
    """Add an explanation to each extracted row, to train on. Run it again to resume."""
    from .. import bulk

    made_by = (
        by
        if by.endswith(".parquet")
        else import_function(by, "--by", otherwise=", or a .parquet file")
    )
    report = bulk.label(
        source, output, by=made_by, workers=workers, chunk=chunk, strict=strict, edited=edited
    )
    _report(report, as_json)


def _target_and_checkpoint(
    target: str | None,
    layer: int | None,
    av: str | None,
    dtype: str,
    device_map: str | None,
    written: dict[str, Any],
) -> tuple[TransformersModel, Checkpoint]:
    """Load the target, and the checkpoint that the rows are made for."""
    from .. import tiny
    from ..checkpoint.checkpoint import Checkpoint
    from ..models import hosts
    from ..training import describe

    if av is not None and written:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in written)
        raise NLAError(f"{flags}: {av} already defines it. Remove it, or remove --av.")
    if av is None and target is None:
        model, nla = tiny.load()
        if written:
            own = nla.checkpoint
            return model, describe(
                model.tokenizer, layer=own.layer, d_model=own.d_model, base_model=own.base_model,
                **written,
            )  # fmt: skip
        return model, nla.checkpoint
    checkpoint = Checkpoint.load(av) if av is not None else None
    name = target or (checkpoint and checkpoint.base_model)
    if name is None:
        raise NLAError(f"{av} does not name its target; add --target PATH_OR_ID.")
    model = load_target(name, dtype, device_map)
    if checkpoint is None:
        if layer is None:
            raise NLAError(
                "No layer is given. Add --layer K, or --av for the layer of a verbalizer."
            )
        width = hosts.width(model)
        checkpoint = describe(
            model.tokenizer, layer=layer, d_model=width, base_model=hosts.describe(model),
            **written,
        )  # fmt: skip
    elif layer not in (None, checkpoint.layer):
        raise NLAError(f"--layer {layer}: {av} was trained on layer {checkpoint.layer}.")
    return model, checkpoint


def _parse_splits(splits: str | None) -> dict[str, float] | None:
    if splits is None:
        return None
    try:
        pairs = [part.split("=") for part in splits.split(",")]
        return {name.strip(): float(share) for name, share in pairs}
    except ValueError as error:
        raise NLAError(
            f"--splits {splits!r}: expected names and shares, such as train=0.9,test=0.1."
        ) from error


def _report(report: Report, as_json: bool) -> None:
    if as_json:
        print_json({**asdict(report), "outputs": list(map(str, report.outputs))})
    else:
        out.print(str(report), soft_wrap=True, highlight=False)
