"""Handles: explanations that may not have been generated yet.

``nla.explain(vectors)`` copies the vectors at that point and returns an `Explanation` at once. The
verbalizer runs later, for all pending vectors together, when a text is first read. So the same call
works in a trace, in a generation step, in a session and outside of them, and a sweep is verbalized
in full batches::

    thought = nla.explain(residual[:, -1])      # shape (batch,), nothing generated yet
    thought[0].text                             # generates every pending text, returns one
    thought.to_parquet("thought.parquet")       # Explanation.from_parquet needs no model

* A `Capture` holds the vectors of one ``explain()`` call, and a `Reply` for each row once settled.
* An `Explanation` is a view of a capture: an array of row numbers in the handle's shape. Parts
  (``thought[0]``, iteration) share their parent's capture.
* The queue holds only weak references: a handle that is no longer reachable is never verbalized.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import nnsight
import numpy as np
import torch
from torch import Tensor

from ..checkpoint.reply import snippets
from ..core import former
from ..core.former import FormerKeys
from ..core.nesting import nested
from ..core.ragged import ranges
from ..core.trust import Line, Trust
from ..errors import InjectionError, NLAError, VerbalizationError, shown
from ..storage.atomic import atomic_file
from .asked import ungrouped
from .caveats import caveats
from .records import Capture, Reply

if TYPE_CHECKING:
    import pandas as pd

    from ..checkpoint.origin import Claims, Origin
    from ..core.nesting import Nested
    from .records import Receipt


T = TypeVar("T")
_CLAIMS = ("model", "layer", "norm")
FORMER = {"cosine": "injection_cosine"}
"""The former names of columns."""


class Explanation:
    """The explanations of a batch of vectors, verbalized when they are first read.

    `shape` is the vectors' shape without ``d_model``; indexing, ``len`` and iteration work as on a
    tensor. Each attribute is a single value for a scalar handle, otherwise nested lists of that
    shape.

    The handle of ``explain(output, at=positions)`` is *ragged*: its elements are the prompts, whose
    numbers of tokens are `lengths`, and each attribute has one list per prompt. `shape` and
    `vectors` are those of all tokens, concatenated.
    """

    def __init__(
        self, capture: Capture, rows: np.ndarray, lengths: Sequence[int] | None = None
    ) -> None:
        """View rows of a capture; use ``nla.explain`` to make a handle."""
        self._capture = capture
        self._rows = rows
        self._lengths = None if lengths is None else tuple(lengths)
        if capture.vectors is not None:
            capture.queue.add(self)
        keep(self)

    @classmethod
    def of(cls, capture: Capture, shape: tuple[int, ...]) -> Explanation:
        """Return a handle on all rows of a capture, in `shape`."""
        return cls(capture, np.arange(math.prod(shape)).reshape(shape), capture.lengths)

    @property
    def capture(self) -> Capture:
        """The capture that this handle is a view of."""
        return self._capture

    @property
    def rows(self) -> list[int]:
        """The capture's row numbers, in one flat list."""
        return [int(row) for row in self._rows.flat]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the batch, ``vectors.shape[:-1]``."""
        return tuple(self._rows.shape)

    @property
    def lengths(self) -> tuple[int, ...] | None:
        """The number of tokens of each prompt, in a ragged handle; otherwise ``None``."""
        return self._lengths

    @property
    def resolved(self) -> bool:
        """Whether every row has its text or an error; never runs a model."""
        return self._capture.vectors is not None and all(map(self._capture.settled, self.rows))

    @property
    def vectors(self) -> Any:
        """The captured vectors, ``[*shape, d_model]``: a copy, made when ``explain()`` was called.

        Those of an ``ask()`` call are ``[*shape, slots, d_model]``; nested lists of tensors
        ``[slots, d_model]`` if rows have different numbers of slots.
        """
        held = self._held("no vectors, only their shape")
        asked = self._capture.asked
        if asked is not None:
            slots = [asked.slots[row] for row in self.rows]
            return ungrouped(held[self.rows], slots, self.shape)
        picked = held[torch.from_numpy(self._rows.reshape(-1)).to(held.device)]
        return picked.reshape(*self.shape, held.shape[-1])

    @property
    def origin(self) -> Origin:
        """What the vectors are: as declared, otherwise what the verbalizer was trained on."""
        return self._capture.origin

    def check_origin(self, expected: Origin, *, insist: str, claims: Claims = "check") -> None:
        """Raise if these vectors are of a different model or block than expected.

        Args:
            expected: The expected origin.
            insist: How to use them anyway, for the message.
            claims: ``"ignore"`` uses them anyway.

        Raises:
            InjectionError: Their origin is different.
        """
        origin = self._capture.origin
        origin.check(
            expected, "This handle", claims=claims, any_kind=True, insist=insist,
            error=InjectionError,
        )  # fmt: skip

    @property
    def text(self) -> Nested[str]:
        """The explanation (sample 0): a ``str``, or nested lists of the handle's shape.

        Raises:
            VerbalizationError: Rows of this handle cannot have a text; the message names them.
        """
        return self._values(lambda row: self._reply(row).text)

    @property
    def questions(self) -> Nested[str] | None:
        """The question about each row's vectors; ``None`` for an ``explain()`` call."""
        asked = self._capture.asked
        if asked is None or not asked.questions:
            return None
        return self._shaped(lambda row: asked.questions[row])

    @property
    def probabilities(self) -> Nested[dict[str, float]] | None:
        """The probability of each choice of a question; they add up to 1.

        ``None`` if the call had no ``choices=``.
        """
        asked = self._capture.asked
        if asked is None or not asked.choices:
            return None
        words = asked.choices
        return self._values(
            lambda row: dict(zip(words, self._reply(row).probabilities, strict=True))
        )

    @property
    def mass(self) -> Nested[float | None] | None:
        """The probability that the oracle begins its answer with any of the choices.

        If it is small, the oracle would answer something else. ``None`` without ``choices=``.
        """
        if self.probabilities is None:
            return None
        return self._values(lambda row: self._reply(row).mass)

    @property
    def samples(self) -> Nested[list[str]]:
        """All K texts of each vector: a list of K, or nested lists of shape ``(*shape, K)``."""
        counts = range(self._capture.samples)
        return self._values(lambda row: [self._reply(row, k).text for k in counts])

    @property
    def snippets(self) -> Nested[tuple[str, ...]]:
        """The explanation's paragraphs (its lines, if it has one paragraph), a tuple per row."""
        return self._values(lambda row: snippets(self._reply(row).text))

    @property
    def raw(self) -> Nested[str]:
        """The reply as it was generated, with its tags."""
        return self._values(lambda row: self._reply(row).raw)

    @property
    def finish(self) -> Nested[str]:
        """What ended each reply: ``"tag"``, ``"eos"``, ``"length"`` or ``"cut"``; see `Reply`."""
        return self._values(lambda row: self._reply(row).finish)

    @property
    def tokens(self) -> Nested[str] | None:
        """The tokens that the vectors were read at; ``None`` if not given."""
        given = self._capture.tokens
        return None if given is None else self._shaped(lambda row: given[row])

    @property
    def positions(self) -> Nested[int] | None:
        """The positions that the vectors were read at; ``None`` if not given."""
        given = self._capture.positions
        return None if given is None else self._shaped(lambda row: given[row])

    @property
    def errors(self) -> dict[tuple[int, ...], str]:
        """The index of each row that cannot have a text, with the reason."""
        self._resolve()
        errors = self._capture.errors
        return {index: errors[row] for index, row in self._indexed() if row in errors}

    @property
    def warnings(self) -> Nested[tuple[str, ...]]:
        """The warnings on each text, as a tuple of sentences; see `caveats`."""
        self._resolve()
        found = caveats(self._capture)
        return self._shaped(lambda row: found.get(row, ()))

    @property
    def trust(self) -> Nested[Any] | None:
        """The trust label of each text, a `Trust`; ``None`` without a reconstructor.

        The label of an oracle's answer is an `AnswerTrust`: whether it depends on the vectors.

        Raises:
            NLAError: The reconstructor or its controls cannot be run.
        """
        self._resolve()
        capture = self._capture
        missing = [row for row in self.rows if row not in capture.trust]
        if missing:
            if capture.labeller is None:
                return None
            capture.trust.update(capture.labeller.measure(capture, missing))
        return self._shaped(lambda row: capture.trust[row])

    def extracted(self) -> tuple[list[str | None], dict[int, str]]:
        """Return the texts in one flat list, and why some rows have no well-formed explanation.

        Returns:
            The texts, ``None`` for an unusable vector; and a map from the index in that list to the
            reason why the row has no well-formed explanation (an unusable vector, a missing tag).
        """
        self._resolve()
        replies = [self._capture.replies.get((row, 0)) for row in self.rows]
        reasons = {index: self._capture.failure(row) for index, row in enumerate(self.rows)}
        return (
            [reply.text if reply else None for reply in replies],
            {index: reason for index, reason in reasons.items() if reason is not None},
        )

    @property
    def receipt(self) -> Receipt:
        """How these explanations were made."""
        self._resolve()
        return replace(
            self._capture.queue.receipt(self._capture),
            norm_before=self._values(lambda row: self._reply(row).norm_before),
            norm_after=self._values(lambda row: self._reply(row).norm_after),
            injection_cosine=self._values(lambda row: self._reply(row).injection_cosine),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON: the receipt, and a record per vector and sample.

        A record is a row of `to_pandas` plus ``label``, the full trust label; see `Trust.to_dict`.
        """
        records = self._records()
        receipt = vars(self._capture.queue.receipt(self._capture))
        receipt = {key: value for key, value in receipt.items() if value is not None}
        receipt["sampling"] = vars(self._capture.sampling)
        origin = self._capture.origin.to_dict()
        return {
            "shape": list(self.shape),
            "origin": origin,
            "receipt": receipt,
            "explanations": records,
        }

    def to_pandas(self) -> pd.DataFrame:
        """Return a table with a row per vector and sample; a vector with an error has no text.

        ``injection_cosine`` checks the injection (1 up to rounding); ``reconstruction_cosine`` and
        ``fve`` compare the vector with the reconstruction of the text of sample 0. ``grade`` is the
        grade of the trust label, ``trust`` the label as text; the attribute `trust` is the `Trust`.
        """
        records = [
            {name: value for name, value in record.items() if name != "label"}
            for record in self._records()
        ]
        return former.table(records, FORMER)

    def to_parquet(self, path: str | Path) -> None:
        """Write everything except the model, for `from_parquet` or any other reader of Parquet.

        The rows are those of `to_pandas`, with their vectors (``activation_vector``; for an
        oracle's answers ``activation_vectors``, those of the slots). Pending texts are generated
        first.

        Args:
            path: The file; a file that is there is replaced when the new one is complete.

        Raises:
            NLAError: The disk is full, or the file cannot be written.
        """
        from . import parquet

        self._resolve()
        parquet.write(self, self._records(), Path(path))

    @staticmethod
    def from_parquet(path: str | Path) -> Explanation:
        """Read a file that `to_parquet` wrote; no model is needed.

        The handle has its texts, vectors, labels, warnings, errors and receipt. To work with it
        further, pass it to an NLA: ``nla.explain(handle.vectors)``, ``nla.score(handle)``.

        Args:
            path: The file.

        Raises:
            NLAError: The file does not hold explanations, or those of a later version.
        """
        from . import parquet

        return parquet.read(Path(path))

    def to_html(self, path: str | Path, *, title: str = "Explanations") -> Path:
        """Write an HTML page with the explanations: one file for any browser, without scripts.

        Args:
            path: The file; a file that is there is replaced when the new one is complete.
            title: The page's title.

        Returns:
            The path of the page.

        Raises:
            NLAError: The disk is full, or the file cannot be written.
        """
        from .. import view

        table = view.explanation(self._records(), page=True)
        receipt = self._capture.queue.receipt(self._capture)
        page = view.document(title, table, view.facts(receipt.facts()))
        with atomic_file(Path(path)) as file:
            file.write(page.encode())
        return Path(path)

    def _records(self) -> list[dict[str, Any]]:
        self._resolve()
        capture = self._capture
        notes = caveats(capture)
        norms = self._norms()
        labels = self._labels()
        records: list[dict[str, Any]] = []
        for index, row in self._indexed():
            trust = labels.get(row)
            label = None if trust is None else trust.to_dict()
            for sample in range(capture.samples):
                reply = capture.replies.get((row, sample))
                scored = label if label is not None and sample == 0 else {}
                records.append(
                    FormerKeys(
                        {
                            "index": list(index),
                            "token": capture.tokens[row] if capture.tokens else None,
                            "position": capture.positions[row] if capture.positions else None,
                            "sample": sample,
                            "text": reply.text if reply else None,
                            "snippets": list(snippets(reply.text)) if reply else [],
                            "finish": reply.finish if reply else None,
                            "norm": norms[row],
                            "marker_norm_before": reply.norm_before if reply else None,
                            "marker_norm_after": reply.norm_after if reply else None,
                            "injection_cosine": (
                                reply.injection_cosine if reply and not capture.null else None
                            ),
                            "reconstruction_cosine": scored.get("cosine"),
                            "fve": scored.get("fve"),
                            "grade": None if trust is None else str(trust.grade),
                            "trust": None if trust is None else Line(trust.line, label),
                            "grounded": (
                                None
                                if trust is None or trust.grounded is None
                                else trust.grounded.line
                            ),
                            "warnings": list(notes.get(row, ())),
                            "error": capture.errors.get(row),
                            "label": label,
                            **_of_question(capture, row, reply),
                        },
                        FORMER,
                    )
                )
        return records

    def __getitem__(self, key: Any) -> Explanation:
        key = tuple(map(_index, key)) if isinstance(key, tuple) else _index(key)
        if self._lengths is None:
            return Explanation(self._capture, np.asarray(self._rows[key]))
        first, *others = key if isinstance(key, tuple) else (key,)
        prompts = np.arange(len(self._lengths))[first]
        parts = [self._rows[list(rows)] for rows in ranges(self._lengths)]
        if prompts.ndim == 0:
            prompt = Explanation(self._capture, parts[prompts])
            return prompt[tuple(others)] if others else prompt
        if others:
            raise IndexError(
                f"A ragged handle has no index {key!r}: its prompts have {list(self._lengths)} "
                "tokens. Take one prompt first: handle[0][-1]."
            )
        chosen = [parts[prompt] for prompt in prompts]
        rows = np.concatenate([np.empty(0, dtype=np.int64), *chosen])
        return Explanation(self._capture, rows, [len(part) for part in chosen])

    def __len__(self) -> int:
        if self._lengths is not None:
            return len(self._lengths)
        if not self.shape:
            raise TypeError("len() of a 0-d explanation")
        return self.shape[0]

    def __iter__(self) -> Iterator[Explanation]:
        if not self.shape:
            raise TypeError("iteration over a 0-d explanation")
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        if self._capture.vectors is None:
            return f"<Explanation {self._size()} of fake tensors>"
        done = sum(map(self._capture.settled, self.rows))
        state = "resolved" if done == self._rows.size else f"{self._rows.size - done} pending"
        return f"<Explanation {self._size()} {state}>"

    def _size(self) -> str:
        if self._lengths is None:
            size = f"shape={self.shape}"
        else:
            size = f"of {len(self._lengths)} prompts, {self._rows.size} tokens,"
        kind = self._capture.origin.kind
        said = self._capture.ignored  # Such as "layer is 1, expected 3".
        others = [name for name in _CLAIMS if any(each.startswith(name) for each in said)]
        what = "residuals" if kind is None else f"{kind}s"
        if others:
            return f"{size} of {what} of another {' and '.join(others)},"
        return size if what == "residuals" else f"{size} of {what},"

    def __str__(self) -> str:
        if self._capture.vectors is None:
            return repr(self)
        return "\n\n".join(
            " ".join(filter(None, [_where(record), _shown(record)])) for record in self._records()
        )

    def _repr_html_(self) -> str:
        from .. import view

        return view.explanation(self._records())

    def __copy__(self) -> Explanation:
        return Explanation(self._capture, self._rows, self._lengths)

    def __deepcopy__(self, memo: dict[int, Any]) -> Explanation:
        return self.__copy__()

    def _held(self, lack: str) -> Tensor:
        if self._capture.vectors is None:
            raise VerbalizationError(
                f"This handle was made under fake tensors (a `scan`): it has {lack}. Run the block "
                "with model.trace(...)."
            )
        return self._capture.vectors

    def _resolve(self) -> None:
        self._held("no text")
        if not self.resolved:
            self._capture.queue.resolve([self], implicit=True)

    def _reply(self, row: int, sample: int = 0) -> Reply:
        return self._capture.replies[row, sample]

    def _shaped(self, value: Callable[[int], T]) -> Nested[T]:
        """Return `value` of each row, in the handle's shape."""
        return self.shaped([value(row) for row in self.rows])

    def shaped(self, values: Sequence[T]) -> Nested[T]:
        """Return one value for each vector, in one flat list, nested as this handle's texts are."""
        if self._lengths is not None:
            return [[values[row] for row in rows] for rows in ranges(self._lengths)]
        return nested(values, self.shape)

    def _indexed(self) -> list[tuple[tuple[int, ...], int]]:
        """Return the index of each row in this handle, with its number in the capture."""
        if self._lengths is not None:
            parts = enumerate(ranges(self._lengths))
            indices = [(prompt, token) for prompt, rows in parts for token in range(len(rows))]
        else:
            indices = [tuple(map(int, index)) for index in np.ndindex(*self.shape)]
        return list(zip(indices, self.rows, strict=True))

    def _values(self, value: Callable[[int], T]) -> Nested[T]:
        """Return `value` of each row once all are verbalized; raise if a row cannot be."""
        bad = self.errors
        if bad and not self.shape:
            raise VerbalizationError(f"This vector {bad[()]}, so it has no text.")
        if bad:
            shown = "; ".join(f"row {_named(index)} {why}" for index, why in list(bad.items())[:5])
            more = f"; and {len(bad) - 5} more" if len(bad) > 5 else ""
            others = (
                ""
                if len(bad) == self._rows.size
                else (
                    " The other rows have their text: read them by index; .errors lists those to "
                    "leave out."
                )
            )
            raise VerbalizationError(
                f"{len(bad)} of {self._rows.size} vectors have no text: {shown}{more}.{others}"
            )
        return self._shaped(value)

    def _labels(self) -> dict[int, Any]:
        """Return the labels for a display, which shows the texts even without them."""
        try:
            _ = self.trust
        except NLAError as error:
            why = Trust("none", None, reason=f"not measured: {error}")
            return {row: self._capture.trust.get(row, why) for row in self.rows}
        return self._capture.trust

    def _norms(self) -> dict[int, float | None]:
        """Return the L2 norm of each row's vector; ``None`` if not finite, for strict JSON."""
        held = self._held("no norms")
        rows = sorted(set(self.rows))
        norms = held[torch.tensor(rows, dtype=torch.long, device="cpu")].float().norm(dim=-1)
        asked = self._capture.asked
        if asked is not None:  # The mean of its slots; the others of a row are zero.
            slots = torch.tensor([asked.slots[row] for row in rows], device=norms.device)
            norms = norms.sum(dim=-1) / slots
        norms = norms.tolist()
        finite = [norm if math.isfinite(norm) else None for norm in norms]
        return dict(zip(rows, finite, strict=True))


def _of_question(capture: Capture, row: int, reply: Reply | None) -> dict[str, Any]:
    """Return the further fields of the record of an answer; none for an explanation."""
    asked = capture.asked
    if asked is None or not asked.questions:
        return {}
    fields: dict[str, Any] = {"question": asked.questions[row], "slots": asked.slots[row]}
    if asked.choices and reply is not None:
        fields["probabilities"] = dict(zip(asked.choices, reply.probabilities, strict=True))
        fields["mass"] = reply.mass
    return fields


def check_handle(given: object, call: str, advice: str = "") -> Explanation:
    """Check that `given` is a handle, and return it.

    Args:
        given: What the caller passed.
        call: Where, such as ``"trust"``; named in the error.
        advice: A sentence for callers that have something else.

    Raises:
        VerbalizationError: It is not.
    """
    if isinstance(given, Explanation):
        return given
    raise VerbalizationError(
        f"{call}: expected a handle, which nla.explain() returns, got {shown(given)}.{advice}"
    )


def keep(made: object) -> None:
    """Save what was made in a trace as nnsight's ``.save()`` does, if one is running."""
    with contextlib.suppress(ValueError):  # No trace is running.
        nnsight.save(made)


def _index(key: Any) -> Any:
    return key.detach().cpu().numpy() if isinstance(key, Tensor) else key


def _named(index: Sequence[int]) -> str:
    return str(index[0]) if len(index) == 1 else str(tuple(index))


def _shown(record: dict[str, Any]) -> str:
    if record["text"] is None:
        return f"[{record['error']}]"
    label = record["label"]
    return (
        record["text"]
        if label is None
        else "\n".join([record["text"], *(f"[{line}]" for line in label["lines"])])
    )


def _where(record: dict[str, Any]) -> str:
    token = "" if record["token"] is None else repr(record["token"])
    position = "" if record["position"] is None else f"@{record['position']}"
    return f"{token}{position}:" if token or position else ""
