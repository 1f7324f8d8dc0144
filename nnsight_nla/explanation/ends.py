"""Explain a difference by what verbalizers are trained on: its two ends.

A difference of two residuals is not a residual: it has another norm and mean, and its text may be
about neither. So it is explained together with both ends and with its negative, and the four texts
are read side by side::

    ends = nla.explain_difference(paris, rome)
    ends.a.text, ends.b.text          # the residuals, as the verbalizer was trained on
    ends.a_minus_b.warnings           # "its vector is a difference, ..."
    print(ends)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import InjectionError
from .arguments import check_vectors
from .asked import check_single
from .handle import Explanation, keep

if TYPE_CHECKING:
    import pandas as pd

    from .protocols import Explains

ROLES = ("a", "b", "a_minus_b", "b_minus_a")


@dataclass(frozen=True)
class Ends:
    """A difference of two residuals, explained by both ends and both signs."""

    a: Explanation
    """The residual `a`."""
    b: Explanation
    """The residual `b`."""
    a_minus_b: Explanation
    """The difference, which is not a residual."""
    b_minus_a: Explanation
    """Its negative."""

    def to_pandas(self) -> pd.DataFrame:
        """Return a table with a row per vector and role: `Explanation.to_pandas`, and ``role``."""
        import pandas as pd

        parts = [getattr(self, role).to_pandas() for role in ROLES]
        for role, part in zip(ROLES, parts, strict=True):
            part.insert(0, "role", role)
        return pd.concat(parts, ignore_index=True)

    def __str__(self) -> str:
        parts = [(_title(role), str(getattr(self, role))) for role in ROLES]
        return "\n\n".join(f"{title}\n{text}" for title, text in parts)

    def __repr__(self) -> str:
        return f"<Ends {self.a_minus_b!r}>"

    def _repr_html_(self) -> str:
        from ..view.escaping import html

        parts = [(_title(role), getattr(self, role)._repr_html_()) for role in ROLES]
        return "".join(f"<p><b>{html(title)}</b></p>{table}" for title, table in parts)


def explain_ends(explains: Explains, a: object, b: object, **options: Any) -> Ends:
    """Explain two residuals and their differences; see `NLA.explain_difference`."""
    check_single(explains.checkpoint, "explain_difference")
    for each in (a, b):
        check_vectors(each, explains.checkpoint.d_model)
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.shape != b.shape:
        shapes = [list(each.shape) for each in (a, b) if isinstance(each, Tensor)]
        raise InjectionError(
            f"explain_difference: a has shape {shapes[0]}, b has {shapes[1]}. Pass two residuals, "
            "or two batches of them, of one shape."
        )
    a, b = a.detach(), b.detach().to(a)
    # In one call, so that each end is a control for the other one's trust label.
    both = explains.explain(torch.stack([a, b]), **options)
    signs = torch.stack([a - b, b - a])
    differences = explains.explain(signs, kind="difference", **options)
    ends = Ends(both[0], both[1], differences[0], differences[1])
    keep(ends)
    return ends


def _title(role: str) -> str:
    return role.replace("_minus_", " − ")
