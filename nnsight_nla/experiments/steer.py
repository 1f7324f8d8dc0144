"""Steering: add a vector in several doses, compared with random directions of the same norm.

    direction = nla.direction(to="About Paris ...", away_from=thought)
    steer(model, nla, prompt, layers=[3], positions=-1, metric=..., vector=direction,
          doses=[0.5, 1, 2])

``dose * vector`` is added, in the units of the residual. Any vector that is large enough changes
something, so each dose is also applied in random directions of the same norm. What counts is the
effect beyond that of the random directions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor

from ..errors import ExperimentError, shown
from .grid import run_cells
from .plan import Options, Setup, digest, takes_options
from .records import Cell
from .sweep import Sweep

if TYPE_CHECKING:
    from nnsight.modeling.transformers import TransformersModel
    from transformer_lens.model_bridge import TransformerBridge

    from ..explanation.protocols import ExplainsAndReconstructs


@takes_options
def steer(
    model: TransformersModel | TransformerBridge,
    nla: ExplainsAndReconstructs,
    prompt: Any,
    *,
    vector: Tensor,
    doses: float | Sequence[float] = (1.0,),
    controls: int = 1,
    seed: int = 0,
    **options: Unpack[Options],
) -> Sweep:
    """Steer in one cell at a time.

    Args:
        model: The target, an nnsight model or a `TransformerBridge`.
        nla: Its NLA.
        prompt: The prompt (a string, token ids or chat messages).
        vector: The vector that is added, ``[width]``: any tensor, or what ``nla.direction``
            returns.
        doses: The factors of the vector.
        controls: How many random directions of the vector's norm get the same doses (rows of kind
            ``random 0``, ``random 1``, ...).
        seed: The seed of the random directions.
        options: See `Options`.

    Returns:
        The table; `effect` is the metric minus that of the run without intervention.

    Raises:
        ExperimentError: An argument does not fit.
        InjectionError: The model has no such site, or is not the verbalizer's target.
    """
    setup = Setup.of(steer, model, nla, prompt, options)
    given = setup.vector(vector, "vector")
    directions = {"steer": given, **_random(given, controls, seed)}
    cells = setup.cells(itertools.product(directions, _doses(doses)))

    def added(cell: Cell, _: int) -> Tensor:
        return directions[cell.kind] * (cell.dose or 0.0)

    clean = setup.untouched(setup.prompt, {at: at for at in setup.explained_by(cells)})
    settings = {"vector": digest(given), "seed": seed if controls else None}
    return run_cells(setup.plan({"clean": clean}, cells, "add", added, settings=settings))


def _random(vector: Tensor, controls: Any, seed: int) -> dict[str, Tensor]:
    """Draw directions uniformly on the sphere, of the vector's own norm."""
    if isinstance(controls, bool) or not isinstance(controls, int) or controls < 0:
        raise ExperimentError(f"controls={shown(controls)}: expected a whole number from 0.")
    generator = torch.Generator().manual_seed(seed)
    # One by one, so that a direction is the same whatever the number of them.
    drawn = [
        torch.randn(len(vector), dtype=torch.float32, device="cpu", generator=generator)
        for _ in range(controls)
    ]
    scaled = [each / each.norm() * vector.norm() for each in drawn]
    return {f"random {number}": each for number, each in enumerate(scaled)}


def _doses(doses: Any) -> list[float]:
    """Return the doses as numbers, each once."""
    try:
        listed_doses = [float(each) for each in (doses if hasattr(doses, "__iter__") else [doses])]
    except (TypeError, ValueError):
        listed_doses = []
    if not listed_doses or not all(map(math.isfinite, listed_doses)):
        raise ExperimentError(f"doses={shown(doses)}: expected a number or a list of numbers.")
    return list(dict.fromkeys(listed_doses))
