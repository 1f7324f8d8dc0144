"""The queue of handles that still wait for their text, and how it is worked off.

It holds handles weakly: what nobody can reach any more is never verbalized. Batches settle one by
one, so after an exception, an out-of-memory error or Ctrl-C the settled rows keep their text and
the rest stay pending with their vectors. One lock per verbalizer: a second thread waits its turn.
"""

from __future__ import annotations

import gc
import itertools
import sys
import threading
import warnings
import weakref
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from ..core.injection import unusable
from ..core.sampling import draw_seed
from ..errors import CheckpointError, NLAWarning, VerbalizationError
from ..explanation.handle import Explanation
from ..explanation.records import Capture, Receipt, Reply
from ..models import hosts
from ..models.memory import Places
from .decoding import out_of_memory

if TYPE_CHECKING:
    from ..core.sampling import Sampling
    from .verbalizer import Verbalizer

Job = tuple[Capture, int, int]
"""One reply to make: the capture, the row, the sample's number."""

_LOCKS: weakref.WeakKeyDictionary[Any, threading.RLock] = weakref.WeakKeyDictionary()
_MANY = 1000


class Queue:
    """Pending handles of one verbalizer, in the order they were made."""

    def __init__(
        self,
        owner: Any,
        verbalizer: Verbalizer,
        batch_size: int | None,
        places: Places | None = None,
    ) -> None:
        """Share one lock among all queues of the same verbalizer model."""
        self.owner = owner
        self._verbalizer = verbalizer
        self._batch_size = batch_size
        self._places = places or Places()
        self._handles: weakref.WeakValueDictionary[int, Explanation] = weakref.WeakValueDictionary()
        self._number = itertools.count()
        self._lock = _LOCKS.setdefault(verbalizer.av, threading.RLock())

    @property
    def batch_size(self) -> int:
        """Rows in a batch; where none was given, one that fits is found at the first question."""
        if self._batch_size is None:
            self._batch_size = self._verbalizer.rows_that_fit(self.owner.sampling.max_new_tokens)
        return self._batch_size

    @batch_size.setter
    def batch_size(self, rows: int | None) -> None:
        self._batch_size = rows

    def add(self, handle: Explanation) -> None:
        """Let `handle` wait for its text, without keeping it alive."""
        self._handles[next(self._number)] = handle

    def pending(self) -> list[Explanation]:
        """The reachable handles with rows that are not settled, oldest first."""
        waiting: list[Explanation] = []
        for number, handle in sorted(self._handles.items()):
            if handle.resolved:
                self._handles.pop(number, None)
            else:
                waiting.append(handle)
        return waiting

    def resolve(self, first: Iterable[Explanation], *, implicit: bool = False) -> None:
        """Verbalize `first`, then every other pending handle.

        Args:
            first: Handles whose rows come first.
            implicit: A ``.text`` asked, not a ``resolve()``; say so when that means much work.

        Raises:
            VerbalizationError: Generating failed; what had settled keeps its text.
        """
        with self._lock:
            jobs = _jobs([*first, *self.pending()])
            if implicit and len(jobs) >= _MANY:
                warnings.warn(
                    f"Reading one text verbalizes everything that is pending: {len(jobs):,} rows. "
                    "Call nla.resolve(handle) to do one handle only.",
                    NLAWarning,
                    stacklevel=4,
                )
            self._work(jobs)

    def resolve_only(self, handles: Iterable[Explanation]) -> None:
        """Verbalize these handles and nothing else."""
        with self._lock:
            self._work(_jobs(handles))

    def receipt(self, capture: Capture) -> Receipt:
        """The part of the receipt that is the same for every row."""
        checkpoint, prompt = self._verbalizer.checkpoint, self._verbalizer.prompt
        layer = checkpoint.injection.layer
        k = checkpoint.layer
        return Receipt(
            verbalizer=hosts.describe(self._verbalizer.av),
            marker_position=prompt.marker_position,
            site="embedding" if layer is None else f"block {layer}",
            operation="none" if capture.null else checkpoint.injection.operation,
            scale=checkpoint.injection.scale,
            layer_convention=f"output of block {k}, counted from 0 (hidden_states[{k + 1}])",
            dtype=str(self._verbalizer.av._module.dtype).removeprefix("torch."),
            sampling=capture.sampling,
            sidecar_hash=checkpoint.sidecar_hash,
            prompt_hash=prompt.hash,
        )

    def unload(self) -> None:
        """Drop the weights of the halves that were loaded here, once nobody is verbalizing."""
        with self._lock:
            self._places.unload()

    def _turn(self, jobs: list[Job]) -> AbstractContextManager[None]:
        if not jobs or self._verbalizer.remote:
            return nullcontext()
        return self._places.turn(self._verbalizer.av)

    def _work(self, jobs: list[Job]) -> None:
        by_sampling: dict[Sampling, list[Job]] = {}
        for job in jobs:
            by_sampling.setdefault(job[0].sampling, []).append(job)
        with self._turn(jobs), _progress(len(jobs)) as bar:
            for sampling, group in by_sampling.items():
                self._settle(group, sampling, bar)

    def _settle(self, jobs: list[Job], sampling: Sampling, bar: Any) -> None:
        """Batch after batch; what does not fit into memory is tried again in halves."""
        waiting = _merged(jobs)
        while waiting:
            size = self.batch_size
            batch = waiting[:size]
            try:
                for number, reply in self._replies([asked[0] for asked in batch], sampling):
                    for capture, row, sample in batch[number]:
                        capture.replies[row, sample] = reply
                    bar.update(len(batch[number]))
            except (VerbalizationError, CheckpointError):
                raise
            except Exception as error:
                if not out_of_memory(error) or len(batch) == 1:
                    raise self._stopped(error, jobs) from error
                failed = f"{type(error).__name__} {error}".strip().splitlines()[0]
            else:
                failed = None
            waiting = [asked for asked in batch if not _has_reply(asked[0])] + waiting[size:]
            if failed is not None:
                self._halve(len(batch), failed)

    def _replies(self, batch: list[Job], sampling: Sampling) -> Iterator[tuple[int, Reply]]:
        return self._verbalizer.verbalize(
            torch.stack([capture.vectors[row].float().cpu() for capture, row, _ in batch]),
            torch.tensor([not capture.null for capture, _, _ in batch]),
            [sample for _, _, sample in batch],
            sampling,
        )

    def _halve(self, size: int, why: str) -> None:
        """Make batches smaller from here on; only outside of the `except`, which holds tensors."""
        self.batch_size = size // 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        warnings.warn(
            f"A batch of {size} did not fit into memory ({why}). Going on with batches of "
            f"{self.batch_size}; NLA(..., batch_size={self.batch_size}) starts there.",
            NLAWarning,
            stacklevel=2,
        )

    def _stopped(self, error: Exception, jobs: list[Job]) -> VerbalizationError:
        left = sum(not _has_reply(job) for job in jobs)
        return VerbalizationError(
            f"Verbalizing stopped with {type(error).__name__}: {error}. {left} of {len(jobs)} "
            "rows are still pending with their vectors; call nla.resolve() to go on."
        )


def _has_reply(job: Job) -> bool:
    capture, row, sample = job
    return (row, sample) in capture.replies


def _merged(jobs: list[Job]) -> list[list[Job]]:
    """Jobs whose replies are the same, for they have the same vector, and the same draw."""
    same: dict[object, list[Job]] = {}
    for job in jobs:
        capture, row, sample = job
        draw = None if capture.sampling.greedy else sample
        # What `draw_seed` hashes is all that a reply depends on.
        key = None if capture.null else draw_seed(0, capture.vectors[row], 0)
        same.setdefault((key, draw), []).append(job)
    return list(same.values())


def _jobs(handles: Iterable[Explanation]) -> list[Job]:
    """The replies to make for `handles`, each once; unusable rows are recorded and left out."""
    rows: dict[int, tuple[Capture, dict[int, None]]] = {}
    for handle in handles:
        capture = handle._capture
        if capture.vectors is not None:
            _, wanted = rows.setdefault(id(capture), (capture, {}))
            wanted.update((row, None) for row in handle._each if not capture.settled(row))
    jobs: list[Job] = []
    for capture, wanted in rows.values():
        listed = list(wanted)
        if not capture.null and listed:
            bad = unusable(capture.vectors[torch.tensor(listed)])
            capture.errors.update((listed[place], reason) for place, reason in bad.items())
        jobs += [
            (capture, row, sample)
            for row in listed
            if row not in capture.errors
            for sample in range(capture.samples)
            if (row, sample) not in capture.replies
        ]
    return jobs


def _progress(total: int) -> Any:
    """A bar on standard error, once a second has passed; silent where nobody watches."""
    from tqdm.std import tqdm

    unseen = not (sys.stderr.isatty() or "ipykernel" in sys.modules)
    return tqdm(total=total, desc="verbalizing", unit="text", delay=1, leave=False, disable=unseen)
