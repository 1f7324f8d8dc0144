"""Measure which parts of an explanation the vector supports, and which only sound right.

Each snippet (or sentence) is left out in turn, and the rest is reconstructed. The drop in cosine
with the vector is how much that part *carries*. If the cosine stays the same or rises, the vector
does not support the part. `Claim.alone` is the cosine of the part by itself. Only the reconstructor
runs, on all these texts in one batch::

    for claim in nla.claims(thought).ranked:
        print(f"{claim.carries:+z.3f}  {claim.text}")
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from torch import Tensor

from .. import view
from ..checkpoint.reply import snippets
from ..core.nesting import nested
from ..core.similarity import cosine
from ..errors import ReconstructionError, shown
from .score import pair

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float

    from ..core.nesting import Nested
    from ..explanation.handle import Explanation
    from .reconstructor import Reconstructor

By = Literal["snippet", "sentence"]
# A sentence ends at a punctuation mark before white space, or at the end of its snippet.
_SENTENCE = re.compile(r"\S.*?(?:[.!?…。]+[\"')\]]*(?=\s|$)|$)", re.DOTALL)


@dataclass(frozen=True)
class Claim:
    """One part of an explanation."""

    text: str
    """The part as it is written in the explanation."""
    carries: float
    """The cosine of the whole text with the vector, minus that of the text without this part."""
    alone: float
    """The cosine of this part alone."""


@dataclass(frozen=True)
class Claims:
    """The parts of one explanation, in its order."""

    text: str
    """The whole explanation."""
    cosine: float
    """The cosine of the vector with the reconstruction of the whole text."""
    parts: tuple[Claim, ...]
    """One for each snippet or sentence."""

    @property
    def ranked(self) -> tuple[Claim, ...]:
        """The parts, those that carry the most first; parts equal to three decimals in order."""
        return tuple(sorted(self.parts, key=lambda claim: -round(claim.carries, 3)))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return asdict(self)

    def to_pandas(self) -> pd.DataFrame:
        """Return a table with a row per part."""
        import pandas as pd

        columns = ["text", "carries", "alone"]
        return pd.DataFrame([asdict(claim) for claim in self.parts], columns=columns)

    def __str__(self) -> str:
        lines = [f"{claim.carries:+z.3f}  {claim.text}" for claim in self.parts]
        return "\n".join([f"cosine {self.cosine:z.3f}; without each part it changes by:", *lines])

    def _repr_html_(self) -> str:
        return view.claims(self.to_dict())


def claims_of(
    reconstructor: Reconstructor,
    explanation: Explanation | str | Sequence[Any],
    vectors: Float[Tensor, "*shape d_model"] | None,
    by: By,
) -> Nested[Claims]:
    """Take the texts of a handle apart, or texts with their vectors; see `NLA.claims`.

    Raises:
        ReconstructionError: A row has no text, or unusable vectors.
    """
    texts, held, reasons = pair(explanation, vectors, reconstructor.d_model)
    for row, text in enumerate(texts):
        if not (text or "").strip():
            raise ReconstructionError(f"Row {row} has no text to take apart: {reasons[row]}.")
    flat = held.reshape(-1, reconstructor.d_model)
    said = [str(text) for text in texts]
    found = claims(reconstructor.reconstruct, reconstructor.prior, said, flat, by)
    return nested(found, tuple(held.shape[:-1]))


def claims(
    reconstruct: Callable[[list[str]], Float[Tensor, "rows d_model"]],
    prior: Callable[[], Float[Tensor, " d_model"]],
    texts: Sequence[str],
    vectors: Float[Tensor, "rows d_model"],
    by: By,
) -> list[Claims]:
    """Measure the parts of explanations.

    Args:
        reconstruct: Texts to vectors.
        prior: The reconstruction of an empty text, for explanations that have one part only.
        texts: The explanations.
        vectors: The vector of each, raw.
        by: What is dropped: snippets (paragraphs or lines) or sentences.

    Raises:
        ReconstructionError: `by` is unknown.
    """
    if not isinstance(by, str) or by not in get_args(By):
        raise ReconstructionError(f"by={shown(by)}: expected one of {', '.join(get_args(By))}.")
    split = [_parts(text, by) for text in texts]
    rests = [_without(text, parts) for text, parts in zip(texts, split, strict=True)]
    rows = list(zip(texts, split, rests, vectors.float().cpu(), strict=True))
    wanted = dict.fromkeys(each for text, parts, rest, _ in rows for each in (text, *parts, *rest))
    wanted.pop("", None)
    back = dict(zip(wanted, reconstruct(list(wanted)), strict=True))
    if any("" in rest for rest in rests):
        back[""] = prior()
    found: list[Claims] = []
    for text, parts, rest, vector in rows:
        near = {each: cosine(back[each], vector).item() for each in (text, *parts, *rest)}
        measured = (
            Claim(part, near[text] - near[left], near[part])
            for part, left in zip(parts, rest, strict=True)
        )
        found.append(Claims(text, near[text], tuple(measured)))
    return found


def _parts(text: str, by: By) -> list[str]:
    lines = list(snippets(text))
    return lines if by == "snippet" else [s for line in lines for s in _SENTENCE.findall(line)]


def _without(text: str, parts: Sequence[str]) -> list[str]:
    """Return the text without each of its parts in turn, the white space around the gap closed."""
    left: list[str] = []
    start = 0
    for part in parts:
        begin = text.index(part, start)
        start = begin + len(part)
        left.append((text[:begin] + text[start:].lstrip()).strip())
    return left
