"""Arguments and options that several commands share, each defined once.

Metavars name the kind of value: AV and AR for a verbalizer and a reconstructor, MODEL for any other
model (all three are a folder or a Hub id), ROWS for a file of labelled rows, FILE and FOLDER for
other paths, TEXT, NAME, N for an integer, X for a real number.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, Option

from .. import pairs
from ..errors import NLAError, shown

if TYPE_CHECKING:
    from ..nla import NLA

AsJson = Annotated[bool, Option("--json", help="Print one JSON document instead.")]

# The models.
AvArgument = Annotated[str, Argument(metavar="AV", help="The verbalizer: a folder or a Hub id.")]
Model = Annotated[
    pairs.Name,
    Option(
        "--model",
        help="The pair to use without --av: tiny, a small model of a made-up world; smollm2, a "
        "real language model; or qwen3-8b, from the Hub, for a GPU.",
    ),
]
DemoModel = Annotated[
    Literal["tiny", "smollm2"],
    Option(
        "--model",
        help="Which bundled verbalizer and reconstructor to use: those of tiny, a small model of "
        "a made-up world, or of smollm2, a real language model.",
    ),
]
Av = Annotated[
    str | None,
    Option(metavar="AV", help="The verbalizer: a folder or a Hub id. Default: the one of --model."),
]
Ar = Annotated[
    str | None,
    Option(
        metavar="AR",
        help="The reconstructor: a folder or a Hub id. Trust labels and scores need it.",
    ),
]
Target = Annotated[
    str | None,
    Option(
        metavar="MODEL",
        help="The target: a folder or a Hub id. Default: the one that the verbalizer names.",
    ),
]
Remote = Annotated[bool, Option("--remote", help="Run the models on the configured NDIF host.")]
Engine = Annotated[
    str, Option(metavar="NAME", help="What generates the texts: fast, generate, or vllm.")
]
Vllm = Annotated[
    str | None, Option(metavar="TEXT", help="For --engine vllm: options of vLLM, as JSON.")
]
Url = Annotated[
    str | None,
    Option(
        metavar="URL",
        help="Let the server at this address, from nnsight-nla serve, generate the texts. Its "
        "verbalizer is the default of --av.",
    ),
]
Dtype = Annotated[
    str, Option(metavar="DTYPE", help="The dtype of the models: auto, float32, bfloat16, ...")
]
DeviceMap = Annotated[
    str | None,
    Option(metavar="MAP", help="The device of the models: auto, cpu, cuda, ... as in accelerate."),
]

Position = Annotated[
    str,
    Option(
        metavar="WHICH",
        help="Which tokens: an index (-1 is the last), several (0,3,-1), or 'all'.",
    ),
]

# Questions to an oracle.
Choices = Annotated[
    str | None,
    Option(
        metavar="WORDS",
        help="Compare the probabilities of these words, separated by commas (Yes,No), and "
        "generate nothing.",
    ),
]
# The verbalizer's replies.
MaxNewTokens = Annotated[
    int, Option(min=1, metavar="N", help="The maximum length of a reply, in tokens.")
]
Upto = Annotated[
    str | None,
    Option(
        "--upto",
        metavar="line|N",
        help="End each explanation after its first line, or after N tokens.",
    ),
]
Temperature = Annotated[
    float,
    Option(
        min=0.0,
        metavar="X",
        help="The verbalizer's sampling temperature; 0 is greedy decoding.",
    ),
]
Samples = Annotated[
    int,
    Option(min=1, metavar="N", help="Explanations per vector; more than 1 needs --temperature."),
]
SamplingSeed = Annotated[
    int, Option("--seed", metavar="N", help="The seed for sampling, with --temperature.")
]

# Texts and tokens.
Text = Annotated[str, Argument(metavar="TEXT", help="The text that the target reads.")]
Positions = Annotated[
    str,
    Option(
        metavar="WHICH",
        help="Which tokens: all, last, every:N, random:N, regex:PATTERN (the last token of each "
        "match), or class:NAME, where NAME is word, capital, number, punctuation, sentence or "
        "newline.",
    ),
]
Skip = Annotated[
    int, Option(min=0, metavar="N", help="Skip the first N positions of each document.")
]
MaxTokens = Annotated[
    int | None, Option(min=1, metavar="N", help="Read at most N tokens of each document.")
]

Layer = Annotated[
    int | None,
    Option(
        min=0,
        metavar="N",
        help="Explain the output of block N, counted from 0. Default: the block that the "
        "verbalizer was trained on; a block that it was not trained on needs --insist.",
    ),
]
InsistLayer = Annotated[
    bool,
    Option(
        "--insist",
        help="Accept a --layer that the verbalizer was not trained on. The output says so.",
    ),
]

# Pages.
Open = Annotated[bool, Option("--open", help="Open the page in a browser.")]

# Data sets.
Output = Annotated[Path, Argument(metavar="OUTPUT", help="The Parquet file to write.")]
Chunk = Annotated[
    int | None,
    Option(
        min=1,
        metavar="N",
        help="Rows of INPUT per chunk. A resumed run repeats at most one unfinished chunk. "
        "Default: chosen automatically.",
    ),
]
Shard = Annotated[
    str | None,
    Option(metavar="I/N", help="Process only shard I of N, counted from 1. See merge."),
]
Strict = Annotated[
    bool, Option("--strict", help="Stop at the first bad row. Default: record the error and go on.")
]
TextColumn = Annotated[
    str | None, Option("--text-column", metavar="NAME", help="The column that holds the texts.")
]
VectorColumn = Annotated[
    str | None, Option("--vector-column", metavar="NAME", help="The column that holds the vectors.")
]
Insist = Annotated[
    bool,
    Option(
        "--insist",
        help="Accept vectors of a different model, layer or norm than the verbalizer was trained "
        "on. The output says so.",
    ),
]
IdColumn = Annotated[
    str | None, Option("--id-column", metavar="NAME", help="The column that holds the row ids.")
]
Split = Annotated[str | None, Option(metavar="NAME", help="The split of a Hugging Face data set.")]

# Training rows.
LabelledRows = Annotated[
    Path, Argument(metavar="ROWS", help="Labelled rows: a Parquet file with its sidecar.")
]
HeldOut = Annotated[
    float,
    Option(min=0.0, max=1.0, metavar="X", help="The fraction of documents held out of training."),
]


def engine_of(engine: str, vllm: str | None, url: str | None) -> dict[str, Any]:
    """Return the keyword arguments of `NLA` that say what generates the texts.

    Raises:
        NLAError: --vllm is not a JSON object.
    """
    found: dict[str, Any] = {"engine": "vllm" if url is not None else engine}
    found |= {} if url is None else {"url": url}
    found |= {} if vllm is None else {"vllm": json_object("--vllm", vllm)}
    return {} if found == {"engine": "fast"} else found


def json_object(option: str, text: str) -> dict[str, Any]:
    """Return the JSON object in an option's value.

    Raises:
        NLAError: It is none.
    """
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise NLAError(
            f"{option} {shown(text)}: expected a JSON object, such as "
            "'{\"gpu_memory_utilization\": 0.4}'."
        )
    return found


def upto_of(given: str | None) -> Any:
    """Return the value of --upto as a number, or as it is; `Sampling` checks it."""
    return int(given) if given is not None and given.isdecimal() else given


def words_of(choices: str | None) -> list[str] | None:
    """Return the words of --choices.

    Raises:
        NLAError: There are fewer than two.
    """
    if choices is None:
        return None
    words = [word.strip() for word in choices.split(",")]
    if len(words) < 2 or not all(words):
        raise NLAError(
            f"--choices {choices!r}: expected at least two words, separated by commas, such as "
            "Yes,No."
        )
    return words


def block_of(nla: NLA, layer: int | None) -> int:
    """Return the number of the block to read: the one of --layer, or the NLA's own.

    Raises:
        NLAError: The verbalizer was not trained on it.
    """
    if layer is not None and layer not in nla.layers:
        told = ", ".join(map(str, nla.layers))
        raise NLAError(
            f"--layer {layer}: the verbalizer was trained on layer {told}. Choose one of these, or "
            "remove --layer."
        )
    return nla.checkpoint.layer if layer is None else layer
