"""Check what a caller passes to the methods of an `NLA`.

No check synchronises with the device. Whether the rows of a tensor can be injected (zero, NaN,
infinite) is checked later, by `core.injection.unusable`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from .. import _compat
from ..core.numeric import is_int, is_unicode
from ..core.sampling import Sampling
from ..errors import InjectionError, ReconstructionError, VerbalizationError, shown


def check_vectors(vectors: object, d_model: int) -> None:
    """Check that `vectors` is a floating-point tensor of width `d_model` that holds values.

    Raises:
        InjectionError: `vectors` has another type, dtype or width, or is on the meta device.
    """
    expected = f"Expected a floating-point tensor of shape [..., {d_model}]"
    if not isinstance(vectors, Tensor):
        raise InjectionError(f"{expected}, got {_what(vectors)}. {_instead(vectors)}")
    if not vectors.is_floating_point():
        raise InjectionError(
            f"{expected}, got {vectors.dtype}. Pass residuals, not token ids: "
            "nla.explain(nla.layer(model).output[:, -1])."
        )
    if vectors.ndim == 2 and vectors.shape[0] == d_model != vectors.shape[1]:
        raise InjectionError(
            f"{expected}, got {list(vectors.shape)}, a vector in each column. Did you mean .T? The "
            "vectors are the rows: pass matrix.T."
        )
    if vectors.ndim == 0 or vectors.shape[-1] != d_model:
        raise InjectionError(
            f"{expected}, got {list(vectors.shape)}. Read the residual of the model that the "
            "verbalizer was trained on: nla.layer(model).output."
        )
    if vectors.layout is not torch.strided:
        raise InjectionError(f"{expected}, got one of layout {vectors.layout}: call .to_dense().")
    if vectors.device.type == "meta" and not _compat.is_fake(vectors):
        raise InjectionError(
            f"{expected}, got a tensor on the meta device, which has no values. Load the weights "
            "first."
        )


def _what(value: object) -> str:
    """Describe a value that is not a tensor: its type, and its shape or its beginning."""
    kind = type(value).__name__
    if isinstance(value, list | tuple):
        inside = sorted({type(each).__name__ for each in cast("Sequence[object]", value)})
        return f"a {kind} of {len(value)} {' and '.join(inside) or 'elements'}"
    shape = getattr(value, "shape", None)
    return f"{kind} {list(shape)}" if isinstance(shape, tuple) else f"{kind} {shown(value)}"


def _instead(value: object) -> str:
    """Say how to convert vectors that are not a tensor."""
    if isinstance(value, np.ndarray):
        return "Convert it: torch.from_numpy(vectors).float()."
    if isinstance(value, list | tuple) and value:
        if all(isinstance(each, Tensor) for each in cast("Sequence[object]", value)):
            return "Put them in one tensor: torch.stack(vectors)."
        if all(isinstance(each, np.ndarray) for each in cast("Sequence[object]", value)):
            return "Put them in one tensor: torch.from_numpy(np.stack(vectors)).float()."
        return "Convert it: torch.tensor(vectors)."
    if hasattr(value, "to_numpy"):
        return "Convert it: torch.tensor(np.stack(vectors.to_numpy())).float()."
    return "In a trace: nla.explain(nla.layer(model).output[:, -1])."


def check_handles(handles: object) -> list[Any]:
    """Check that `handles` is what ``nla.explain()`` returns, or several of these.

    Raises:
        VerbalizationError: It is something else.
    """
    one = hasattr(handles, "capture")
    several = isinstance(handles, Iterable) and not isinstance(
        handles, str | bytes | Mapping | Tensor
    )
    found: list[Any] = [handles] if one else list(cast("Any", handles)) if several else []
    bad = [each for each in found if not hasattr(each, "capture")]
    if bad or not (one or several):
        wrong = bad[0] if bad else handles
        raise VerbalizationError(
            f"Expected the handle that nla.explain() returns, or several, got {shown(wrong)}. For "
            "all that are pending: nla.resolve()."
        )
    return found


def check_sampling(given: object) -> Sampling | None:
    """Check that `given` is a `Sampling` or ``None``, and return it.

    Raises:
        VerbalizationError: It is neither.
    """
    if given is None or isinstance(given, Sampling):
        return given
    raise VerbalizationError(
        f"sampling={shown(given)}: expected Sampling(...), for example Sampling(temperature=1.0)."
    )


def count_samples(samples: object, sampling: Sampling) -> int:
    """Check the number of texts per vector, and return it.

    Raises:
        VerbalizationError: It is not a whole number from 1, or above 1 with greedy decoding.
    """
    if not is_int(samples, 1):
        raise VerbalizationError(f"samples={shown(samples)}: expected a whole number from 1.")
    if samples > 1 and sampling.greedy:
        raise VerbalizationError(
            f"samples={samples} at temperature 0 would give the same text {samples} times. Add "
            "sampling=Sampling(temperature=1.0)."
        )
    return samples


def batch_rows(given: object) -> int | None:
    """Check ``batch_size=`` and return it; ``None`` for ``"auto"``.

    Raises:
        VerbalizationError: It is neither ``"auto"`` nor a whole number from 1.
    """
    if isinstance(given, str) and given == "auto":
        return None
    if is_int(given, 1):
        return given
    raise VerbalizationError(
        f"batch_size={shown(given)}: expected 'auto' or a whole number from 1."
    )


def flat_texts(text: object) -> tuple[list[str], tuple[int, ...]]:
    """Return a string, or nested lists of strings, as one flat list, and its shape.

    Raises:
        ReconstructionError: It is something else, or the lists are ragged.
    """
    if isinstance(text, str):
        if not is_unicode(text):
            raise ReconstructionError(
                f"{shown(text)} has a lone surrogate, which no tokenizer can encode. Repair it: "
                "text.encode('utf-8', 'replace').decode()."
            )
        return [text], ()
    if not isinstance(text, list | tuple):
        raise ReconstructionError(
            f"Expected a string or nested lists of them, got {type(text).__name__}. For a handle, "
            "pass its text: nla.reconstruct(thought.text)."
        )
    parts = [flat_texts(each) for each in cast("Sequence[object]", text)]
    shapes = {shape for _, shape in parts}
    if len(shapes) > 1:
        raise ReconstructionError(f"The nested lists of texts are ragged: {sorted(shapes)}.")
    inner = shapes.pop() if shapes else ()
    return [one for flat, _ in parts for one in flat], (len(parts), *inner)
