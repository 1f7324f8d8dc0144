"""Claims: which parts of an explanation are in the vector, and which only sound right.

Each snippet (or sentence) is dropped in turn, the rest is reconstructed, and what the cosine with
the vector loses is what that part *carries*. A part that carries nothing, or whose absence helps,
is one that the vector does not vouch for. Beside it stands the cosine of the part *alone*. Only the
reconstructor runs, on all these texts in one batch::

    for claim in nla.claims(thought).ranked:
        print(f"{claim.carries:+.3f}  {claim.text}")
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from torch import Tensor

from ..checkpoint.reply import snippets
from ..core.similarity import cosine
from ..errors import ReconstructionError

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float

By = Literal["snippet", "sentence"]
# A sentence ends at a sign and white space; what stands between is one claim.
_SENTENCE = re.compile(r"\S.*?(?:[.!?…。]+[\"')\]]*(?=\s|$)|$)", re.DOTALL)


@dataclass(frozen=True)
class Claim:
    """One part of an explanation."""

    text: str
    """The part as it stands there."""
    carries: float
    """The cosine of the whole text with the vector, less that of the text without this part."""
    alone: float
    """The cosine of this part alone."""


@dataclass(frozen=True)
class Claims:
    """The parts of one explanation, in its order."""

    text: str
    """The whole explanation."""
    cosine: float
    """Between the vector and the whole text's reconstruction."""
    parts: tuple[Claim, ...]
    """One for each snippet or sentence."""

    @property
    def ranked(self) -> tuple[Claim, ...]:
        """The parts, those that carry most first."""
        return tuple(sorted(self.parts, key=lambda claim: -claim.carries))

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        return asdict(self)

    def to_pandas(self) -> pd.DataFrame:
        """A table with a row per part."""
        import pandas as pd

        columns = ["text", "carries", "alone"]
        return pd.DataFrame([asdict(claim) for claim in self.parts], columns=columns)

    def __str__(self) -> str:
        lines = [f"{claim.carries:+.3f}  {claim.text}" for claim in self.parts]
        return "\n".join([f"cosine {self.cosine:.3f}; without each part it changes by:", *lines])

    def _repr_html_(self) -> str:
        from ..view import fragments

        return fragments.claims(self.to_dict())


def claims(
    reconstruct: Callable[[list[str]], Float[Tensor, "rows d_model"]],
    prior: Callable[[], Float[Tensor, " d_model"]],
    texts: Sequence[str],
    vectors: Float[Tensor, "rows d_model"],
    by: By,
) -> list[Claims]:
    """Take explanations apart.

    Args:
        reconstruct: Text to vector.
        prior: What it makes of no text, for an explanation of one part only.
        texts: The explanations.
        vectors: The vector of each, raw.
        by: What is dropped: snippets (paragraphs or lines) or sentences.

    Raises:
        ReconstructionError: `by` is unknown.
    """
    if by not in get_args(By):
        raise ReconstructionError(f"by={by!r}: expected one of {', '.join(get_args(By))}.")
    split = [_parts(text, by) for text in texts]
    wanted: dict[str, None] = {}
    for text, parts in zip(texts, split, strict=True):
        wanted.update(dict.fromkeys([text, *parts, *_without(text, parts)]))
    wanted.pop("", None)
    back = dict(zip(wanted, reconstruct(list(wanted)), strict=True))
    if any("" in _without(text, parts) for text, parts in zip(texts, split, strict=True)):
        back[""] = prior()
    found: list[Claims] = []
    for text, parts, vector in zip(texts, split, vectors.float().cpu(), strict=True):
        near = {each: cosine(back[each], vector).item() for each in (text, *parts)}
        rest = [cosine(back[each], vector).item() for each in _without(text, parts)]
        found.append(
            Claims(
                text,
                near[text],
                tuple(
                    Claim(part, near[text] - left, near[part])
                    for part, left in zip(parts, rest, strict=True)
                ),
            )
        )
    return found


def _parts(text: str, by: By) -> list[str]:
    lines = list(snippets(text))
    return lines if by == "snippet" else [s for line in lines for s in _SENTENCE.findall(line)]


def _without(text: str, parts: Sequence[str]) -> list[str]:
    """The text without each of its parts in turn, the white space around the gap closed."""
    left: list[str] = []
    start = 0
    for part in parts:
        begin = text.index(part, start)
        start = begin + len(part)
        left.append((text[:begin] + text[start:].lstrip()).strip())
    return left
