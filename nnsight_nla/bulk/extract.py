"""Extract a target's activations over a corpus, in the published schema: `extract`.

    extract(model, "corpus.jsonl", "rows.parquet", checkpoint=describe(model.tokenizer, ...))

The output has one row per selected position, with the columns of the published training pipeline
(``activation_vector``, ``doc_id``, ``n_raw_tokens``, ``activation_layer``,
``detokenized_text_truncated``), and a sidecar that names their model and layer. Documents that
cannot be read go to a separate file, so the training data have no rows with errors.

With ``next_tokens=3`` a row also has the target's three likeliest next tokens, a label that needs
no judgement.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ..checkpoint.origin import Claims
from ..errors import InjectionError, NLAError
from ..models import hosts
from ..models.fingerprint import fingerprint_model
from . import records
from .finished_file import sibling
from .manifest import VERSION, versions
from .pipeline import Job, Report, run_job
from .residuals import ItemResiduals, ResidualReader
from .sources import VECTOR, Source, open_source
from .token_selection import parse_positions

if TYPE_CHECKING:
    from nnsight import TransformersModel

    from ..checkpoint.checkpoint import Checkpoint

CHUNK = 64
"""The default number of documents per chunk."""
_TEXT = "detokenized_text_truncated"
_PART = 1 << 24
"""The maximum number of characters of texts in memory at the same time."""


def extract(
    model: TransformersModel,
    source: str | Path | Source,
    output: str | Path,
    *,
    checkpoint: Checkpoint,
    positions: str | int = "random:10",
    skip: int = 0,
    seed: int = 0,
    max_tokens: int | None = None,
    splits: Mapping[str, float] | None = None,
    next_tokens: int = 0,
    chunk: int | None = None,
    shard: str | None = None,
    remote: bool = False,
    strict: bool = False,
    claims: Claims = "check",
    progress: bool = True,
) -> Report:
    """Extract the residuals of a corpus at one layer; resume a call that was interrupted.

    Args:
        model: The target.
        source: Texts; see `open_source`.
        output: A Parquet file; documents that cannot be read go to ``STEM.errors.parquet``.
        checkpoint: The layer, and the template and marker of the NLA that the rows are for: an
            NLA's own, or ``training.describe(tokenizer, layer=..., d_model=...)``.
        positions: Which tokens; see `token_selection`. ``random:10`` draws ten of each document.
        skip: Leave out positions below this.
        seed: The seed of ``random:N`` and of the splits.
        max_tokens: Read at most this many tokens of a document.
        splits: Names and shares, such as ``{"train": 0.9, "test": 0.1}``: a file for each,
            ``STEM.train.parquet``; all rows of a document go to the same file.
        next_tokens: How many of the target's likeliest next tokens to write at each position, in a
            column ``next_tokens``, likeliest first; the whole target runs then, not the blocks to K
            only.
        chunk: Documents per chunk: the maximum that is repeated after an interruption.
        shard: ``"i/n"``: process only shard i of n; `merge` combines the outputs.
        remote: Run the target on the configured NDIF host.
        strict: Stop at the first document that cannot be read.
        claims: ``"ignore"`` accepts a model whose name and configuration differ from the
            checkpoint's; the output then says so, and names the model that was used.
        progress: Show a progress bar, if standard error is a terminal.

    Raises:
        NLAError: The input cannot be read, the output cannot be written or was made with other
            settings. What is finished is kept.
    """
    output = Path(output).expanduser()
    rows = source if isinstance(source, Source) else open_source(source)
    if rows.kind != "texts":
        raise NLAError(f"{rows.identity['name']} holds vectors already; extract reads texts.")
    selection = parse_positions(positions, skip=skip, seed=seed)
    reader = ResidualReader(model, checkpoint.layer, selection, max_tokens, remote, next_tokens)
    if hosts.width(model) != checkpoint.d_model:
        raise InjectionError(
            f"{hosts.describe(model)} has d_model {hosts.width(model)}, the checkpoint says "
            f"{checkpoint.d_model}. Describe the NLA for this target: training.describe(...)."
        )
    origin, ignored = reader.origin(checkpoint, claims)
    shares = dict(splits or {})
    split_of = _split_by_hash(shares, seed)
    manifest = {
        "made_by": "nnsight-nla extract",
        "version": VERSION,
        "shard": shard,
        "input": {"kind": rows.kind, "rows": rows.count, **rows.identity},
        "target": {**fingerprint_model(model), "layer": checkpoint.layer, "remote": remote},
        "positions": selection.spec,
        "skip": skip,
        "seed": seed,
        "max_tokens": max_tokens,
        "splits": shares,
        "chunk": chunk or CHUNK,
        "versions": versions(),
        **({"claims": {"ignored": ignored}} if ignored else {}),
        **({"next_tokens": next_tokens} if next_tokens else {}),
    }
    columns = schema(checkpoint.d_model, splits=bool(shares), next_tokens=bool(next_tokens))

    def finish(found: Sequence[ItemResiduals]) -> Iterator[pa.Table]:
        rows = (
            row
            for each in found
            for row in _rows(each, checkpoint.layer, split_of(each.item.doc_id))
        )
        # Each row has the text up to it: all of a long document's take much more than itself.
        part, size = list[dict[str, Any]](), 0
        for row in rows:
            part.append(row)
            size += len(row.get(_TEXT) or "")
            if size > _PART:
                yield records.to_table(part, columns)
                part, size = [], 0
        yield records.to_table(part, columns)

    job = Job(
        "extracting",
        rows,
        manifest,
        columns,
        origin.to_sidecar(checkpoint, ignored),
        reader.read,
        finish,
        remote=remote,
        strict=strict,
        splits={name: sibling(output, name) for name in shares},
        errors_file=sibling(output, "errors"),
        ignored=tuple(ignored),
    )
    return run_job(job, output, progress=progress)


def schema(d_model: int, *, splits: bool, next_tokens: bool = False) -> pa.Schema:
    """Return the columns of extracted rows; ``split`` and ``error`` decide a row's file."""
    return pa.schema(
        [
            *([pa.field("split", pa.string())] if splits else []),
            pa.field("doc_id", pa.string(), nullable=False),
            pa.field("position", pa.int64()),
            pa.field("n_raw_tokens", pa.int64()),
            pa.field("token", pa.string()),
            pa.field("activation_layer", pa.int64(), nullable=False),
            pa.field(_TEXT, pa.string()),
            *([pa.field("next_tokens", pa.list_(pa.string()))] if next_tokens else []),
            pa.field(VECTOR, pa.list_(pa.float32(), d_model)),
            pa.field("error", pa.string()),
        ]
    )


def _rows(found: ItemResiduals, layer: int, split: str | None) -> Iterator[dict[str, Any]]:
    here = {"doc_id": found.item.doc_id, "activation_layer": layer, "split": split}
    if found.item.error is not None:
        yield {**here, "error": found.item.error}
        return
    for place, position in enumerate(found.positions):
        if position is None:
            continue
        yield {
            **here,
            "position": position,
            "n_raw_tokens": position + 1,  # As published: counts this token too.
            "token": found.tokens[place],
            _TEXT: found.read[place],
            "next_tokens": found.next_tokens[place] if found.next_tokens else None,
            VECTOR: found.vectors[place].numpy(),
        }


def _split_by_hash(shares: dict[str, float], seed: int) -> Callable[[str], str | None]:
    """Return a function from a document's name to its split, the same on every machine."""
    total = sum(shares.values())
    if shares and (min(shares.values()) <= 0 or abs(total - 1) > 1e-6 or "errors" in shares):
        raise NLAError(
            f"splits={shares}: expected names (other than errors) and shares above 0 that add up "
            'to 1, such as {"train": 0.9, "test": 0.1}.'
        )
    names, ends = list(shares), list(accumulate(shares.values()))

    def split_of(doc_id: str) -> str | None:
        # Not the hash by which training holds out documents: each split has its share of those.
        digest = hashlib.blake2b(f"split {seed} {doc_id}".encode(), digest_size=8).digest()
        place = bisect_right(ends, int.from_bytes(digest, "big") / 2**64)
        return names[min(place, len(names) - 1)] if names else None

    return split_of
