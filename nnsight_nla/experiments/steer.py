"""Steering: add a vector in several doses, beside random directions of the same length.

    direction = nla.direction(to="About Paris ...", away_from=thought)
    steer(model, nla, prompt, layers=[3], positions=-1, metric=..., vector=direction,
          doses=[0.5, 1, 2])

What is added is ``dose * vector``, in the residual's own units. A large enough vector changes
something whatever it is; so each dose is also given in random directions of the same norm, and a
steering vector is worth what it does beyond them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .alignment import Positions
from .errors import ExperimentError
from .grid import BATCH, work
from .metrics import Metric
from .reachability import Cell, ExplainAt
from .single_prompt import Setting
from .sites import SiteName
from .sweep import Sweep
from .vectors import digest, plain

if TYPE_CHECKING:
    from nnsight import TransformersModel
    from transformer_lens.model_bridge import TransformerBridge


def steer(
    model: TransformersModel | TransformerBridge,
    nla: Any,
    prompt: Any,
    *,
    layers: Any,
    positions: Positions | Literal["every"],
    metric: Metric,
    vector: Tensor,
    doses: float | Sequence[float] = (1.0,),
    controls: int = 1,
    explain_at: ExplainAt = -1,
    site: SiteName = "residual",
    heads: Any = None,
    seed: int = 0,
    batch_size: int = BATCH,
    resume: Any = None,
    remote: bool = False,
) -> Sweep:
    """Steer in one cell at a time.

    Args:
        model: The target, an nnsight model or a `TransformerBridge`.
        nla: Its NLA.
        prompt: The prompt (a string, token ids or chat messages).
        layers: A block, a list of them (counted from 0), or ``"all"``.
        positions: One, a list, ``"all"`` (a cell each), or ``"every"`` (all at once, in one cell).
        metric: See `metrics`; ``kl("clean")`` compares with the untouched run.
        vector: What is added, ``[width]``: any tensor, or what ``nla.direction`` returns.
        doses: What it is multiplied with.
        controls: How many random directions of the vector's norm get the same doses (rows of kind
            ``random 0``, ``random 1``, ...).
        explain_at: Where the residual at block K is explained: a position, ``"patched"`` (the
            cell's own), or a list of these.
        site: ``"residual"``, ``"attention"``, ``"mlp"`` or ``"head"``; see `sites`.
        heads: For ``site="head"``: which; all unless given.
        seed: Of the random directions.
        batch_size: Cells in one forward pass.
        resume: A partial `Sweep` of this same call, or where one was stored.
        remote: Run the target on the configured NDIF host.

    Returns:
        The table; `effect` is the metric minus the untouched run's.

    Raises:
        ExperimentError: Something that was asked for does not fit.
        InjectionError: The model shows no such site, or is not the verbalizer's.
    """
    setting = Setting.of(
        model,
        nla,
        prompt,
        layers=layers,
        positions=positions,
        metric=metric,
        explain_at=explain_at,
        site=site,
        heads=heads,
        remote=remote,
    )
    given = plain(vector, setting.width, "vector")
    directions = {"steer": given, **_random(given, controls, seed)}
    cells = setting.cells(itertools.product(directions, _doses(doses)))

    def added(cell: Cell, _: int) -> Tensor:
        return directions[cell.kind] * cell.dose

    settings = {"vector": digest(given), "seed": seed if controls else None}
    plan = setting.plan("steer", cells, "add", added, settings)
    return work(plan, nla, batch_size=batch_size, resume=resume)


def _random(vector: Tensor, controls: Any, seed: int) -> dict[str, Tensor]:
    """Random directions, uniform on the sphere, of the vector's own norm."""
    if isinstance(controls, bool) or not isinstance(controls, int) or controls < 0:
        raise ExperimentError(f"controls={controls!r}: expected a whole number from 0.")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(controls, len(vector), generator=generator)
    scaled = drawn / drawn.norm(dim=-1, keepdim=True) * vector.norm()
    return {f"random {number}": each for number, each in enumerate(scaled)}


def _doses(doses: Any) -> list[float]:
    """The doses as numbers, each once."""
    try:
        listed_doses = [float(each) for each in (doses if hasattr(doses, "__iter__") else [doses])]
    except (TypeError, ValueError):
        listed_doses = []
    if not listed_doses or not all(map(math.isfinite, listed_doses)):
        raise ExperimentError(f"doses={doses!r}: expected a number or a list of numbers.")
    return list(dict.fromkeys(listed_doses))
