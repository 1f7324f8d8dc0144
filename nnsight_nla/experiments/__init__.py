"""Experiments: an intervention, its effect on the output, and the explanations before and after.

In a trace, patching, ablation and steering take one line each. The functions here run them over a
grid of layers and positions in a few batched forward passes, and add the explanations of the
residual before and after to each cell::

    from nnsight_nla.experiments import logit_difference, patch

    sweep = patch(
        model, nla, "People in Paris speak", "People in Rome speak",
        layers="all", positions="all", metric=logit_difference(" French", " Italian"),
    )
    sweep.plot()
    sweep.differences("text, not output")

The model is nnsight's, here or on an NDIF host (``remote=True``), or a TransformerLens
`TransformerBridge` on this machine; the table is the same.

Read in this order: `records` (cells and their reach), `metrics` and `positions` (the arguments),
`model_interface` (the two kinds of model), `edits` and `forward` (one forward pass), `sweep`
(the table), `plan` (the options) and `grid` (all forward passes).
"""

from ..errors import ExperimentError
from .ablate import ablate
from .metrics import kl, logit_difference, probability
from .patch import patch
from .steer import steer
from .sweep import Sweep

__all__ = [
    "ExperimentError",
    "Sweep",
    "ablate",
    "kl",
    "logit_difference",
    "patch",
    "probability",
    "steer",
]
