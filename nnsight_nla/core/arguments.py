"""What a caller may pass to an `NLA`, and the words in which anything else is refused."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from ..errors import InjectionError, ReconstructionError, VerbalizationError
from .sampling import Sampling


def check_vectors(vectors: object, d_model: int) -> None:
    """Refuse what is no floating-point tensor of vectors with values; costs no synchronisation.

    Raises:
        InjectionError: `vectors` is of another type, dtype or width, or on the meta device.
    """
    expected = f"Expected a floating-point tensor of shape [..., {d_model}]"
    if not isinstance(vectors, Tensor):
        raise InjectionError(
            f"{expected}, got {type(vectors).__name__} {str(vectors)[:40]!r}. In a trace: "
            "nla.explain(nla.layer(model).output[:, -1])."
        )
    if not vectors.is_floating_point():
        raise InjectionError(
            f"{expected}, got {vectors.dtype}. Pass residuals, not token ids: "
            "nla.explain(nla.layer(model).output[:, -1])."
        )
    if vectors.ndim == 0 or vectors.shape[-1] != d_model:
        raise InjectionError(
            f"{expected}, got {list(vectors.shape)}. Read the residual of the model that the "
            "verbalizer was trained on: nla.layer(model).output."
        )
    if vectors.device.type == "meta" and not isinstance(vectors, FakeTensor):
        raise InjectionError(
            f"{expected}, got one on the meta device, which has no values. Load the weights first."
        )


def check_sampling(given: object) -> Sampling | None:
    """Check a `Sampling`, or the lack of one.

    Raises:
        VerbalizationError: It is something else.
    """
    if given is None or isinstance(given, Sampling):
        return given
    raise VerbalizationError(
        f"sampling={given!r}: expected Sampling(...), for example Sampling(temperature=1.0)."
    )


def count_samples(samples: object, sampling: Sampling) -> int:
    """Check how many texts a vector is to have.

    Raises:
        VerbalizationError: It is no number from 1, or above 1 where every text would be the same.
    """
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise VerbalizationError(f"samples={samples!r}: expected a whole number from 1.")
    if samples > 1 and sampling.greedy:
        raise VerbalizationError(
            f"samples={samples} at temperature 0 would give the same text {samples} times. Add "
            "sampling=Sampling(temperature=1.0)."
        )
    return samples


def batch_rows(given: object) -> int | None:
    """The number of vectors in a batch; ``None`` where it is to be found.

    Raises:
        VerbalizationError: It is neither ``"auto"`` nor a whole number from 1.
    """
    if given == "auto":
        return None
    if isinstance(given, int) and not isinstance(given, bool) and given >= 1:
        return given
    raise VerbalizationError(f"batch_size={given!r}: expected 'auto' or a whole number from 1.")


def flat_texts(text: Any) -> tuple[list[str], tuple[int, ...]]:
    """A string or nested lists of them as one flat list, and the shape they had.

    Raises:
        ReconstructionError: It is something else, or ragged.
    """
    if isinstance(text, str):
        return [text], ()
    if not isinstance(text, list | tuple):
        raise ReconstructionError(
            f"Expected a string or nested lists of them, got {type(text).__name__}. For a handle, "
            "pass its text: nla.reconstruct(thought.text)."
        )
    parts = [flat_texts(each) for each in text]
    shapes = {shape for _, shape in parts}
    if len(shapes) > 1:
        raise ReconstructionError(f"The nested lists of texts are ragged: {sorted(shapes)}.")
    inner = shapes.pop() if shapes else ()
    return [one for flat, _ in parts for one in flat], (len(parts), *inner)
