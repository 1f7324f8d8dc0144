r"""Labels of a fixed form, whose statements a program can compare.

A form says for each statement which strings enclose it in the text. The forms of the bundled pairs'
labels are built in; for other labels made by a program, describe your own form::

    form = (Line("subject", "About ", (".",)), Line("next", "Next: ", (" | ", "\n"), among=" | "))
    grounded(nla, source, truth=truth_of(form))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import cast

from ...errors import NLAError
from .rows import GroundedRow

Truth = Callable[[str | None, str], dict[str, bool] | None]
"""An explanation (``None`` if malformed) and its label to what is right, statement by statement;
``None`` if that is unknown."""


@dataclass(frozen=True)
class Line:
    """One statement of a label."""

    name: str
    """What it states."""
    after: str
    """The text before it; empty for the beginning."""
    until: tuple[str, ...] = ()
    """The texts that end it, the first that comes; it ends with the label if none does."""
    among: str | None = None
    """What separates alternatives in the label, if it is enough to state one of them."""
    needed: bool = True
    """Whether a wrong statement makes the whole explanation wrong."""

    def find(self, text: str) -> str | None:
        r"""Return the statement; ``None`` if the text does not make it.

        >>> Line("next", "Next: ", (" | ", "\n")).find("Last: the\nNext: hive | field")
        'hive'
        """
        start = text.find(self.after)
        if start < 0:
            return None
        start += len(self.after)
        text += "\n"  # Where a text is cut off, its last line ends.
        ends = [end for end in (text.find(each, start) for each in self.until) if end >= 0]
        return text[start : min(ends, default=len(text) - 1)]

    def right(self, text: str | None, label: str) -> bool:
        """Return whether an explanation, which may be cut off, states what its label states."""
        if not text:
            return False
        said, known = self.find(text), self.find(label)
        if self.among is None or known is None:
            return said == known
        ends = tuple(each for each in self.until if each != self.among)
        alternatives = Line(self.name, self.after, ends).find(label) or ""
        return said in alternatives.split(self.among)


Form = tuple[Line, ...]
FORMS: dict[str, Form] = {
    "smollm2": (
        Line("subject", "About ", (".\n",)),
        Line("last word", "Last: ", (" < ", "\n")),
        Line("next", "Next: ", (" | ", "\n"), among=" | "),
        Line("content", "Mentions: ", ("\n",), needed=False),
    ),
    "tiny": (
        Line("subject", "", (",", ";")),
        Line("tone", "; ", (" tone",)),
        Line("current", "After: ", (".",)),
        Line("next", "Next: ", (".",)),
        Line("attribute", ", ", (";",)),
        Line("stage", "\n", (".\n",)),
    ),
}
"""The forms of the embedded pairs' labels; see `smollm2.explanations` and `tiny.explanations`."""


def form_of(rows: Sequence[GroundedRow]) -> Form | None:
    """Return the known form of the first label that has one; ``None`` if none has."""
    labels = dict.fromkeys(row.label for row in rows if row.label)
    found = (form for label in labels for form in FORMS.values() if _has(form, label))
    return next(found, None)


def truth_of(form: Form | None) -> Truth | None:
    """Return the function that compares explanations with labels of a form."""
    if form is None:
        return None

    def truth(text: str | None, label: str) -> dict[str, bool] | None:
        if not _has(form, label):
            return None
        return {line.name: line.right(text, label) for line in form}

    return truth


def load_truth(name: str) -> Truth:
    """Import a function by ``module:function``.

    Raises:
        NLAError: There is no such function.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(import_module(module), function)
        if not callable(found):
            raise TypeError(f"it is {found!r}")
        return cast("Truth", found)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise NLAError(
            f"truth={name!r} cannot be imported ({error}); expected MODULE:FUNCTION, of a function "
            "that takes an explanation and its label and returns which statements are right."
        ) from error


def known_truth(rows: Sequence[GroundedRow]) -> Truth | None:
    """Return the truth of labels of a known form; ``None`` for other labels."""
    return truth_of(form_of(rows))


def _has(form: Form, label: str) -> bool:
    """Return whether a label makes every statement of a form; one line of it may be absent."""
    found = [line.find(label) for line in form if line.after not in ("", ", ")]
    return all(each for each in found)
