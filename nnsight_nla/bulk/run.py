"""Explain a data set: `run`.

    run(nla, "corpus.jsonl", "out.parquet", model=model, positions="every:10")
    run(nla, "decoder.safetensors", "features.parquet")
    run(oracle, open_source("rows.parquet", question="question"), "answers.parquet")

Texts are read by the target, at selected positions; vectors go to the verbalizer directly. See
`pipeline` for the loop, `chunk_store` for the files of an interrupted run, `records` for the
columns.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..checkpoint.dates import TODAY
from ..checkpoint.origin import Claims, Origin
from ..checkpoint.question import EXAMPLE
from ..errors import NLAError, NLAWarning, VerbalizationError, shown
from ..explanation.asked import AskOptions, check_question, check_single
from ..explanation.caveats import ignored_note, kind_note
from ..models.adapter import AdapterModel
from ..models.fingerprint import fingerprint_model
from . import records
from .controlled import ChunkControls, shares_unchanged
from .finished_file import earlier_manifest
from .manifest import VERSION, versions
from .pipeline import Job, Report, run_job
from .residuals import ItemResiduals, ResidualReader, nothing_read
from .sources import Item, Source, open_source
from .token_selection import parse_positions

if TYPE_CHECKING:
    import pyarrow as pa
    from nnsight import TransformersModel

    from ..checkpoint.checkpoint import Checkpoint
    from ..core.sampling import Sampling
    from ..explanation.handle import Explanation
    from ..explanation.protocols import ExplainsAndReconstructs
    from ..verbalize.streaming import TextSoFar

_Started = tuple[list[tuple[ItemResiduals, "Explanation | None"]], ChunkControls]
"""The handle of each row of a chunk, if it has one, and the controls."""
_TOGETHER = 2
"""How many chunks are finished at a time, where the engine serves several threads."""
CHUNKS = {"vectors": 1024, "last": 256, "texts": 32}
"""The default number of rows per chunk; with ``"texts"``, each document gives several vectors."""


def run(
    nla: ExplainsAndReconstructs,
    source: str | Path | Source,
    output: str | Path,
    *,
    model: TransformersModel | None = None,
    question: str | None = None,
    choices: Sequence[str] | None = None,
    positions: str | int = "all",
    skip: int = 0,
    max_tokens: int | None = None,
    samples: int = 1,
    sampling: Sampling | None = None,
    score: bool = True,
    controls: bool = True,
    vectors: bool = False,
    batch_size: int | None = None,
    chunk: int | None = None,
    shard: str | None = None,
    remote: bool = False,
    strict: bool = False,
    claims: Claims = "check",
    progress: bool = True,
) -> Report:
    """Explain every row of a data set, resuming an earlier call that was interrupted.

    Args:
        nla: The NLA. If it has a marker for each of several vectors (``checkpoint.vectors``), each
            row has that number in ``activation_vectors``; texts are not read for it.
        source: Texts or vectors: a file, a folder, the name of a data set, or the result of
            `open_source`, which also takes the names of columns.
        output: The Parquet file to write; ``OUTPUT.parts`` holds finished chunks until then.
        model: The target, for texts.
        question: What an oracle is asked about every row. For a question in each row, name their
            column: ``open_source(file, question="NAME")``. A row has one vector or several. For
            vectors of another layer, pass ``oracle.at_layer(layer)``.
        choices: The answers to choose from; their probabilities are in the columns
            ``probabilities`` and ``mass``.
        positions: Which tokens of a text are explained; see `token_selection`. An integer N means
            every N-th token.
        skip: Leave out positions below this.
        max_tokens: Read at most this many tokens of a text.
        samples: Texts per vector; more than 1 needs a temperature above 0.
        sampling: How tokens are chosen; default: the NLA's own.
        score: Reconstruct every text and record the cosine with its vector, as
            ``reconstruction_cosine``, if there is a reconstructor.
        controls: For an oracle: whether to ask each question without the vectors, too. What it
            answers with nothing written, with random vectors of the same norm and with those of
            another row of the chunk is in ``answer_without``, ``answer_random`` and
            ``answer_other``; ``unchanged`` names those that give the same answer.
        vectors: Whether to write the vectors into the file too.
        batch_size: Vectors per verbalizer batch; default: the NLA's own. It is recorded, and a
            call that resumes uses the same one (it sets ``nla.batch_size``).
        chunk: Rows of the input per chunk: the maximum that is repeated after an interruption. No
            batch spans two chunks.
        shard: ``"i/n"``: process only shard i of n; `merge` combines the outputs.
        remote: Run the target on the configured NDIF host (the verbalizer runs where `nla` says).
        strict: Stop at the first bad row instead of recording its error.
        claims: ``"ignore"`` accepts vectors that are declared (in a sidecar, a column or the file's
            metadata) to be of a different model, block or norm than the NLA was trained on, and a
            target other than the NLA's; the output then says so.
        progress: Show a progress bar, if standard error is a terminal.

    Returns:
        Counts, files and time; `str()` prints them in one line.

    Raises:
        NLAError: The input cannot be read or holds vectors that do not fit the NLA, or the output
            cannot be written or was made with other settings. Finished chunks are kept.
    """
    output = Path(output).expanduser()
    nla = _on_first_date(nla, output)
    rows = source if isinstance(source, Source) else open_source(source)
    ask = _ask(nla, rows, question, choices)
    reader = _reader(nla, rows, model, positions, skip, max_tokens, remote)
    if reader is None:
        origin, name = rows.origin, rows.identity["name"]
        ignored = origin.check(nla.checkpoint, name, claims=claims, any_kind=True)
    else:
        origin, ignored = reader.origin(nla.checkpoint, claims)
        nla.layer(reader.model)
    chosen = sampling or nla.sampling
    scored = score and nla.has_reconstructor
    size = chunk or _chunk(rows, positions)
    manifest: dict[str, Any] = {
        "made_by": "nnsight-nla run",
        "version": VERSION,
        "shard": shard,
        "input": {"kind": rows.kind, "rows": rows.count, **rows.identity},
        **_target(reader),
        "chunk": size,
        "verbalizer": _verbalizer(nla),
        **({} if ask is None else {"question": ask["questions"]}),
        **({} if choices is None else {"choices": list(choices)}),
        **({} if ask is None else {"controls": controls}),
        "reconstructor": _reconstructor(nla) if scored else None,
        "sampling": vars(chosen),
        "samples": samples,
        "vectors": vectors,
        "versions": versions(),
    }
    if ignored or claims == "ignore":
        manifest["claims"] = {"checked": "ignore", "ignored": ignored}
    manifest["batch_size"] = _fixed_batch(nla, output, batch_size)
    # Raises on sampling that does not fit, before anything is read; the handle is dropped.
    verbalize = partial(_handle, nla, ask, samples=samples, sampling=chosen)
    slots, d_model = nla.checkpoint.slots, nla.checkpoint.d_model
    shape = (1, d_model) if slots == 1 else (1, slots, d_model)
    one = torch.ones(shape, dtype=torch.float32, device="cpu")
    verbalize(one, question=EXAMPLE if ask is None else ask["questions"] or EXAMPLE)
    controlled, stop = controls and ask is not None, threading.Event()
    columns = records.schema(
        d_model, vectors=vectors, asks=ask is not None, controls=controlled, slots=slots
    )
    job = Job(
        "explaining",
        rows,
        manifest,
        columns,
        origin.to_sidecar(nla.checkpoint, ignored),
        reader.read if reader else partial(_as_residuals, nla.checkpoint, claims, ask is not None),
        _Verbalize(
            nla,
            verbalize,
            chosen,
            columns,
            scored,
            controlled,
            tuple(_notes(origin, ignored)),
            stop,
        ),
        prefetch=reader is not None and _can_overlap(nla, model),
        together=_TOGETHER if nla.concurrent else 1,
        stop=stop,
        remote=remote or nla.remote or nla.url is not None,
        strict=strict,
        ignored=tuple(ignored),
    )
    report = run_job(job, output, progress=progress)
    return replace(report, unchanged=shares_unchanged(output)) if controlled else report


class _Verbalize:
    """The second step: from a chunk's vectors to rows. A retry keeps the texts it already has.

    Chunks may be finished in several threads, each in one; setting `stop` ends them early.
    """

    def __init__(
        self,
        nla: ExplainsAndReconstructs,
        verbalize: Callable[..., Explanation],
        sampling: Sampling,
        columns: pa.Schema,
        scored: bool,
        controlled: bool,
        notes: Sequence[str],
        stop: threading.Event,
    ) -> None:
        self._nla, self._verbalize, self._sampling = nla, verbalize, sampling
        self._columns, self._scored, self._notes = columns, scored, notes
        self._controlled, self._stop = controlled, stop
        self._started: dict[int, _Started] = {}

    def __call__(self, chunk: Sequence[ItemResiduals]) -> pa.Table:
        if id(chunk) not in self._started:
            self._started[id(chunk)] = self._start(chunk)
        explained, controls = self._started[id(chunk)]
        handles = [each for _, each in explained if each is not None]
        watch = {"on_text": self._go_on} if self._nla.concurrent else {}
        self._nla.resolve([*handles, *controls.handles], **watch)
        said = controls.said()
        made = [
            record
            for number, (found, explanations) in enumerate(explained)
            for record in records.make_records(
                found,
                explanations,
                self._sampling.seed,
                (*self._notes, *found.notes),
                said.get(number),
            )
        ]
        if self._scored:
            records.add_scores(made, self._nla.reconstruct)
        del self._started[id(chunk)]
        return records.to_table(made, self._columns)

    def _start(self, chunk: Sequence[ItemResiduals]) -> _Started:
        explained = [self._explain(each) for each in chunk]
        return explained, ChunkControls([each for _, each in explained] if self._controlled else [])

    def _go_on(self, _: TextSoFar) -> None:
        if self._stop.is_set():
            raise VerbalizationError("The run has ended.")  # Another chunk's error is reported.

    def _explain(self, found: ItemResiduals) -> tuple[ItemResiduals, Explanation | None]:
        """Return a row and its handle; a question that cannot be asked is the row's error."""
        if not len(found.vectors):
            return found, None
        carried = found.item.carried
        try:
            return found, self._verbalize(
                found.vectors,
                **({"question": carried["question"]} if "question" in carried else {}),
                tokens=None if None in found.tokens else found.tokens,
                positions=None if None in found.positions else found.positions,
            )
        except VerbalizationError as error:
            if "question" not in carried:
                raise
            return nothing_read(found.item, str(error), found.vectors.shape[-1]), None


def _ask(
    nla: ExplainsAndReconstructs,
    rows: Source,
    question: str | None,
    choices: Sequence[str] | None,
) -> AskOptions | None:
    """Return what an oracle is asked about every row; no question where each row has its own.

    Returns:
        ``None`` where vectors are explained.

    Raises:
        NLAError: There is no question, or there are two; or choices for none, or twice.
    """
    given = AskOptions(questions=None, choices=None) if nla.question is None else nla.question
    column = rows.identity.get("question_column")
    asked = [each for each in (question, given["questions"]) if each is not None]
    if column is not None and asked:
        raise NLAError(
            f"question={shown(asked[0])}, and each row of {rows.identity['name']} has its own in "
            f"column {column!r}. Pass one of them."
        )
    if choices is not None and given["choices"] is not None:
        raise NLAError(
            f"choices={shown(choices)}, and the NLA has choices={shown(given['choices'])}. Pass "
            "one of them."
        )
    if column is not None or asked:
        chosen = given["choices"] if choices is None else choices
        return {"questions": next(iter(asked), None), "choices": chosen}
    if nla.checkpoint.asks:
        raise NLAError(
            "An oracle answers questions, and got none. Pass question='What is the tone?', or name "
            "the column that holds one for each row: open_source(file, question='NAME')."
        )
    check_question(None, choices)
    return None


def _handle(
    nla: ExplainsAndReconstructs,
    ask: AskOptions | None,
    vectors: Tensor,
    *,
    question: Any = None,
    **options: Any,
) -> Explanation:
    """Return the handle of a row of the input, ``[positions, d_model]`` or with an axis of slots.

    Args:
        nla: The NLA.
        ask: What it is asked about every row, if it is asked.
        vectors: The vectors.
        question: The question of this row, if each has its own.
        options: Of `explain` and `ask`.
    """
    if ask is None:
        return nla.explain(vectors, **options)
    asked = question if ask["questions"] is None else ask["questions"]
    grouped = vectors if vectors.ndim == 3 else vectors[:, None]
    return nla.ask(grouped, [asked] * len(grouped), choices=ask["choices"], **options)


def _reader(
    nla: ExplainsAndReconstructs,
    rows: Source,
    model: TransformersModel | None,
    positions: str | int,
    skip: int,
    max_tokens: int | None,
    remote: bool,
) -> ResidualReader | None:
    if rows.kind == "vectors":
        return None
    check_single(nla.checkpoint, f"run on the texts of {rows.identity['name']}")
    if model is None:
        raise NLAError(
            f"{rows.identity['name']} holds texts, which the target has to read. Pass the target: "
            "run(nla, source, output, model=TransformersModel(...))."
        )
    selection = parse_positions(positions, skip=skip)
    return ResidualReader(model, nla.checkpoint.layer, selection, max_tokens, remote)


def _chunk(rows: Source, positions: str | int) -> int:
    return CHUNKS[rows.kind if rows.kind == "vectors" or positions != "last" else "last"]


def _notes(origin: Origin, ignored: Sequence[str]) -> list[str]:
    """Return the warnings that every row of the output has."""
    kind = [] if origin.kind in (None, "residual") else [kind_note(origin.kind)]
    return [*(ignored_note(each) for each in ignored), *kind]


def _as_residuals(
    checkpoint: Checkpoint, claims: Claims, asks: bool, items: Sequence[Item]
) -> list[ItemResiduals]:
    """The first step for vectors: treat each as a residual that was read, if it is one.

    The row of an oracle may have several vectors, one for each slot; that of a verbalizer with
    several markers has one for each.
    """
    d_model, expected, slots = checkpoint.d_model, Origin.of(checkpoint), checkpoint.slots
    axes, shape = ([], "one axis") if slots == 1 else ([slots], f"[{slots}, {d_model}]")
    found: list[ItemResiduals] = []
    for item in items:
        error, value = item.error, item.value
        if error is None and not asks and list(value.shape[:-1]) != axes:
            error = f"its vector has shape {list(value.shape)}, expected {shape}"
        elif error is None and value.shape[-1] != d_model:
            error = f"its vector has {value.shape[-1]} numbers, the verbalizer reads {d_model}"
        elif error is None and not len(value):
            error = "it has no vector"
        others = item.origin.differences(expected, any_kind=True)
        if error is None and others and claims == "check":
            error = f"its vector is another one than the verbalizer reads: {'; '.join(others)}"
        if error is not None:
            found.append(nothing_read(item, error, d_model))
            continue
        position, token, context = map(item.carried.get, ("position", "token", "context"))
        vector = torch.from_numpy(value.copy())[None]
        notes = tuple(map(ignored_note, others))
        found.append(ItemResiduals(item, [position], [token], [context], vector, notes))
    return found


def _on_first_date(nla: ExplainsAndReconstructs, output: Path) -> ExplainsAndReconstructs:
    """Return the NLA with the date that its prompt had in the first call for this output.

    A date that the caller or the checkpoint chose stays; if it is another, the resume is refused.
    """
    if nla.prompt.date is None or nla.checkpoint.source.get("date") != TODAY:
        return nla
    prompt = earlier_manifest(output).get("verbalizer", {}).get("prompt")
    first = prompt.get("date") if isinstance(prompt, dict) else None
    if first in (None, nla.prompt.date):
        return nla
    warnings.warn(
        f"The first rows of {output} were made with the date {first} in the verbalizer's prompt; "
        "the others get the same date.",
        NLAWarning,
        stacklevel=3,
    )
    return nla.on_date(first)


def _fixed_batch(nla: ExplainsAndReconstructs, output: Path, asked: int | None) -> int:
    """Set and return the batch size: as given, else as in an earlier call, else the NLA's own."""
    before = earlier_manifest(output).get("batch_size")
    if asked is None:
        asked = nla.batch_size if before is None else int(before)
    nla.batch_size = asked
    return asked


def _target(reader: ResidualReader | None) -> dict[str, Any]:
    if reader is None:
        return {}
    target = {**fingerprint_model(reader.model), "layer": reader.layer, "remote": reader.remote}
    how = {"positions": reader.selection.spec, "skip": reader.selection.skip}
    return {"target": target, **how, "max_tokens": reader.max_tokens}


def _verbalizer(nla: ExplainsAndReconstructs) -> dict[str, Any]:
    spec = nla.spec or {}
    return {
        **fingerprint_model(nla.av, spec.get("av"), spec.get("peft")),
        "sidecar": nla.checkpoint.sidecar_hash,
        "injection": vars(nla.checkpoint.injection),
        "prompt": {"text": nla.prompt.text, "ids": nla.prompt.hash, "date": nla.prompt.date},
        "remote": nla.remote,
        **({} if nla.question is None else {"choices": nla.question["choices"]}),
    }


def _reconstructor(nla: ExplainsAndReconstructs) -> dict[str, Any]:
    return fingerprint_model(nla.ar, (nla.spec or {}).get("ar"))


def _can_overlap(nla: ExplainsAndReconstructs, model: TransformersModel | None) -> bool:
    """Return whether target and verbalizer can run at the same time: two models, both in memory."""
    shared = nla.av is model or (isinstance(nla.av, AdapterModel) and nla.av.target is model)
    sequential = (nla.spec or {}).get("placement") == "sequential"
    return not shared and not sequential
