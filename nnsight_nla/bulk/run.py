"""A data set in, explanations out: `run`.

    run(nla, "corpus.jsonl", "out.parquet", model=model, positions="every:10")
    run(nla, "decoder.safetensors", "features.parquet")

Texts go through the target, at chosen positions; vectors go to the verbalizer as they are. See
`work` for the loop, `parts` for what survives, `records` for the columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from ..errors import NLAError
from ..models.adapter import AdapterModel
from . import fingerprint, records
from .chunk_store import Parts
from .finished_file import dataset_sidecar, note_of
from .manifest import VERSION, versions
from .pipeline import Job, Report, work
from .residuals import Found, Reader
from .sources import Item, Source, open_source
from .token_selection import parse

if TYPE_CHECKING:
    from ..checkpoint.checkpoint import Checkpoint
    from ..checkpoint.prompt import Prompt
    from ..core.sampling import Sampling
    from ..explanation.handle import Explanation

CHUNKS = {"vectors": 1024, "last": 256, "texts": 32}
"""Rows of the input per chunk, unless you say: documents give several vectors each."""


class Explains(Protocol):
    """The NLA, as far as a run needs it."""

    av: Any
    ar: Any
    target: Any
    checkpoint: Checkpoint
    prompt: Prompt
    sampling: Sampling
    remote: bool
    spec: dict[str, Any] | None
    has_reconstructor: bool
    batch_size: int

    def layer(self, model: Any) -> Any:
        """The handle on the residual, which checks the model."""
        ...

    def explain(self, vectors: torch.Tensor, **options: Any) -> Explanation:
        """Capture vectors."""
        ...

    def resolve(self, handles: Any = None) -> None:
        """Write the texts."""
        ...

    def reconstruct(self, text: Any) -> torch.Tensor:
        """Texts to vectors."""
        ...


def run(
    nla: Explains,
    source: str | Path | Source,
    output: str | Path,
    *,
    model: Any = None,
    positions: str | int = "all",
    skip: int = 0,
    max_tokens: int | None = None,
    samples: int = 1,
    sampling: Sampling | None = None,
    score: bool = True,
    vectors: bool = False,
    batch_size: int | None = None,
    chunk: int | None = None,
    shard: str | None = None,
    remote: bool = False,
    strict: bool = False,
    progress: bool = True,
) -> Report:
    """Explain every row of a data set, and go on where an earlier run of the same stopped.

    Args:
        nla: The NLA.
        source: Texts or vectors: a file, a folder, a data set's name, or what `open_source` made
            of one, which also takes the names of columns.
        output: A Parquet file; what is finished lies in ``OUTPUT.parts`` until it is whole.
        model: The target, for texts.
        positions: Which tokens of a text are explained; see `places`. N is every N-th.
        skip: Positions below this are left out.
        max_tokens: Only so many tokens of a text are read.
        samples: Texts per vector; above 1 only with a temperature above 0.
        sampling: How tokens are chosen; the NLA's own unless given.
        score: Turn every text back into a vector and record the cosine, where there is a
            reconstructor.
        vectors: Write the vectors into the file too.
        batch_size: Vectors per verbalizer batch; the NLA's own unless given. It is recorded, and
            a run that goes on uses the same (it sets ``nla.batch_size``).
        chunk: Rows of the input per chunk: what at most is done twice after an interruption. No
            batch crosses a chunk.
        shard: ``"i/n"``: do only part i of n; `merge` puts the parts together.
        remote: Run the target on the configured NDIF host (the verbalizer runs where `nla` says).
        strict: End at the first bad row, where else it is recorded with its error.
        progress: Show a bar, where standard error is a terminal.

    Returns:
        What was done, in `str()` and as data.

    Raises:
        NLAError: The input cannot be read, the output not be written, or it was begun with other
            settings; what is finished is kept.
    """
    output = Path(output).expanduser()
    rows = source if isinstance(source, Source) else open_source(source)
    reader = _reader(nla, rows, model, positions, skip, max_tokens, remote)
    chosen = sampling or nla.sampling
    reads = score and nla.has_reconstructor
    size = chunk or _chunk(rows, positions)
    manifest: dict[str, Any] = {
        "made_by": "nnsight-nla run",
        "version": VERSION,
        "shard": shard,
        "input": {"kind": rows.kind, "rows": rows.count, **rows.identity},
        **_target(reader),
        "chunk": size,
        "verbalizer": _verbalizer(nla),
        "reconstructor": _reconstructor(nla) if reads else None,
        "sampling": vars(chosen),
        "samples": samples,
        "vectors": vectors,
        "versions": versions(),
    }
    manifest["batch_size"] = _fixed_batch(nla, output, batch_size)
    # Refuses what cannot be sampled before anything is read; nobody keeps the handle.
    nla.explain(torch.ones(1, nla.checkpoint.d_model), samples=samples, sampling=chosen)
    verbalize = _Verbalize(nla, {"samples": samples, "sampling": chosen}, vectors, reads)
    job = Job(
        "explaining",
        rows,
        size,
        manifest,
        verbalize.schema,
        dataset_sidecar(nla.checkpoint, manifest),
        reader.read if reader else _as_found(nla.checkpoint.d_model),
        verbalize,
        ahead=reader is not None and _apart(nla, model),
        waits=remote or nla.remote,
        strict=strict,
    )
    return work(job, output, progress=progress)


class _Verbalize:
    """The second step: a chunk's vectors to rows. What has settled survives a failed try."""

    def __init__(self, nla: Explains, options: dict[str, Any], vectors: bool, scores: bool) -> None:
        self.schema = records.schema(nla.checkpoint.d_model, vectors=vectors)
        self._nla, self._options, self._scores = nla, options, scores
        self._of: Sequence[Found] = ()
        self._thoughts: list[Explanation | None] = []

    def __call__(self, found: Sequence[Found]) -> Any:
        if self._of is not found:
            self._of, self._thoughts = found, [self._explain(each) for each in found]
        self._nla.resolve([thoughts for thoughts in self._thoughts if thoughts is not None])
        seed = self._options["sampling"].seed
        made = [
            record
            for each, thoughts in zip(found, self._thoughts, strict=True)
            for record in records.rows(each, thoughts, seed)
        ]
        if self._scores:
            records.add_scores(made, self._nla.reconstruct)
        return records.table(made, self.schema)

    def _explain(self, found: Found) -> Explanation | None:
        if not len(found.vectors):
            return None
        known = {
            "tokens": None if None in found.tokens else found.tokens,
            "positions": None if None in found.positions else found.positions,
        }
        return self._nla.explain(found.vectors, **known, **self._options)


def _reader(
    nla: Explains,
    rows: Source,
    model: Any,
    positions: str | int,
    skip: int,
    max_tokens: int | None,
    remote: bool,
) -> Reader | None:
    if rows.kind == "vectors":
        return None
    if model is None:
        raise NLAError(
            f"{rows.identity['name']} holds texts, which the target has to read: pass it, "
            "run(nla, source, output, model=TransformersModel(...))."
        )
    nla.layer(model)
    places = parse(positions, skip=skip)
    return Reader(model, nla.checkpoint.layer, places, max_tokens, remote)


def _chunk(rows: Source, positions: str | int) -> int:
    return CHUNKS[rows.kind if rows.kind == "vectors" or positions != "last" else "last"]


def _as_found(d_model: int) -> Any:
    """The first step over vectors: each as if it had been read, where its width is right."""

    def one(item: Item) -> Found:
        error, value = item.error, item.value
        if error is None and value.shape != (d_model,):
            error = f"its vector has {len(value)} numbers, the verbalizer reads {d_model}"
        if error is not None:
            bad = Item(item.row, item.doc_id, None, error, item.carried)
            return Found(bad, [], [], [], torch.empty(0, d_model))
        position, token, context = map(item.carried.get, ("position", "token", "context"))
        vector = torch.from_numpy(value.copy())[None]
        return Found(item, [position], [token], [context], vector)

    return lambda items: [one(item) for item in items]


def _fixed_batch(nla: Explains, output: Path, asked: int | None) -> int:
    """The batch size: as it was begun, else as asked, else the NLA's own, found once."""
    begun = (Parts(output).manifest or {}).get("batch_size")
    if begun is None and output.exists():
        begun = note_of(output)["manifest"].get("batch_size")
    if asked is None:
        asked = nla.batch_size if begun is None else begun
    nla.batch_size = asked
    return asked


def _target(reader: Reader | None) -> dict[str, Any]:
    if reader is None:
        return {}
    target = {**fingerprint.model(reader.model), "layer": reader.layer, "remote": reader.remote}
    how = {"positions": reader.places.spec, "skip": reader.places.skip}
    return {"target": target, **how, "max_tokens": reader.max_tokens}


def _verbalizer(nla: Explains) -> dict[str, Any]:
    spec = nla.spec or {}
    return {
        **fingerprint.model(nla.av, spec.get("av"), spec.get("peft")),
        "sidecar": nla.checkpoint.sidecar_hash,
        "injection": vars(nla.checkpoint.injection),
        "prompt": nla.prompt.hash,
        "remote": nla.remote,
    }


def _reconstructor(nla: Explains) -> dict[str, Any]:
    return fingerprint.model(nla.ar, (nla.spec or {}).get("ar"))


def _apart(nla: Explains, model: Any) -> bool:
    """Whether target and verbalizer may run at the same time: two models, both in memory."""
    shared = nla.av is model or (isinstance(nla.av, AdapterModel) and nla.av.target is model)
    sequential = (nla.spec or {}).get("placement") == "sequential"
    return not shared and not sequential
