"""What --position names: tokens of a text, and their residuals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import VerbalizationError

if TYPE_CHECKING:
    from nnsight.modeling.transformers import TransformersModel
    from torch import Tensor

    from ..nla import NLA


def residuals(
    model: TransformersModel, nla: NLA, text: str, layer: int, tokens: slice, *, remote: bool
) -> Tensor:
    """Return the residuals of a text's tokens, ``[tokens, d_model]``, on the CPU.

    A remote host gets the source of the block, so the block uses plain values only.

    Args:
        model: The target.
        nla: Says where the residuals are.
        text: What the target reads.
        layer: The block whose output is returned.
        tokens: The positions of the text's own tokens.
        remote: Whether the target runs on the configured NDIF host.
    """
    import torch

    from ..models import hosts, weights
    from ..remote.ndif import send

    block: Any = nla.layer(model, layer, claims="ignore")

    def traced() -> Tensor:
        with torch.no_grad(), model.trace(text, remote=remote) as tracer:
            residual = block.output[0, tokens].float().cpu().save()
            tracer.stop()
        return residual

    if remote:
        return send(traced, f"The request to read the text with {hosts.describe(model)}")
    weights.load(model)
    return traced()


def positions(position: str, length: int) -> list[int]:
    """Return the requested positions, counted from the left.

    Args:
        position: The value of --position.
        length: The number of the text's tokens.

    Raises:
        VerbalizationError: It is not a list of positions, or one is outside of the text.
    """
    if position == "all":
        return list(range(length))
    given = indices(position)
    for index in given:
        if not -length <= index < length:
            raise VerbalizationError(
                f"--position {index}: the text has {length} tokens, 0 to {length - 1}."
            )
    return [index % length for index in given]


def indices(position: str) -> list[int]:
    """Return the numbers that --position lists.

    Raises:
        VerbalizationError: It is not a list of numbers.
    """
    try:
        return [int(part) for part in position.split(",")]
    except ValueError as error:
        raise VerbalizationError(
            f"--position {position!r}: expected an index, several (0,3,-1), or 'all'."
        ) from error
