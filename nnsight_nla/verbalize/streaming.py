r"""Follow texts while they are generated, token by token, and stop some of them.

``nla.resolve(handles, on_text=...)`` calls a function after each decoding step, once for each text
that is not finished, and once more with each finished text::

    def show(so_far: TextSoFar) -> None:
        print(f"\r{so_far.text}", end="" if not so_far.finished else "\n")

    nla.resolve(thought, on_text=show)

The fast engine streams. Elsewhere (``engine="generate"``, remote, vLLM) the function is called once
for each text, when it is finished. If it returns ``"stop"``, that text is not generated further:
its row stays pending with its vector, and the other rows of the batch go on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ..checkpoint.reply import CLOSE, OPEN, complete, extract, first_line
from ..explanation.records import Capture

Watch = Callable[[int, Callable[[], str]], bool]
"""What an engine calls after each step: with the number of a row that is not finished, and with a
function that returns its text so far. It returns whether to stop that row."""


@dataclass(frozen=True)
class TextSoFar:
    """The text of one vector while it is generated."""

    capture: Capture
    """The records of the ``explain()`` call, which is ``handle.capture``."""
    row: int
    """The number of the vector in that call, counted along its flattened shape."""
    sample: int
    """The sample number, from 0."""
    finished: bool
    """Whether this is the whole text."""
    decode: Callable[[], str]
    """Returns `text`."""

    @property
    def text(self) -> str:
        """The explanation so far, without its tags; decoded when it is read."""
        return self.decode()

    @property
    def token(self) -> str | None:
        """The token that the vector was read at; ``None`` if not given."""
        return None if self.capture.tokens is None else self.capture.tokens[self.row]

    @property
    def position(self) -> int | None:
        """The position that the vector was read at; ``None`` if not given."""
        return None if self.capture.positions is None else self.capture.positions[self.row]


OnText = Callable[[TextSoFar], Literal["stop"] | None]
"""``on_text=`` of ``nla.resolve``."""


def partial_text(raw: str, *, opened: str, tagged: bool, upto: Any) -> str:
    r"""Return the explanation in the beginning of a reply, without tags, also half-written ones.

    Args:
        raw: The tokens so far, decoded.
        opened: The beginning of the explanation that was in the prompt.
        tagged: Whether the reply is to have tags.
        upto: As in `Sampling`.

    >>> options = {"opened": "", "tagged": True, "upto": None}
    >>> partial_text("<expla", **options), partial_text("<explanation>\nAbout Par", **options)
    ('', 'About Par')
    >>> partial_text("<explanation>About Paris.</expl", **options)
    'About Paris.'
    """
    text = raw.rstrip("\ufffd").strip()  # A character whose tokens are not all there yet.
    if tagged:
        if not opened and OPEN.startswith(text):
            return ""
        text = _without_half_a_tag(extract(complete(text, opened))[0])
    return first_line(text) if upto == "line" else text


def _without_half_a_tag(text: str) -> str:
    for length in range(len(CLOSE) - 1, 0, -1):
        if text.endswith(CLOSE[:length]):
            return text[:-length].rstrip()
    return text
