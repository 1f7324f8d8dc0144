"""The doctor's report: figures for each variant, a verdict for each setting.

A *setting* is one thing that a checkpoint declares (its layer, its template, ...), and a *variant*
is one value of it. Every variant is measured on the same activations, with everything else as
declared. Two variants are therefore compared row by row, and a difference counts only if it exceeds
its own noise::

    diagnosis = nla.doctor(model)
    print(diagnosis)            # a line per variant, and the conclusion
    diagnosis.plot()            # the same as bars
    diagnosis.broken            # ('layer',) if the declared layer loses to another
    diagnosis.checkpoint        # the declared checkpoint with the losing settings replaced

With a reconstructor, a verdict depends on how much better a text reconstructs its own vector than
the texts of other rows do (the cosine alone saturates for models whose residuals share a large
mean). Without one, it depends on the likelihood that the verbalizer gives its own text, if the text
depends on the vector; this separates variants less well.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ..checkpoint.checkpoint import Checkpoint

if TYPE_CHECKING:
    import plotly.graph_objects as go

Verdict = Literal["supported", "undecided", "loses", "not tried", "fails"]
"""The verdict on a declared value.

``supported``: it is better than every other variant; ``undecided``: another is as good; ``loses``:
another is better; ``not tried``: there is no other variant; ``fails``: the prompt cannot be
rendered."""

LEAST_ADVANTAGE = {"cosine": 0.05, "likelihood": 0.005}
"""The smallest mean advantage that counts: a share of the remaining error; nats per token."""
STANDARD_ERRORS = 2.0
"""How many standard errors above zero an advantage has to be as well."""
LEAST_EFFECT = 0.05
"""The smallest mean effect, in nats per token, of a verbalizer that reads its vector."""


@dataclass(frozen=True, eq=False)
class Figures:
    """The measurements of one variant, one row per activation."""

    proper: Tensor
    """``[rows]``, bool: whether the reply is a well-formed explanation."""
    effect: Tensor
    """``[rows]``: the log-likelihood that the vector adds to its reply, nats per token."""
    likelihood: Tensor
    """``[rows]``: the log-likelihood of the reply with its vector, nats per token."""
    cosine: Tensor | None = None
    """``[rows]``: of the vector and its text's reconstruction; 0 without a text."""
    others: Tensor | None = None
    """``[rows]``: the mean cosine of the other rows' texts with the same vector."""
    text: str = ""
    """The explanation of the first activation."""

    @property
    def evidence(self) -> Tensor | None:
        """``[rows]``: the share of the other rows' error that a row's own text removes."""
        if self.cosine is None or self.others is None:
            return None
        left = (1 - self.others).clamp_min(1e-6)
        return torch.where(self.proper, (self.cosine - self.others) / left, 0.0)

    @property
    def reads(self) -> bool:
        """Whether the text depends on the vector, beyond noise."""
        mean, error = _mean(self.effect)
        return mean > max(LEAST_EFFECT, STANDARD_ERRORS * error)


@dataclass(frozen=True)
class Variant:
    """One value of a setting and its mean figures."""

    value: str
    """The value, in words."""
    declared: bool
    """Whether it is the value that the checkpoint declares."""
    extraction: float | None = None
    """The share of replies that are well-formed explanations."""
    effect: float | None = None
    """The log-likelihood that the vector adds to its reply, nats per token; 0 if it is ignored."""
    cosine: float | None = None
    """The mean cosine of vector and reconstruction; a reply that is not well-formed counts as 0."""
    likelihood: float | None = None
    """The log-likelihood of the reply, nats per token; 0 is certain."""
    text: str = ""
    """The explanation of the first activation."""
    error: str | None = None
    """Why it could not be run."""


@dataclass(frozen=True)
class Finding:
    """One setting: its variants, and the verdict on the declared one."""

    setting: str
    """The setting's name."""
    verdict: Verdict
    """The verdict on the declared value."""
    variants: tuple[Variant, ...] = ()
    """The variants, the declared one first."""
    best: str | None = None
    """The value that the evidence supports instead, if the declared one loses."""
    note: str = ""
    """Why no alternative was tried, or why the setting fails."""


@dataclass(frozen=True)
class Diagnosis:
    """The report on every setting of a checkpoint."""

    findings: tuple[Finding, ...]
    """One per setting."""
    broken: tuple[str, ...]
    """The settings whose declared value loses, the costliest first.

    A setting that no longer loses once another is replaced is left out."""
    checkpoint: Checkpoint | None
    """The declared checkpoint with the losing settings replaced."""
    reads: bool
    """Whether the texts depend on the vector with that checkpoint."""
    rows: int
    """The number of activations that every variant was measured on."""
    judge: Literal["reconstructor", "likelihood"] = "likelihood"
    """What the verdicts are based on."""
    texts: tuple[str, ...] = field(default=(), repr=False)
    """The texts that the target read."""

    @property
    def ok(self) -> bool:
        """Whether no declared value loses or fails, and the verbalizer reads its vector."""
        return self.reads and not self.broken

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        fields = {name: value for name, value in asdict(self).items() if name != "checkpoint"}
        supported = None if self.checkpoint is None else asdict(self.checkpoint)
        return {"ok": self.ok, "conclusion": self.conclusion, **fields, "checkpoint": supported}

    @property
    def conclusion(self) -> str:
        """The verdict in a sentence or two."""
        failed = [each for each in self.findings if each.verdict == "fails"]
        if failed:
            return f"The {failed[0].setting} cannot be used: {failed[0].note}"
        lost = {each.setting: each.best for each in self.findings if each.setting in self.broken}
        said = [
            f"The declared {name} loses; the evidence supports {lost[name]}."
            for name in self.broken
        ]
        if not self.reads:
            said.append(
                "The texts do not depend on the vector with any of the settings that were tried: "
                "these weights are not a verbalizer of this target, or are broken in another way."
            )
        elif not said:
            said.append("No alternative is better than the declared settings.")
        return " ".join(said)

    def plot(self) -> go.Figure:
        """Draw what each value of each setting reaches, the declared one in another colour.

        Of a setting that nothing else was tried for there is nothing to compare, and it is left
        out.
        """
        from .picture import bars

        return bars(self)

    def __str__(self) -> str:
        lines = [
            f"{each.setting:16} {'declared' if variant.declared else '':8} {variant.value:40.40} "
            f"{shown(variant.extraction):>6} {shown(variant.effect):>7} {shown(variant.cosine):>7} "
            f"{each.verdict if variant.declared else variant.error or ''}"
            for each in self.findings
            for variant in each.variants
        ]
        return "\n".join((*lines, self.conclusion))


def shown(value: float | None) -> str:
    """Format a figure for a table; ``None`` is a dash."""
    return "–" if value is None else f"{value:z.2f}"


def variant(value: str, figures: Figures | str, *, declared: bool = False) -> Variant:
    """Average the figures of one variant; a text in place of figures says why there are none."""
    if isinstance(figures, str):
        return Variant(value, declared, error=figures)
    cosine = None
    if figures.cosine is not None:
        cosine = torch.where(figures.proper, figures.cosine, 0.0).mean().item()
    return Variant(
        value,
        declared,
        figures.proper.float().mean().item(),
        figures.effect.mean().item(),
        cosine,
        figures.likelihood.mean().item(),
        figures.text,
    )


def advantage(challenger: Figures, declared: Figures) -> float:
    """Return how much better a variant does than the declared one; 0 if that is within noise.

    Args:
        challenger: The variant.
        declared: The declared value, on the same rows.

    Returns:
        The mean difference over the rows: of `Figures.evidence`, or of the likelihood in nats per
        token without a reconstructor.
    """
    mine, theirs = challenger.evidence, declared.evidence
    if mine is not None and theirs is not None:
        return _clear(mine - theirs, LEAST_ADVANTAGE["cosine"])
    extracted = challenger.proper.float().mean() >= declared.proper.float().mean()
    # A text that does not depend on the vector can be very likely.
    matters = challenger.reads and challenger.effect.mean() >= declared.effect.mean() / 2
    if not (extracted and matters):
        return 0.0
    return _clear(challenger.likelihood - declared.likelihood, LEAST_ADVANTAGE["likelihood"])


def _clear(differences: Tensor, least: float) -> float:
    mean, error = _mean(differences)
    return mean if mean > max(least, STANDARD_ERRORS * error) else 0.0


def _mean(values: Tensor) -> tuple[float, float]:
    """Return the mean and its standard error."""
    spread = values.std().item() if len(values) > 1 else 0.0
    return values.mean().item(), spread / len(values) ** 0.5
