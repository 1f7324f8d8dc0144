"""Ablation: replace a value, and measure the change in the output and in the explanation.

    ablate(model, nla, prompt, layers="all", positions=[2], metric=..., method="zero")
    ablate(..., method="mean", reference=prompts)           # the average value over prompts
    ablate(..., method="resample", reference=prompts)       # the value from a random prompt
    ablate(..., method="project", direction=vector)         # h − (h·u) u: remove one direction

The zero vector is far from anything that the model computes, unlike a mean or a resampled value. So
an effect that appears only under zero ablation says little.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Unpack, get_args

import torch
from torch import Tensor

from ..errors import ExperimentError, shown
from .grid import run_cells
from .plan import Key, Options, Setup, digest, takes_options
from .records import Cell
from .sweep import Sweep

if TYPE_CHECKING:
    from nnsight.modeling.transformers import TransformersModel
    from transformer_lens.model_bridge import TransformerBridge

    from ..explanation.protocols import ExplainsAndReconstructs
    from ..models import hosts

Method = Literal["zero", "mean", "resample", "project"]
"""The replacement of the value."""
Over = Literal["position", "tokens"]
"""The values of the reference prompts that count."""


@takes_options
def ablate(
    model: TransformersModel | TransformerBridge,
    nla: ExplainsAndReconstructs,
    prompt: Any,
    *,
    method: Method,
    reference: Sequence[Any] | None = None,
    over: Over = "position",
    direction: Tensor | None = None,
    seed: int = 0,
    **options: Unpack[Options],
) -> Sweep:
    """Ablate one cell at a time.

    Args:
        model: The target, an nnsight model or a `TransformerBridge`.
        nla: Its NLA.
        prompt: The prompt (a string, token ids or chat messages).
        method: The replacement of the value.
        reference: For ``"mean"`` and ``"resample"``: prompts.
        over: The reference values that are used at position p: ``"position"``, those at p (the
            prompts must be as long as `prompt`); ``"tokens"``, those at all tokens except a
            prompt's first, whose norm is often a hundred times that of the others.
        direction: For ``"project"``: the direction to project out, ``[width]``, of any norm above
            0.
        seed: The seed for ``"resample"``, which draws one reference for each position, the same in
            all layers.
        options: See `Options`.

    Returns:
        The table; `effect` is the metric minus that of the run without intervention.

    Raises:
        ExperimentError: An argument does not fit.
        InjectionError: The model has no such site, or is not the verbalizer's target.
    """
    _check(method, reference, over, direction)
    setup = Setup.of(ablate, model, nla, prompt, options)
    cells = setup.cells([(method, None)])
    length = len(setup.prompt.ids)
    settings: dict[str, Any] = {"method": method}
    if method == "project":
        unit = setup.vector(direction, "direction")
        unit = unit / unit.norm()
        settings["direction"] = digest(unit)
        written = {key: [unit] * length for key in setup.sites}
    elif method == "zero":
        written = {
            key: [torch.zeros(setup.width, dtype=torch.float32, device="cpu")] * length
            for key in setup.sites
        }
    else:
        known = [setup.target.model.positions(each) for each in reference or ()]
        _check_lengths(known, length, over)
        runs = [setup.untouched(each, {}, collect=True).found for each in known]
        values = {key: [run.values[key] for run in runs] for key in setup.sites}
        written = _chosen(method, values, over, length, seed)
        settings |= {
            "over": over,
            "seed": seed if method == "resample" else None,
            "reference": [list(each.ids) for each in known],
        }

    def vector(cell: Cell, position: int) -> Tensor:
        return written[cell.layer, cell.head][position]

    clean = setup.untouched(setup.prompt, {at: at for at in setup.explained_by(cells)})
    action = "project" if method == "project" else "write"
    return run_cells(setup.plan({"clean": clean}, cells, action, vector, settings=settings))


def _chosen(
    method: str, values: dict[Key, list[Tensor]], over: str, length: int, seed: int
) -> dict[Key, list[Tensor]]:
    """Return, for each site, what is written at each position."""
    first = next(iter(values.values()))
    generator = torch.Generator().manual_seed(seed)
    if over == "position":
        drawn = torch.randint(len(first), (length,), generator=generator, device="cpu").tolist()
    else:
        rows = sum(len(each) - 1 for each in first)
        drawn = torch.randint(rows, (length,), generator=generator, device="cpu").tolist()
    chosen: dict[Key, list[Tensor]] = {}
    for key, listed_values in values.items():
        if over == "position":
            stacked = torch.stack(listed_values)
            mean = stacked.float().mean(dim=0)
            picked = [stacked[which, at] for at, which in enumerate(drawn)]
        else:
            tokens = torch.cat([each[1:] for each in listed_values])
            mean = tokens.float().mean(dim=0).expand(length, -1)
            picked = [tokens[which] for which in drawn]
        chosen[key] = list(mean) if method == "mean" else picked
    return chosen


def _check(method: Any, reference: Any, over: Any, direction: Any) -> None:
    if method not in get_args(Method):
        raise ExperimentError(
            f"method={shown(method)}: expected one of {', '.join(map(repr, get_args(Method)))}."
        )
    if over not in get_args(Over):
        raise ExperimentError(f"over={shown(over)}: expected 'position' or 'tokens'.")
    needs = method in ("mean", "resample")
    if needs and (isinstance(reference, str) or not reference):
        raise ExperimentError(
            f"method={shown(method)} needs prompts to take values from: reference=[prompt, ...]."
        )
    if reference is not None and not needs:
        raise ExperimentError(f"reference= goes with 'mean' and 'resample', not {method!r}.")
    if (direction is not None) != (method == "project"):
        raise ExperimentError(
            f"direction= goes with method='project' only; got method={shown(method)}, "
            f"direction={'None' if direction is None else 'given'}."
        )


def _check_lengths(known: Sequence[hosts.Positions], length: int, over: str) -> None:
    lengths = sorted({len(each.ids) for each in known})
    if over == "position" and lengths != [length]:
        raise ExperimentError(
            f"The prompt has {length} tokens and the reference prompts {lengths}, so their "
            'positions do not correspond. Give prompts of one length, or over="tokens".'
        )
    if over == "tokens" and lengths[-1] < 2:
        raise ExperimentError('over="tokens" leaves out first tokens, and there are no others.')
