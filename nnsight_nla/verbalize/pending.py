"""Keep pending handles and verbalize them in batches.

The queue holds handles weakly: a handle without other references is never verbalized. Batches are
settled one by one, so after an exception, an out-of-memory error or Ctrl-C the settled rows keep
their text and the others stay pending with their vectors. Threads verbalize in turn, or at the same
time where the engine can (vLLM); other threads may add handles meanwhile.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import warnings
import weakref
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ..core.injection import unusable
from ..core.locks import Lock
from ..core.sampling import draw_seed
from ..errors import CheckpointError, NLAWarning, VerbalizationError
from ..explanation.handle import Explanation
from ..explanation.records import Capture, Receipt, Reply
from ..progress import Bar, progress
from .choosing import Choices
from .decoding import out_of_memory
from .streaming import OnText, TextSoFar, Watch

if TYPE_CHECKING:
    from ..explanation.records import Owner
    from .engine import TextEngine
    from .verbalizer import Verbalizer

Job = tuple[Capture, int, int]
"""One reply to generate: the capture, the row, the sample number."""
Kind = tuple[object, ...]
"""What all rows of a batch share."""
_MANY = 1000


class Queue:
    """The pending handles of one NLA, in the order in which they were created."""

    def __init__(
        self,
        owner: Owner,
        verbalizer: Verbalizer,
        engine: TextEngine,
        batch_size: int | None,
        new_tokens: int,
    ) -> None:
        """Start with nothing pending.

        Args:
            owner: The NLA. Handles keep it alive and are pickled with it.
            verbalizer: What the texts are of: its checkpoint, its prompt and its lock.
            engine: Generates the texts.
            batch_size: Rows per batch; ``None`` to choose a number that fits in memory.
            new_tokens: The reply length for which this number is chosen.
        """
        self.owner = owner
        self._verbalizer = verbalizer
        self.engine = engine
        """Generates the texts."""
        self._batch_size, self._new_tokens = batch_size, new_tokens
        self._handles: weakref.WeakValueDictionary[int, Explanation] = weakref.WeakValueDictionary()
        self._number = itertools.count()
        self._guard = Lock()

    @property
    def batch_size(self) -> int:
        """Rows in a batch; by default, a number that fits is chosen at the first use."""
        if self._batch_size is None:
            self._batch_size = self.engine.rows_that_fit(self._new_tokens)
        return self._batch_size

    @batch_size.setter
    def batch_size(self, rows: int | None) -> None:
        self._batch_size = rows

    @property
    def known_batch_size(self) -> int | None:
        """Rows in a batch; ``None`` if no number was set or needed yet."""
        return self._batch_size

    def add(self, handle: Explanation) -> None:
        """Add a pending handle, without keeping it alive."""
        with self._guard.held():
            self._handles[next(self._number)] = handle

    def pending(self) -> list[Explanation]:
        """Return the live handles that have unsettled rows, oldest first."""
        with self._guard.held():
            handles = sorted(self._handles.items())
        done = {number for number, handle in handles if handle.resolved}
        with self._guard.held():
            for number in done:
                self._handles.pop(number, None)
        return [handle for number, handle in handles if number not in done]

    def resolve(self, first: Iterable[Explanation], *, implicit: bool = False) -> None:
        """Verbalize `first`, then every other pending handle.

        Args:
            first: Handles whose rows are verbalized first.
            implicit: Whether ``.text`` was read rather than ``resolve()`` called; then a large
                number of rows causes a warning.

        Raises:
            VerbalizationError: Generation failed; settled rows keep their text.
        """
        with self.engine.turn():
            jobs = _jobs([*first, *self.pending()])
            if implicit and len(jobs) >= _MANY:
                warnings.warn(
                    f"Reading one text verbalizes all pending handles: {len(jobs):,} rows. "
                    "Call nla.resolve(handle) to verbalize one handle only.",
                    NLAWarning,
                    stacklevel=4,
                )
            self._run(jobs)

    def resolve_only(
        self, handles: Iterable[Explanation], *, on_text: OnText | None = None
    ) -> None:
        """Verbalize only these handles.

        Args:
            handles: The handles.
            on_text: Called with each text while it is generated; see `streaming`.
        """
        with self.engine.turn():
            self._run(_jobs(handles), on_text)

    def receipt(self, capture: Capture) -> Receipt:
        """Return the part of the receipt that all rows share."""
        verbalizer = self._verbalizer
        checkpoint, injection = verbalizer.checkpoint, verbalizer.checkpoint.injection
        asked = capture.asked
        prompts = [verbalizer.prompt] if asked is None else list(dict.fromkeys(asked.prompts))
        hashes = [each.hash for each in prompts] or [verbalizer.prompt.hash]
        first = prompts[0] if prompts else verbalizer.prompt
        return Receipt(
            verbalizer=verbalizer.runtime.name,
            marker_position=first.marker_position,
            site="embedding" if injection.layer is None else f"block {injection.layer}",
            operation="none" if capture.null else injection.operation,
            scale=injection.scale,
            layer_convention=_convention(capture, checkpoint.layer),
            dtype=str(self.engine.dtype).removeprefix("torch."),
            sampling=capture.sampling,
            sidecar_hash=checkpoint.sidecar_hash,
            prompt_hash=(
                hashes[0]
                if len(hashes) == 1
                else hashlib.sha256(" ".join(hashes).encode()).hexdigest()
            ),
            prompt_date=verbalizer.prompt.date,
            verbalizer_base=verbalizer.runtime.base,
        )

    def _run(self, jobs: list[Job], on_text: OnText | None = None) -> None:
        if not jobs:
            return
        groups: dict[Kind, list[Job]] = {}
        for job in jobs:
            groups.setdefault(_kind(job), []).append(job)
        with (
            self.engine.use(),
            progress("verbalizing", total=len(jobs), unit="text") as bar,
        ):
            for group in groups.values():
                self._settle(group, bar, on_text)

    def _settle(self, jobs: list[Job], bar: Bar, on_text: OnText | None) -> None:
        """Run all batches; one that does not fit in memory is retried with half as many rows."""
        waiting = _merged(jobs)
        while waiting:
            size = self.batch_size
            batch = waiting[:size]
            stopped: set[int] = set()
            watch = None if on_text is None else _watching(batch, on_text, stopped)
            try:
                with closing(self._replies([same[0] for same in batch], watch)) as replies:
                    for number, reply in replies:
                        for job in batch[number]:
                            _keep(job, reply, on_text)
                        bar.advance(len(batch[number]))
            except (VerbalizationError, CheckpointError):
                raise
            except Exception as error:
                if not out_of_memory(error) or len(batch) == 1:
                    raise self._stopped(error, jobs) from error
                failed = f"{type(error).__name__} {error}".strip().splitlines()[0]
            else:
                failed = None
            left = [same for number, same in enumerate(batch) if number not in stopped]
            waiting = [same for same in left if not _settled(same[0])] + waiting[size:]
            if failed is not None:
                self._halve(len(batch), failed)

    def _replies(
        self, batch: list[Job], watch: Watch | None
    ) -> Generator[tuple[int, Reply | str], None, None]:
        first, *_ = batch[0]
        vectors = torch.stack([capture.row(row).float().cpu() for capture, row, _ in batch])
        given = torch.tensor([not capture.null for capture, _, _ in batch], device="cpu")
        prompts = [each.asked.prompts[row] for each, row, _ in batch if each.asked is not None]
        if first.asked is not None and first.asked.choices:
            choices = Choices(first.asked.choices, first.asked.choice_ids)
            return self.engine.choose(vectors, given, prompts, choices)
        samples = [sample for *_, sample in batch]
        more: dict[str, Any] = {} if watch is None else {"watch": watch}
        return self.engine.verbalize(
            vectors, given, samples, first.sampling, prompts or None, **more
        )

    def _halve(self, size: int, why: str) -> None:
        """Use smaller batches from now on; called outside `except`, which keeps tensors alive."""
        self.batch_size = size // 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        warnings.warn(
            f"A batch of {size} did not fit in memory ({why}). Continuing with batches of "
            f"{self.batch_size}. To start with that size: NLA(..., batch_size={self.batch_size}).",
            NLAWarning,
            stacklevel=2,
        )

    def _stopped(self, error: Exception, jobs: list[Job]) -> VerbalizationError:
        left = sum(not _settled(job) for job in jobs)
        return VerbalizationError(
            f"Verbalizing stopped with {type(error).__name__}: {error}. {left} of {len(jobs)} "
            "rows are still pending with their vectors; call nla.resolve() to continue."
        )


def _watching(batch: list[list[Job]], on_text: OnText, stopped: set[int]) -> Watch:
    """Return what an engine calls after each step; it adds the rows that stop to `stopped`."""

    def watch(number: int, decode: Callable[[], str]) -> bool:
        said = [on_text(TextSoFar(*job, False, decode)) for job in batch[number]]
        if all(each == "stop" for each in said):
            stopped.add(number)
        return number in stopped

    return watch


def _keep(job: Job, reply: Reply | str, on_text: OnText | None) -> None:
    """Keep a reply, or why there is none, unless another thread was first."""
    capture, row, sample = job
    if not _settled(job):
        if isinstance(reply, str):
            capture.errors[row] = reply
            return
        capture.replies[row, sample] = reply
    kept = capture.replies.get((row, sample))
    if kept is not None and on_text is not None:
        on_text(TextSoFar(capture, row, sample, True, lambda: kept.text))


def _convention(capture: Capture, k: int) -> str:
    """Say what the vectors are, and what the verbalizer takes them for where that differs."""
    said = f"output of block {k}, counted from 0 (hidden_states[{k + 1}])"
    layer, kind = capture.origin.layer, capture.origin.kind
    if layer not in (None, k):
        said = f"output of block {layer}, taken for the {said}"
    if kind not in (None, "residual"):
        said = f"a {kind}, taken for the {said}"
    return said


def _kind(job: Job) -> Kind:
    """Return what the rows of one batch have in common: sampling, and the form of the prompt."""
    capture, row, _ = job
    asked = capture.asked
    if asked is None:
        return (capture.sampling,)
    return (capture.sampling, len(asked.prompts[row].ids), asked.slots[row], asked.choices)


def _unusable(capture: Capture, rows: list[int]) -> dict[int, str]:
    """Return why rows of a capture have no direction; for an oracle, one vector of each row."""
    if capture.asked is None:
        held = cast("Tensor", capture.vectors)[torch.tensor(rows, device="cpu")]
        return {rows[index]: reason for index, reason in unusable(held).items()}
    found: dict[int, str] = {}
    for row in rows:
        for slot, reason in unusable(capture.row(row)).items():
            alone = capture.asked.slots[row] == 1
            found.setdefault(row, reason if alone else f"number {slot} {reason}")
    return found


def _settled(job: Job) -> bool:
    capture, row, sample = job
    return (row, sample) in capture.replies or row in capture.errors


def _merged(jobs: list[Job]) -> list[list[Job]]:
    """Group jobs with equal replies: those with equal vectors and draws."""
    same: dict[object, list[Job]] = {}
    for job in jobs:
        capture, row, sample = job
        draw = None if capture.sampling.greedy else sample
        # A reply depends only on the values that `draw_seed` hashes.
        key = None if capture.null else draw_seed(0, capture.row(row), 0)
        prompt = None if capture.asked is None else capture.asked.prompts[row].ids
        same.setdefault((key, prompt, draw), []).append(job)
    return list(same.values())


def _jobs(handles: Iterable[Explanation]) -> list[Job]:
    """List each reply to generate once; record unusable rows as errors and skip them."""
    rows: dict[int, tuple[Capture, dict[int, None]]] = {}
    for handle in handles:
        capture = handle.capture
        if capture.vectors is not None:
            _, wanted = rows.setdefault(id(capture), (capture, {}))
            wanted.update((row, None) for row in handle.rows if not capture.settled(row))
    jobs: list[Job] = []
    for capture, wanted in rows.values():
        listed = list(wanted)
        if not capture.null and listed:
            capture.errors.update(_unusable(capture, listed))
        jobs += [
            (capture, row, sample)
            for row in listed
            if row not in capture.errors
            for sample in range(capture.samples)
            if (row, sample) not in capture.replies
        ]
    return jobs
