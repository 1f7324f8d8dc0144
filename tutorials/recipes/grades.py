"""Count the words that the trust label gives to vectors, for the recipes' figures."""

from __future__ import annotations

from collections.abc import Sequence

from nnsight_nla.core.trust import GRADES


def grade_shares(words: Sequence[str]) -> dict[str, float]:
    """Return the number of rows and the share of each grade.

    >>> grade_shares(["strong", "none"])
    {'rows': 2, 'strong': 0.5, 'partial': 0.0, 'weak': 0.0, 'none': 0.5}
    """
    return {"rows": len(words), **{word: words.count(word) / len(words) for word in GRADES}}
