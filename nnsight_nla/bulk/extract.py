"""Activations of a target over a corpus, in the published schema: `extract`.

    extract(model, "corpus.jsonl", "rows.parquet", checkpoint=describe(model.tokenizer, ...))

One row per chosen position, with the columns that the projects' pipeline begins with
(``activation_vector``, ``doc_id``, ``n_raw_tokens``, ``activation_layer``,
``detokenized_text_truncated``), and a sidecar that says what they are rows of. Documents that
cannot be read go to a file of their own, so that what is trained on has none.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ..errors import InjectionError, NLAError
from ..models import hosts
from . import fingerprint, records
from .finished_file import dataset_sidecar
from .manifest import VERSION, versions
from .pipeline import Job, Report, work
from .residuals import Found, Reader
from .sources import VECTOR, Source, open_source
from .token_selection import parse

if TYPE_CHECKING:
    from ..checkpoint.checkpoint import Checkpoint

CHUNK = 64
"""Documents per chunk, unless you say."""


def extract(
    model: Any,
    source: str | Path | Source,
    output: str | Path,
    *,
    checkpoint: Checkpoint,
    positions: str | int = "random:10",
    skip: int = 0,
    seed: int = 0,
    max_tokens: int | None = None,
    splits: Mapping[str, float] | None = None,
    chunk: int | None = None,
    shard: str | None = None,
    remote: bool = False,
    strict: bool = False,
    progress: bool = True,
) -> Report:
    """Read a corpus' residuals at one layer, and go on where an earlier run stopped.

    Args:
        model: The target, an nnsight model.
        source: Texts; see `open_source`.
        output: A Parquet file; documents that cannot be read go to ``STEM.errors.parquet``.
        checkpoint: The layer, and the template and marker of the NLA that the rows are for: an
            NLA's own, or ``training.describe(tokenizer, layer=..., d_model=...)``.
        positions: Which tokens; see `places`. ``random:10`` draws ten of each document.
        skip: Positions below this are left out.
        seed: Of ``random:N`` and of the splits.
        max_tokens: Only so many tokens of a document are read.
        splits: Names and shares, such as ``{"train": 0.9, "test": 0.1}``: a file for each,
            ``STEM.train.parquet``; a document is in one of them with all its rows.
        chunk: Documents per chunk: what at most is done twice after an interruption.
        shard: ``"i/n"``: do only part i of n; `merge` puts the parts together.
        remote: Run the target on the configured NDIF host.
        strict: End at the first document that cannot be read.
        progress: Show a bar, where standard error is a terminal.

    Raises:
        NLAError: The input cannot be read, the output not be written, or it was begun with other
            settings; what is finished is kept.
    """
    output = Path(output).expanduser()
    rows = source if isinstance(source, Source) else open_source(source)
    if rows.kind != "texts":
        raise NLAError(f"{rows.identity['name']} holds vectors already; extract reads texts.")
    places = parse(positions, skip=skip, seed=seed)
    reader = Reader(model, checkpoint.layer, places, max_tokens, remote)
    if hosts.width(model) != checkpoint.d_model:
        raise InjectionError(
            f"{hosts.describe(model)} has d_model {hosts.width(model)}, the checkpoint says "
            f"{checkpoint.d_model}. Describe the NLA for this target: training.describe(...)."
        )
    shares = dict(splits or {})
    chosen = _chooser(shares, seed)
    size = chunk or CHUNK
    manifest = {
        "made_by": "nnsight-nla extract",
        "version": VERSION,
        "shard": shard,
        "input": {"kind": rows.kind, "rows": rows.count, **rows.identity},
        "target": {**fingerprint.model(model), "layer": checkpoint.layer, "remote": remote},
        "positions": places.spec,
        "skip": skip,
        "seed": seed,
        "max_tokens": max_tokens,
        "splits": shares,
        "chunk": size,
        "versions": versions(),
    }
    columns = schema(checkpoint.d_model, splits=bool(shares))

    def finish(found: Sequence[Found]) -> pa.Table:
        made = [row for each in found for row in _rows(each, checkpoint.layer, chosen)]
        return records.table(made, columns)

    job = Job(
        "extracting",
        rows,
        size,
        manifest,
        columns,
        dataset_sidecar(checkpoint, manifest),
        reader.read,
        finish,
        waits=remote,
        strict=strict,
        splits={name: beside(output, name) for name in shares},
        apart=beside(output, "errors"),
    )
    return work(job, output, progress=progress)


def schema(d_model: int, *, splits: bool) -> pa.Schema:
    """The columns of extracted rows; ``split`` and ``error`` say which file a row goes to."""
    return pa.schema(
        [
            *([pa.field("split", pa.string())] if splits else []),
            pa.field("doc_id", pa.string(), nullable=False),
            pa.field("position", pa.int64()),
            pa.field("n_raw_tokens", pa.int64()),
            pa.field("token", pa.string()),
            pa.field("activation_layer", pa.int64(), nullable=False),
            pa.field("detokenized_text_truncated", pa.string()),
            pa.field(VECTOR, pa.list_(pa.float32(), d_model)),
            pa.field("error", pa.string()),
        ]
    )


def _rows(found: Found, layer: int, chosen: Any) -> list[dict[str, Any]]:
    item = found.item
    here = {"doc_id": item.doc_id, "activation_layer": layer, "split": chosen(item.doc_id)}
    if item.error is not None:
        return [{**here, "error": item.error}]
    return [
        {
            **here,
            "position": position,
            "n_raw_tokens": position + 1,  # As published: the tokens that were read, this one too.
            "token": found.tokens[place],
            "detokenized_text_truncated": found.read[place],
            VECTOR: found.vectors[place].numpy(),
        }
        for place, position in enumerate(found.positions)
        if position is not None
    ]


def _chooser(shares: dict[str, float], seed: int) -> Any:
    """A document's split, from a hash of its name: the same in every run and on every machine."""
    total = sum(shares.values())
    if shares and (min(shares.values()) <= 0 or abs(total - 1) > 1e-6 or "errors" in shares):
        raise NLAError(
            f"splits {shares}: expected names (other than errors) and shares above 0 that add up "
            "to 1, such as train=0.9 test=0.1."
        )
    names, ends = list(shares), list(accumulate(shares.values()))

    def chosen(doc_id: str) -> str | None:
        # Not the hash that training holds documents out by: a split has its share of those too.
        digest = hashlib.blake2b(f"split {seed} {doc_id}".encode(), digest_size=8).digest()
        place = bisect_right(ends, int.from_bytes(digest, "big") / 2**64)
        return names[min(place, len(names) - 1)] if names else None

    return chosen


def beside(output: Path, name: str) -> Path:
    """A part's file: ``rows.parquet`` and ``train`` give ``rows.train.parquet``."""
    return output.with_name(f"{output.stem}.{name}{output.suffix}")
