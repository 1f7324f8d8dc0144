"""How often a checkpoint's explanations are right, as measured, in one frozen record.

`nnsight-nla calibrate` measures a `Calibration` on documents whose truth is known, and writes it
next to the verbalizer's weights; `NLA` reads it there, and its trust labels use it:

* a logistic model for each kind of statement gives `Trust.probabilities`;
* thresholds on the margin give the grade of the reconstruction;
* the number of noisy first positions, and statistics of the residuals at the verbalizer's layer,
  give warnings, and prevent a good grade for vectors that are not like those residuals.

A calibration is valid only for the population that it was measured on, which it names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, shown
from .numeric import is_int, is_real, is_unicode
from .trust import PARTIAL, STRONG

if TYPE_CHECKING:
    from torch import Tensor

FILE = "nla_calibration.json"
"""The name of the file, in the verbalizer's folder."""
VERSION = 1
_LARGEST = 1e30
FEATURES = ("log_odds", "likelihood", "cosine", "typical")
"""What a probability may depend on; see `Statement.weights`."""


@dataclass(frozen=True)
class Statement:
    """One kind of statement, and a logistic model of the probability that it is right."""

    name: str
    """The name of the statement, such as ``"next"``."""
    part: tuple[str, ...] | None
    """The part of an explanation that states it: after the first of these texts, up to the first
    that comes of the others, that one included; or up to the end. ``None``: the whole text."""
    weights: Mapping[str, float]
    """The model's coefficients: ``intercept``, and of the features ``log_odds`` (of the probability
    that the verbalizer itself gives the part, with the vector), ``likelihood`` (of the text's
    tokens, mean, in nats), ``cosine`` (of the reconstruction with the vector) and ``typical`` (the
    cosine of the vector with the mean residual)."""
    rate: float | None = None
    """How often it is right in the population."""
    error: float | None = None
    """The expected calibration error there."""
    all_of: tuple[str, ...] = ()
    """The other statements that it stands for: it is right if they all are. Its ``log_odds`` are
    those of the product of the probabilities of the ones that are made."""

    def span(self, text: str) -> tuple[int, int] | None:
        r"""Return where in an explanation it is stated, ``None`` if it is not.

        >>> text = "Last: the\nNext: hive | field"
        >>> start, end = Statement("next", ("Next: ", " | "), {}).span(text)
        >>> text[start:end]
        'hive | '
        """
        if self.part is None:
            return 0, len(text)
        after, *until = self.part
        start = text.find(after)
        if start < 0:
            return None
        start += len(after)
        ends = [(end, len(each)) for each in until if (end := text.find(each, start)) >= 0]
        end, length = min(ends, default=(len(text), 0))
        return start, end + length

    def probability(self, features: Mapping[str, float | None]) -> float | None:
        """Return the probability that it is right; ``None`` if a feature is missing.

        >>> Statement("next", None, {"intercept": 1.0, "cosine": -1.0}).probability({"cosine": 1.0})
        0.5
        """
        total = self.weights.get("intercept", 0.0)
        for name, weight in self.weights.items():
            if name == "intercept":
                continue
            value = features.get(name)
            if value is None or not math.isfinite(value):
                return None
            total += weight * value
        if not math.isfinite(total):
            return None
        return 1 / (1 + math.exp(-max(-500.0, min(500.0, total))))


@dataclass(frozen=True)
class Residuals:
    """Statistics of the residuals that a verbalizer was trained on."""

    mean: tuple[float, ...] = field(repr=False)
    """The mean of the normalised vectors, one number per entry."""
    least: float
    """The cosine with `mean` that 99 in 100 of them exceed."""
    shortest: float
    """The L2 norm that 99.5 in 100 of them exceed."""
    longest: float
    """The L2 norm that 99.5 in 100 of them do not exceed."""

    def typical(self, vectors: Tensor) -> Tensor:
        """Return the cosine of each of ``[rows, d_model]`` vectors with the mean."""
        import torch

        mean = torch.tensor(self.mean, dtype=torch.float64, device="cpu")
        near = torch.nn.functional.cosine_similarity(vectors.double().cpu(), mean[None], dim=-1)
        return near.float()


@dataclass(frozen=True)
class Calibration:
    """Measurements of how often a checkpoint's explanations are right."""

    population: str
    """The vectors that it was measured on, and is valid for."""
    n: int
    """Their number."""
    statements: tuple[Statement, ...] = ()
    """The kinds of statements; the first is the whole explanation."""
    strong: float = STRONG
    """The lowest margin of a strong reconstruction."""
    partial: float = PARTIAL
    """The lowest margin of a partial one."""
    noisy_positions: int | None = None
    """Explanations of positions below this are worse than later ones; ``None`` if not measured."""
    residuals: Residuals | None = None
    """Statistics of the residuals; ``None`` if not measured."""
    sidecar_hash: str | None = None
    """SHA-256 of the sidecar of the checkpoint that was measured, in hex."""
    notes: Mapping[str, Any] = field(default_factory=dict[str, Any], compare=False)
    """How it was measured."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"version": VERSION, **asdict(self)}

    def __repr__(self) -> str:
        count = len(self.statements)
        plural = "" if count == 1 else "s"
        return f"<Calibration of {count} statement{plural} on {self.n:,} vectors>"

    def __str__(self) -> str:
        lines = [
            f"calibration, measured on {self.n:,} vectors: {self.population}",
            f"  strong from a margin of {self.strong:z.2f}, partial from {self.partial:z.2f}",
        ]
        if self.noisy_positions:
            lines.append(f"  the first {self.noisy_positions} positions are noisy")
        for each in self.statements:
            rate = "" if each.rate is None else f", right {each.rate:z.2f}"
            error = "" if each.error is None else f", calibration error {each.error:z.3f}"
            lines.append(f"  statement {each.name!r}{rate}{error}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"

    @staticmethod
    def from_dict(given: Any, file: str = "calibration") -> Calibration:
        """Read what `to_dict` returns, checking every field, as it may come from a file.

        Raises:
            CheckpointError: A field is missing or is not what it has to be.
        """

        def check(valid: bool, name: str, value: object, expected: str) -> None:
            if not valid:
                raise CheckpointError(f"{file}: {name} is {shown(value)}, expected {expected}.")

        check(isinstance(given, dict), "it", given, "an object")
        check(given.get("version") == VERSION, "version", given.get("version"), str(VERSION))
        check(_is_text(given.get("population")), "population", given.get("population"), "a text")
        check(is_int(given.get("n"), 1), "n", given.get("n"), "a number of vectors")
        for name in ("strong", "partial"):
            check(_is_number(given.get(name)), name, given.get(name), "a number")
        early = given.get("noisy_positions")
        check(early is None or is_int(early, 0), "noisy_positions", early, "a position")
        statements: list[Statement] = []
        listed = given.get("statements")
        check(isinstance(listed, list | tuple), "statements", listed, "a list")
        for each in listed:
            check(isinstance(each, dict) and _is_text(each.get("name")), "a statement", each,
                  "an object with a name")  # fmt: skip
            check(each["name"] not in [other.name for other in statements], "a statement's name",
                  each["name"], "another name for each")  # fmt: skip
            part: Any = each.get("part")
            weights: Any = each.get("weights")
            ends: Sequence[Any] = part if isinstance(part, list | tuple) else ()
            check(
                part is None or (len(ends) > 0 and all(map(_is_text, ends)) and all(ends[1:])),
                "part", part, "null, or the texts that it lies between",
            )  # fmt: skip
            for name in ("rate", "error"):
                share = each.get(name)
                check(share is None or (_is_number(share) and 0 <= share <= 1), name, share,
                      "null, or a share from 0 to 1")  # fmt: skip
            check(
                isinstance(weights, dict)
                and set(weights) <= {"intercept", *FEATURES}
                and all(map(_is_number, weights.values())),
                "weights", weights, f"numbers for intercept, {', '.join(FEATURES)}",
            )  # fmt: skip
            all_of = each.get("all_of") or []
            check(
                isinstance(all_of, list) and all(isinstance(name, str) for name in all_of),
                "all_of", all_of, "a list of statements",
            )  # fmt: skip
            statements.append(
                Statement(
                    each["name"],
                    None if part is None else tuple(ends),
                    weights,
                    each.get("rate"),
                    each.get("error"),
                    tuple(all_of),
                )
            )
        look = given.get("residuals")
        if look is not None:
            names = ("least", "shortest", "longest")
            check(
                isinstance(look, dict)
                and all(_is_number(look.get(name)) for name in names)
                and isinstance(look.get("mean"), list | tuple)
                and all(map(_is_number, look["mean"])),
                "residuals", look, f"mean, a list of numbers, and {', '.join(names)}",
            )  # fmt: skip
            look = Residuals(tuple(look["mean"]), *(look[name] for name in names))
        digest, notes = given.get("sidecar_hash"), given.get("notes")
        check(digest is None or _is_text(digest), "sidecar_hash", digest, "null, or a text")
        check(notes is None or isinstance(notes, dict), "notes", notes, "null, or an object")
        return Calibration(
            given["population"], given["n"], tuple(statements), given["strong"], given["partial"],
            early, look, digest, notes or {},
        )  # fmt: skip


def _is_text(value: object) -> bool:
    return isinstance(value, str) and is_unicode(value)


def _is_number(value: object) -> bool:
    """Return whether a value can be calculated with; no measurement gives a larger one."""
    return is_real(value) and abs(value) <= _LARGEST
