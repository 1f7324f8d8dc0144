"""What a doctor's examination found: figures per variant, a verdict per setting.

A *setting* is one thing a checkpoint declares (its layer, its template, ...); a *variant* is one
value of it. Every variant was tried on the same activations, all else as declared, so two variants
are compared row by row, and a difference counts only where it is clearer than its own noise::

    diagnosis = nla.doctor(model)
    print(diagnosis)            # a line per variant, what loses, and what the evidence supports
    diagnosis.broken            # ('layer',) where the declared layer loses to another
    diagnosis.checkpoint        # the declared one with what lost replaced

The verdict rests on the reconstructor where there is one: how much better a text reconstructs its
own vector than the other rows' texts do (a cosine alone saturates in families with a large shared
mean). Without one it rests on how sure the verbalizer is of its own text, as long as the vector
still matters to it; that separates less.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ..checkpoint.checkpoint import Checkpoint

Verdict = Literal["supported", "undecided", "loses", "not tried", "fails"]
"""``supported``: better than every other variant; ``undecided``: as good as another; ``fails``: it
cannot be rendered or run at all."""

LEAST = {"cosine": 0.05, "likelihood": 0.005}
"""The least mean advantage that counts: a share of what is left to reconstruct; nats per token."""
ERRORS = 2.0
"""...and it has to be so many standard errors above zero."""
READS = 0.05
"""The least effect, in nats per token, of a verbalizer that reads its vector at all."""


@dataclass(frozen=True, eq=False)
class Figures:
    """What one variant gave on each activation."""

    proper: Tensor
    """``[rows]``, bool: the reply had an explanation in its tags."""
    effect: Tensor
    """``[rows]``: log-likelihood of the reply with its vector minus with none, nats per token."""
    likelihood: Tensor
    """``[rows]``: log-likelihood of the reply with its vector, nats per token."""
    cosine: Tensor | None = None
    """``[rows]``: between the vector and its text's reconstruction, 0 where there is no text."""
    others: Tensor | None = None
    """``[rows]``: the mean cosine of the other rows' texts with the same vector."""
    text: str = ""
    """What was said about the first activation."""

    @property
    def evidence(self) -> Tensor | None:
        """``[rows]``: the share of what the other rows' texts leave that the own text carries."""
        if self.cosine is None or self.others is None:
            return None
        left = (1 - self.others).clamp_min(1e-6)
        return torch.where(self.proper, (self.cosine - self.others) / left, 0.0)

    @property
    def reads(self) -> bool:
        """Whether the text depends on the vector, beyond noise."""
        mean, error = _mean(self.effect)
        return mean > max(READS, ERRORS * error)


@dataclass(frozen=True)
class Variant:
    """One value of a setting, and how it did."""

    value: str
    """The value, in words."""
    declared: bool
    """Whether it is the checkpoint's own."""
    extraction: float | None = None
    """The share of replies with a proper explanation."""
    effect: float | None = None
    """What the vector adds to the likelihood of the reply, nats per token; 0 is a deaf one."""
    cosine: float | None = None
    """The mean cosine of the reconstruction; a failed extraction counts as 0."""
    likelihood: float | None = None
    """How sure the verbalizer is of its reply, nats per token; 0 is certain."""
    text: str = ""
    """What it said about the first activation."""
    error: str | None = None
    """Why it could not be tried."""


@dataclass(frozen=True)
class Finding:
    """One setting: its variants, the declared one first, and the verdict on that."""

    setting: str
    """The setting's name."""
    verdict: Verdict
    """How the declared value did."""
    variants: tuple[Variant, ...] = ()
    """What was tried."""
    best: str | None = None
    """The value that the evidence supports instead, where the declared one loses."""
    note: str = ""
    """Why there is no verdict, or what cannot be used."""


@dataclass(frozen=True)
class Diagnosis:
    """What a checkpoint declares, held against what works."""

    findings: tuple[Finding, ...]
    """One per setting."""
    broken: tuple[str, ...]
    """The settings whose declared value loses, the costliest first; others' losses that vanish
    once it is put right are not counted."""
    checkpoint: Checkpoint | None
    """What the evidence supports: the declared checkpoint with what lost replaced."""
    reads: bool
    """Whether that one's texts depend on the vector at all."""
    rows: int
    """How many activations every variant was tried on."""
    judge: Literal["reconstructor", "likelihood"] = "likelihood"
    """What the verdicts rest on."""
    texts: tuple[str, ...] = field(default=(), repr=False)
    """What the target read."""

    @property
    def ok(self) -> bool:
        """Nothing that is declared loses or fails, and the verbalizer reads its vector."""
        return self.reads and not self.broken

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
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
                "In no setting that was tried do the texts depend on the vector: these weights "
                "are no verbalizer of this target, or something else about them is wrong."
            )
        elif not said:
            said.append("No other setting does better than what is declared.")
        return " ".join(said)

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
    """A figure for a table, a dash where there is none."""
    return "–" if value is None else f"{value:.2f}"


def variant(value: str, figures: Figures | str, *, declared: bool = False) -> Variant:
    """One variant's record; text in place of figures is why there are none."""
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
    """How much better a variant does than the declared one; 0 where that is not clear.

    Row by row, in shares of what is left to reconstruct, or in nats per token without a
    reconstructor.
    """
    mine, theirs = challenger.evidence, declared.evidence
    if mine is not None and theirs is not None:
        return _clear(mine - theirs, LEAST["cosine"])
    extracted = challenger.proper.float().mean() >= declared.proper.float().mean()
    # A text that the vector has no part in can be very likely.
    matters = challenger.reads and challenger.effect.mean() >= declared.effect.mean() / 2
    if not (extracted and matters):
        return 0.0
    return _clear(challenger.likelihood - declared.likelihood, LEAST["likelihood"])


def _clear(differences: Tensor, least: float) -> float:
    mean, error = _mean(differences)
    return mean if mean > max(least, ERRORS * error) else 0.0


def _mean(values: Tensor) -> tuple[float, float]:
    """The mean and its standard error."""
    spread = values.std().item() if len(values) > 1 else 0.0
    return values.mean().item(), spread / len(values) ** 0.5
