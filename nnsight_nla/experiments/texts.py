"""The texts of a sweep: each different vector is explained once, all by one ``explain()``.

Two cells often leave the same residual behind (whatever is written cannot reach it, or is what was
there already), and a sweep that goes on has some texts already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..evaluation.compare import texts

if TYPE_CHECKING:
    from ..explanation.handle import Explanation


_UNSAID = "was not explained"


@dataclass(frozen=True)
class Said:
    """What the verbalizer made of one vector."""

    text: str | None = None
    """The explanation; ``None`` where there is none."""
    error: str | None = None
    """Why there is none, where a vector was given."""
    warnings: tuple[str, ...] = ()
    """What a careful reader should know."""


class Texts:
    """Vectors to texts, by the vectors' bytes."""

    def __init__(self, vectors: Sequence[Tensor], nla: Any, known: Texts | None = None) -> None:
        """Capture the vectors that have no text yet; nothing is generated before it is asked for.

        Args:
            vectors: ``[d_model]`` each, float32, on the CPU.
            nla: Explains them; ``None`` where what is known has to do.
            known: The texts of an earlier sweep.
        """
        self._said: dict[bytes, Said] = {} if known is None else known.settled()
        fresh = {_key(vector): vector for vector in vectors}
        waiting = {key: vector for key, vector in fresh.items() if key not in self._said}
        self._waiting = list(waiting)
        self.handle: Explanation | None = None
        """The explanations of the vectors that had no text yet."""
        if waiting and nla is not None:
            self.handle = nla.explain(torch.stack(list(waiting.values())))

    def of(self, vector: Tensor | None) -> Said:
        """What was said of a vector, made now where it was not made yet.

        Raises:
            VerbalizationError: Verbalizing failed; what had settled is kept.
        """
        if vector is None:
            return Said()
        key = _key(vector)
        if key not in self._said:
            if self.handle is None:
                return Said(error=f"{_UNSAID}; give the NLA: from_parquet(path, nla=nla)")
            self._settle()
        return self._said[key]

    def learn(self, vector: Tensor, said: Said) -> None:
        """Take over what was said of a vector elsewhere; nothing where it never got a text."""
        if said.text is not None or (said.error and not said.error.startswith(_UNSAID)):
            self._said[_key(vector)] = said

    def settled(self) -> dict[bytes, Said]:
        """The texts there are by now; never runs a model."""
        if self.handle is not None and self.handle.resolved:
            self._settle()
        return dict(self._said)

    def _settle(self) -> None:
        if self.handle is not None:
            rows = zip(self._waiting, texts(self.handle), self.handle.warnings, strict=True)
            self._said |= {key: Said(*said, tuple(notes)) for key, said, notes in rows}


def _key(vector: Tensor) -> bytes:
    return vector.numpy().tobytes()
