"""Label rows by programme: every line can be checked from the text and the model alone.

    nnsight-nla label ROWS LABELLED --by tutorials.recipes.smollm2.labels:label

`nnsight_nla.smollm2.explanations` has the form of a label. A label names what is *there*; it says
nothing on what the model "thinks".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnsight_nla.smollm2.explanations import Slots, explanation, truth

from .sources import subject_of


def label(row: Mapping[str, Any]) -> str | None:
    """Return the label of a row that ``nnsight-nla extract --next-tokens 3`` wrote.

    Returns:
        ``None`` for a row whose text is too short to have all slots.
    """
    slots = truth_of(row)
    return None if slots is None else explanation(slots)


def truth_of(row: Mapping[str, Any]) -> Slots | None:
    """Return what a perfect verbalizer says of such a row; ``None`` as for `label`."""
    subject = subject_of(row["doc_id"])
    return truth(subject, row["detokenized_text_truncated"], row["next_tokens"])
