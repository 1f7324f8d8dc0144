"""Check the options of one ``explain()`` call and record its vectors."""

from __future__ import annotations

import math
import numbers
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from torch import Tensor

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.origin import Claims, Kind, Origin
from ..core.sampling import Sampling
from ..errors import InjectionError, VerbalizationError, shown
from .arguments import check_sampling, count_samples
from .records import Capture, HandleQueue, Labeller

if TYPE_CHECKING:
    from .asked import Asked


class CaptureOptions(TypedDict, total=False):
    """The options of ``explain()``."""

    tokens: Any
    """The token each vector was read at (strings or ids)."""
    positions: Any
    """The position of each vector."""
    samples: int
    """Texts per vector."""
    sampling: Sampling | None
    """How tokens are chosen; the NLA's default unless given."""
    origin: Origin | None
    """What the vectors are, where the caller says so."""
    claims: Claims
    """Whether vectors of another origin are refused."""
    layer: int | None
    """The block that the vectors were read at, where the caller says so."""
    kind: Kind | None
    """What the vectors are, where their type says so."""
    lengths: tuple[int, ...] | None
    """The number of vectors of each prompt, where they are unequal."""
    padding: frozenset[int]
    """The vectors that were read at padding."""
    asked: Asked | None
    """The questions about them, of an ``ask()`` call."""


def captured(
    flat: Tensor | None,
    shape: tuple[int, ...],
    queue: HandleQueue,
    labeller: Labeller | None,
    default: Sampling,
    tokenizer: Any,
    *,
    tokens: Any = None,
    positions: Any = None,
    samples: int = 1,
    sampling: Sampling | None = None,
    origin: Origin | None = None,
    claims: Claims = "check",
    layer: int | None = None,
    kind: Kind | None = None,
    checkpoint: Checkpoint | None = None,
    lengths: tuple[int, ...] | None = None,
    padding: frozenset[int] = frozenset(),
    asked: Asked | None = None,
) -> Capture:
    """Check the options of one ``explain()`` call and record its vectors.

    Args:
        flat: The vectors, ``[rows, d_model]``; ``None`` under fake tensors.
        shape: The handle's shape.
        queue: Verbalizes the handle.
        labeller: Measures its trust labels; ``None`` without a reconstructor.
        default: The NLA's sampling.
        tokenizer: Decodes `tokens` that are ids.
        tokens: As for `CaptureOptions`.
        positions: As for `CaptureOptions`.
        samples: As for `CaptureOptions`.
        sampling: As for `CaptureOptions`.
        origin: As for `CaptureOptions`.
        claims: As for `CaptureOptions`.
        layer: As for `CaptureOptions`.
        kind: As for `CaptureOptions`.
        checkpoint: The verbalizer's, with which `origin` is compared.
        lengths: As for `CaptureOptions`.
        padding: As for `CaptureOptions`.
        asked: As for `CaptureOptions`.

    Raises:
        VerbalizationError: `samples`, `tokens` or `positions` do not fit.
        InjectionError: `origin` is another one than the verbalizer reads.
        CheckpointError: `origin` and `layer` contradict each other.
    """
    expected = Origin() if checkpoint is None else Origin.of(checkpoint)
    if not isinstance(origin, Origin | None):
        raise InjectionError(f"origin={shown(origin)}: expected Origin(model=..., layer=..., ...).")
    said = Origin(layer=layer).joined(origin or Origin())
    said = said.completed(Origin(kind=kind))
    ignored = said.check(
        expected, "This tensor", claims=claims, any_kind=True, error=InjectionError
    )
    chosen = check_sampling(sampling) or default
    samples = count_samples(samples, chosen)
    if samples > 1 and asked is not None and asked.choices:
        raise VerbalizationError(
            f"samples={samples} with choices: nothing is sampled, the probabilities are computed. "
            "Leave samples out."
        )
    words = provenance(tokens, shape, "tokens")
    if words is not None:
        words = [_word(each, tokenizer) for each in words]
    places = provenance(positions, shape, "positions")
    if places is not None:
        places = [_number(each) for each in places]
    return Capture(
        queue,
        flat,
        math.prod(shape),
        samples,
        chosen,
        tokens=words,
        positions=places,
        width=shape[-1] if shape else 1,
        lengths=None if lengths is None else tuple(lengths),
        padding=padding,
        usual_norm=_usual_norm(checkpoint, said),
        calibration=None if checkpoint is None else checkpoint.calibration,
        origin=said.completed(expected),
        ignored=tuple(ignored),
        labeller=labeller,
        asked=asked,
    )


def _usual_norm(checkpoint: Checkpoint | None, said: Origin) -> float | None:
    """Return the norm that vectors of the verbalizer's layer have, for raw residuals."""
    if checkpoint is None or checkpoint.baseline is None or said.kind not in (None, "residual"):
        return None
    return checkpoint.baseline.norm


def _word(value: Any, tokenizer: Any) -> str:
    """Return a token as text.

    Raises:
        VerbalizationError: It is neither a text nor a token id.
    """
    if isinstance(value, str):
        return value
    ids = len(tokenizer)
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or not 0 <= int(value) < ids:
        raise VerbalizationError(
            f"tokens: {value!r} is neither a text nor a token id, 0 to {ids - 1}. Pass the tokens "
            "that the vectors were read at: model.tokenizer.tokenize(text), or their ids."
        )
    return tokenizer.decode([int(value)])


def _number(value: Any) -> int:
    """Return a position.

    Raises:
        VerbalizationError: It is not a whole number.
    """
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not float(value).is_integer():
        raise VerbalizationError(
            f"positions: {value!r} is not a position. Pass whole numbers, counted from 0 at the "
            "prompt's first token (the last of n tokens is n - 1)."
        )
    return int(float(value))


def provenance(values: Any, shape: tuple[int, ...], name: str) -> list[Any] | None:
    """Return `tokens` or `positions` as one flat list, checked against the handle's shape.

    Raises:
        VerbalizationError: They have another shape.
    """
    if values is None:
        return None
    if isinstance(values, Tensor):
        try:
            values = values.detach().cpu().numpy()
        except (TypeError, NotImplementedError) as error:  # Sparse, or on the meta device.
            raise VerbalizationError(
                f"{name}={shown(values)} has no values that can be read: {error}"
            ) from error
    elif isinstance(values, range):
        values = list(values)
    try:
        array = np.array(values, dtype=object)
    except ValueError:  # Arrays of different shapes.
        array = np.empty(len(values), dtype=object)
    if array.shape != shape:
        raise VerbalizationError(
            f"{name} have shape {array.shape}, the vectors (without d_model) have {shape}. "
            f"Pass {name} of that shape, one per vector."
        )
    return list(array.flat)
