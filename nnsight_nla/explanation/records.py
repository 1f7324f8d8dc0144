"""Plain records of one ``explain()`` call: what it captured and what came of it.

* `Reply`: what the verbalizer wrote for one vector.
* `Receipt`: what was done to make the replies.
* `Capture`: the vectors of one call, with a `Reply` per (row, sample) once it has settled. Handles
  are views of it; see `handle`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol
from uuid import uuid4

from torch import Tensor

from ..checkpoint.reply import proper
from ..core.sampling import Sampling
from ..core.trust import Trust

if TYPE_CHECKING:
    from jaxtyping import Float

    from .handle import Explanation


class Owner(Protocol):
    """The NLA that a handle belongs to, as far as its records need it."""

    @property
    def uid(self) -> str:
        """Its name in pickles and remote requests."""
        ...


class Waiting(Protocol):
    """The queue in which the handles of a capture wait."""

    owner: Owner | None
    """The NLA whose queue it is; ``None`` where it is not in this process."""

    def add(self, handle: Explanation) -> None:
        """Let a handle wait for its text."""
        ...

    def resolve(self, first: Iterable[Explanation], *, implicit: bool = False) -> None:
        """Verbalize these handles and all others that wait."""
        ...

    def receipt(self, capture: Capture) -> Receipt:
        """Return the part of the receipt that is the same for every row."""
        ...


class Labels(Protocol):
    """Measures the trust labels of a capture."""

    def measure(self, capture: Capture, rows: Sequence[int]) -> dict[int, Trust]:
        """Label settled rows of a capture."""
        ...


@dataclass(frozen=True)
class Reply:
    """What the verbalizer wrote for one vector, and what was done to make it."""

    raw: str
    """The reply as generated, tags included, special tokens left out."""
    text: str
    """The explanation between the tags; all there is where a tag is missing."""
    finish: Literal["tag", "eos", "length"]
    """What ended it: the closing tag, an end-of-sequence token, or ``max_new_tokens``."""
    new_tokens: int
    """How many tokens were generated."""
    norm_before: float
    """The L2 norm of the residual at the marker as the model computed it."""
    norm_after: float
    """The same after the vector was written."""
    cosine: float
    """Between what was added (or put in its place) and the vector; NaN for the null control."""


@dataclass(frozen=True)
class Receipt:
    """What was done to make an explanation, for whoever has to trust it."""

    verbalizer: str
    """The verbalizer's name or path."""
    marker_position: int
    """Where in the prompt the vector was written, counted from the left."""
    site: str
    """The module whose output was written: ``block 1`` or ``embedding``."""
    operation: str
    """``add`` (norm-matched) or ``replace``."""
    scale: float | None
    """The operation's scale, as in `Injection`."""
    layer_convention: str
    """Which residual the vector is taken to be."""
    dtype: str
    """The verbalizer's dtype."""
    sampling: Sampling
    """How the tokens were chosen."""
    sidecar_hash: str | None
    """SHA-256 of the sidecar, in hex."""
    prompt_hash: str
    """SHA-256 of the prompt's token ids, in hex."""
    norm_before: Any = None
    """The L2 norm of the residual at the marker before writing; nested as `Explanation.text`."""
    norm_after: Any = None
    """The same after writing."""
    cosine: Any = None
    """Between what was added (written, for a replacement) and the vector: 1 up to rounding."""


@dataclass(eq=False)
class Capture:
    """What one ``explain()`` call took, and what came of it so far."""

    queue: Waiting
    """Verbalizes it."""
    vectors: Float[Tensor, "rows d_model"] | None
    """A detached copy, on the device it was captured on; ``None`` under fake tensors."""
    count: int
    """The number of rows."""
    samples: int
    """Replies per row."""
    sampling: Sampling
    """How tokens are chosen."""
    null: bool = False
    """The null control: nothing is written at the marker."""
    tokens: list[str] | None = None
    """The token each row was read at, where the caller said."""
    positions: list[int] | None = None
    """The position each row was read at, where the caller said."""
    width: int = 1
    """The length of the last axis, along which `positions` run."""
    uid: str = field(default_factory=lambda: uuid4().hex)
    """Its name on the wire."""
    replies: dict[tuple[int, int], Reply] = field(default_factory=dict[tuple[int, int], Reply])
    """(row, sample) to the reply, filled in as batches settle."""
    errors: dict[int, str] = field(default_factory=dict[int, str])
    """Row to the reason it can have no text."""
    trust: dict[int, Trust] = field(default_factory=dict[int, Trust])
    """Row to its trust label, filled in when one is first shown."""
    labeller: Labels | None = None
    """Measures the trust labels; ``None`` without a reconstructor."""

    def failure(self, row: int) -> str | None:
        """Return why a settled row has no proper explanation, ``None`` where it has one."""
        if row in self.errors:
            return f"this vector {self.errors[row]}"
        return proper(self.replies[row, 0].raw)

    def settled(self, row: int) -> bool:
        """Return whether `row` has all its replies or an error."""
        return row in self.errors or all((row, k) in self.replies for k in range(self.samples))
