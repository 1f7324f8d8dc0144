"""Arguments and options that several commands share, each defined once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

AsJson = Annotated[bool, Option("--json", help="Print one JSON document instead.")]

# The models.
AvArgument = Annotated[str, Argument(metavar="AV", help="The verbalizer: a folder or a Hub id.")]
Model = Annotated[
    Literal["tiny", "smollm2"],
    Option(
        "--model",
        help="The pair without --av: tiny, which is embedded and lives in a made-up world, or "
        "smollm2, a real language model.",
    ),
]
Av = Annotated[
    str | None,
    Option(help="The verbalizer: a folder or a Hub id. Default: --model."),
]
Ar = Annotated[
    str | None,
    Option(help="The reconstructor: a folder or a Hub id. Gives trust labels and scores."),
]
Target = Annotated[
    str | None,
    Option(help="The target: a folder or a Hub id. Default: the one that the AV names."),
]
Remote = Annotated[bool, Option("--remote", help="Run the models on the NDIF host.")]
Dtype = Annotated[str, Option(help="The dtype of the models, as in transformers.")]
DeviceMap = Annotated[str | None, Option(help="Where the models go, as in transformers.")]
MaxNewTokens = Annotated[int, Option(min=1, help="The longest reply, in tokens.")]

# Texts and tokens.
Text = Annotated[str, Argument(metavar="TEXT", help="The text that the target reads.")]
Positions = Annotated[
    str,
    Option(
        help="Which tokens: all, last, every:N, random:N, regex:PATTERN (where each match ends), "
        "or class:word, capital, number, punctuation, sentence, newline."
    ),
]
Skip = Annotated[int, Option(min=0, help="Skip the positions before this one.")]
MaxTokens = Annotated[
    int | None, Option(min=1, help="Read at most this many tokens of each document.")
]

# Data sets.
Output = Annotated[Path, Argument(metavar="OUTPUT", help="The Parquet file to write.")]
Chunk = Annotated[
    int | None,
    Option(min=1, help="Rows of INPUT per chunk; finished chunks are not done again."),
]
Shard = Annotated[
    str | None, Option(help="i/n: process only shard i of n; combine them with merge.")
]
Strict = Annotated[
    bool, Option("--strict", help="Stop at the first bad row. Default: record its error.")
]
TextColumn = Annotated[str | None, Option("--text-column", help="The column of the texts.")]
VectorColumn = Annotated[str | None, Option("--vector-column", help="The column of the vectors.")]
Insist = Annotated[
    bool,
    Option(
        "--insist",
        help="Use vectors that say they are of another model, block or norm. The output says so.",
    ),
]
IdColumn = Annotated[str | None, Option("--id-column", help="The column of the row ids.")]
Split = Annotated[str | None, Option(help="The split of a Hugging Face data set.")]

# Training rows.
LabelledRows = Annotated[
    Path, Argument(metavar="ROWS", help="Labelled rows: a Parquet file with its sidecar.")
]
HeldOut = Annotated[
    float, Option(min=0.0, max=1.0, help="The share of documents that is not trained on.")
]
