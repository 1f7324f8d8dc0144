"""Plain records of one ``explain()`` call: its vectors, its replies and its receipt.

* `Reply`: what the verbalizer wrote for one vector.
* `Receipt`: how the replies were made.
* `Capture`: the vectors of one call, and a `Reply` for each (row, sample) that has settled. Handles
  are views of it; see `handle`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast
from uuid import uuid4

from torch import Tensor

from ..checkpoint.origin import Origin
from ..checkpoint.reply import complete, proper
from ..core.answer_trust import AnswerTrust
from ..core.calibration import Calibration
from ..core.former import Former, HasFormer
from ..core.ragged import ranges
from ..core.sampling import Sampling
from ..core.trust import Trust

if TYPE_CHECKING:
    from jaxtyping import Float

    from ..core.nesting import Nested
    from .asked import Asked


class Owner(Protocol):
    """The NLA that a handle belongs to."""

    @property
    def uid(self) -> str:
        """Its name in pickles and remote requests."""
        ...


class HandleQueue(Protocol):
    """The queue in which handles wait for their texts."""

    @property
    def owner(self) -> Owner | None:
        """The NLA that the queue belongs to; ``None`` if it is not in this process."""
        ...

    def add(self, handle: Any) -> None:
        """Add a handle whose text is generated later."""
        ...

    def resolve(self, first: Iterable[Any], *, implicit: bool = False) -> None:
        """Verbalize these handles, then all others in the queue."""
        ...

    def receipt(self, capture: Capture) -> Receipt:
        """Return the part of the receipt that is the same for every row."""
        ...


class Labeller(Protocol):
    """Something that measures the trust labels of a capture."""

    def measure(
        self, capture: Capture, rows: Sequence[int]
    ) -> Mapping[int, Trust] | Mapping[int, AnswerTrust]:
        """Return the label of each of these settled rows."""
        ...


@dataclass(frozen=True)
class Reply(HasFormer):
    """What the verbalizer wrote for one vector, and how."""

    raw: str
    """The reply as generated, with its tags, without special tokens."""
    text: str
    """The explanation between the tags; the whole reply if a tag is missing."""
    finish: Literal["tag", "eos", "length", "cut", "choice"]
    """What ended it: the closing tag, an end-of-sequence token, ``max_new_tokens``, or ``upto``;
    ``"choice"`` if it is one of a question's choices, which were compared and not generated."""
    new_tokens: int
    """The number of generated tokens."""
    norm_before: float
    """The L2 norm of the residual at the marker as the model computed it."""
    norm_after: float
    """The same after the vector was injected."""
    injection_cosine: float
    """The cosine between the vector and what was written; NaN for the null control."""
    opened: str = ""
    """The beginning of the explanation that was in the prompt, such as its opening tag."""
    ids: array[int] = field(default_factory=lambda: array("i"), repr=False, compare=False)
    """The generated token ids, with the end-of-sequence token if one was generated; empty in a
    reply that was read from a file."""
    tagged: bool = True
    """Whether the reply is to have tags; an oracle's answer has none."""
    probabilities: tuple[float, ...] = ()
    """The probability of each choice of the question, which add up to 1."""
    mass: float | None = None
    """The probability that the oracle begins its answer with any of the choices."""
    cosine = Former("injection_cosine")

    @property
    def problem(self) -> str | None:
        """Why it has no well-formed explanation; ``None`` if it has one."""
        if not self.tagged:
            return None if self.text else "the answer is empty"
        if self.finish == "cut":  # It may have neither tag.
            return None if self.text else "the explanation is empty"
        return proper(complete(self.raw, self.opened))


@dataclass(frozen=True)
class Receipt(HasFormer):
    """How an explanation was made, so that it can be checked and repeated."""

    verbalizer: str
    """The verbalizer's name or path; of an adapter, the adapter's."""
    marker_position: int
    """The position in the prompt where the vector was injected, counted from the left."""
    site: str
    """The module whose output was changed: ``block 1`` or ``embedding``."""
    operation: str
    """``add`` (norm-matched) or ``replace``."""
    scale: float | None
    """The operation's scale, as in `Injection`."""
    layer_convention: str
    """The residual that the vector is assumed to be."""
    dtype: str
    """The verbalizer's dtype."""
    sampling: Sampling
    """How the tokens were chosen."""
    sidecar_hash: str | None
    """SHA-256 of the sidecar, in hex."""
    prompt_hash: str
    """SHA-256 of the prompt's token ids, in hex."""
    prompt_date: str | None = None
    """The date that the chat template printed into the prompt, in ISO 8601, if it prints one."""
    norm_before: Nested[float] | None = None
    """The L2 norm of the residual at the marker before injection; nested as `Explanation.text`."""
    norm_after: Nested[float] | None = None
    """The same after injection."""
    injection_cosine: Nested[float] | None = None
    """The cosine between the vector and what was written: 1 up to rounding. It checks the
    injection, and says nothing about the text."""
    verbalizer_base: str | None = None
    """The name or path of the model that the adapter runs on; ``None`` without an adapter."""
    cosine = Former("injection_cosine")

    def __repr__(self) -> str:
        how = "nothing injected" if self.operation == "none" else f"{self.operation} at {self.site}"
        return f"<Receipt of {self._who()}: {how}, marker at {self.marker_position}>"

    def __str__(self) -> str:
        facts = self.facts()
        width = max(map(len, facts))
        return "\n".join(f"{name:<{width}}  {value}" for name, value in facts.items())

    def _repr_html_(self) -> str:
        from .. import view

        return view.facts(self.facts())

    def facts(self) -> dict[str, str]:
        """Return what a reader checks, a few words each."""
        chosen = self.sampling
        how = "greedy" if chosen.greedy else f"temperature {chosen.temperature:g}"
        if not chosen.greedy:
            how += f", top_p {chosen.top_p:g}, top_k {chosen.top_k}, seed {chosen.seed}"
        scale = "" if self.scale is None else f", scale {self.scale:g}"
        facts = {
            "verbalizer": f"{self._who()} ({self.dtype})",
            "vector": self.layer_convention,
            "injection": f"{self.operation}, {self.site}, marker at position "
            f"{self.marker_position}{scale}",
            "norm before": _range(self.norm_before),
            "norm after": _range(self.norm_after),
            "injection cosine": _range(self.injection_cosine, digits=4),
            "sampling": f"{how}, at most {chosen.max_new_tokens} tokens",
            "prompt": _short(self.prompt_hash)
            + ("" if self.prompt_date is None else f", with the date {self.prompt_date}"),
            "sidecar": _short(self.sidecar_hash),
        }
        return {name: value for name, value in facts.items() if value}

    def _who(self) -> str:
        base = "" if self.verbalizer_base is None else f" on {_named(self.verbalizer_base)}"
        return _named(self.verbalizer) + base


def _named(verbalizer: str) -> str:
    """Return a model's name; of a local folder, the end of its path, as others may see it."""
    path = PurePath(verbalizer)
    return "/".join(path.parts[-2:]) if path.is_absolute() else verbalizer


def _short(digest: str | None) -> str:
    return "" if digest is None else f"{digest[:12]}\u2026 (SHA-256)"


def _range(values: Nested[float] | None, digits: int = 3) -> str:
    """Return one number, or the least and the largest of several."""
    flat = list(_flat(values))
    if not flat:
        return ""
    low, high = min(flat), max(flat)
    shown = f"{low:.{digits}g}"
    return shown if len(flat) == 1 else f"{shown} to {high:.{digits}g}, {len(flat)} vectors"


def _flat(values: Nested[float] | None) -> Iterator[float]:
    if isinstance(values, list):
        for each in values:
            yield from _flat(each)
    elif values is not None:
        yield values


@dataclass(eq=False)
class Capture:
    """The vectors of one ``explain()`` call, and what has been generated and measured so far."""

    queue: HandleQueue
    """The queue that verbalizes it."""
    vectors: Float[Tensor, "rows d_model"] | Float[Tensor, "rows slots d_model"] | None
    """A detached copy, on the device it was captured on; ``None`` under fake tensors. Of an
    ``ask()`` call, as `asked.grouped` returns them."""
    count: int
    """The number of rows."""
    samples: int
    """The number of replies per row."""
    sampling: Sampling
    """How tokens are chosen."""
    null: bool = False
    """Whether it is the null control, with nothing injected at the marker."""
    tokens: list[str] | None = None
    """The token each row was read at, if the caller said so."""
    positions: list[int] | None = None
    """The position each row was read at, if the caller said so."""
    width: int = 1
    """The length of the last axis, along which `positions` run."""
    lengths: tuple[int, ...] | None = None
    """The number of rows of each prompt, where they are unequal."""
    padding: frozenset[int] = frozenset()
    """The rows that were read at padding, as far as that is known."""
    usual_norm: float | None = None
    """The mean L2 norm of the vectors that the verbalizer was trained on, if that is known."""
    calibration: Calibration | None = None
    """What is known about the verbalizer's explanations, if the vectors are of its kind."""
    next_tokens: list[tuple[str, ...]] | None = None
    """The target's likeliest next tokens after each row, where they were read too."""
    uid: str = field(default_factory=lambda: uuid4().hex)
    """Its name in remote requests."""
    replies: dict[tuple[int, int], Reply] = field(default_factory=dict[tuple[int, int], Reply])
    """(row, sample) to its reply, filled in as batches settle."""
    errors: dict[int, str] = field(default_factory=dict[int, str])
    """Row to the reason why it cannot have a text."""
    trust: dict[int, Any] = field(default_factory=dict[int, Any])
    """Row to its trust label (`Trust` or `AnswerTrust`), filled in when a label is first read."""
    origin: Origin = field(default_factory=Origin)
    """What the vectors are, as the caller says or as the verbalizer takes them."""
    ignored: tuple[str, ...] = ()
    """How that differs from what the verbalizer reads, where the caller insisted."""
    stored_warnings: dict[int, tuple[str, ...]] | None = None
    """Row to its warnings, where they come from a file; otherwise they are worked out."""
    labeller: Labeller | None = None
    """Measures the trust labels; ``None`` without a reconstructor."""
    asked: Asked | None = None
    """The questions of an ``ask()`` call; ``None`` for an ``explain()`` call."""

    def prompts(self) -> list[range]:
        """Return the rows of each prompt, whose positions follow each other."""
        width = max(self.width, 1)
        return ranges(self.lengths or [width] * (self.count // width))

    def failure(self, row: int) -> str | None:
        """Return why a settled row has no well-formed explanation; ``None`` if it has one."""
        if row in self.errors:
            return f"this vector {self.errors[row]}"
        return self.replies[row, 0].problem

    def row(self, row: int) -> Float[Tensor, " d_model"] | Float[Tensor, "slots d_model"]:
        """Return the vector of a row, or those of its slots; not under fake tensors."""
        held = cast("Tensor", self.vectors)[row]
        return held if self.asked is None else held[: self.asked.slots[row]]

    def settled(self, row: int) -> bool:
        """Return whether `row` has all its replies or an error."""
        return row in self.errors or all((row, k) in self.replies for k in range(self.samples))
