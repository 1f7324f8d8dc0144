"""Experiments: an intervention, its effect on the output, and the explanations before and after.

Patching, ablation and steering are a line each in a trace, with or without this package; here they
are run over a grid of layers and positions in a few batched forwards, and each cell also says what
the model's state *was about* before and after::

    from nnsight_nla.experiments import logit_difference, patch

    sweep = patch(
        model, nla, "People in Paris speak", "People in Rome speak",
        layers="all", positions="all", metric=logit_difference(" French", " Italian"),
    )
    sweep.plot()
    sweep.differences("text, not output")

The model is nnsight's, here or on an NDIF host (``remote=True``), or a TransformerLens
`TransformerBridge` on this machine; the table is the same.

Read in this order: `metrics`, `alignment` and `sites` (what may be asked for), `cells` (what can
reach what), `host` with `envoys` and `bridge` (the two kinds of model), `edits` and `forward` (one
forward pass), `grid` (all of them), `sweep` (the table).
"""

from .ablate import ablate
from .errors import ExperimentError
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
