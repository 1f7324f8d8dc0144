"""Compute attention as the configuration says, soft cap included.

Gemma 2 and its relatives cap their attention scores (``attn_logit_softcapping``). PyTorch's
``scaled_dot_product_attention``, the default of transformers, has no such cap. Before 5.21,
transformers leaves the cap out without a word; later releases choose ``"eager"`` themselves. So
the models that this package loads get ``"eager"``, and models that the caller loaded, a warning::

    options = with_cap(config, {"dtype": "bfloat16"})      # adds attn_implementation="eager"
    check_cap(model)                                       # warns, once for each model
"""

from __future__ import annotations

import warnings
import weakref
from typing import Any

from .. import _compat
from ..errors import NLAWarning
from . import hosts

_WITHOUT_CAP = ("sdpa", "paged|sdpa")
_WARNED: weakref.WeakSet[Any] = weakref.WeakSet()


def with_cap(config: Any, load: dict[str, Any]) -> dict[str, Any]:
    """Return options for loading a model, so that its attention has the cap of its configuration.

    Args:
        config: The model's configuration.
        load: The options; an implementation of attention among them stays as it is.
    """
    chosen = "attn_implementation" in load or _compat.attention_of(config) is not None
    return load if chosen or _cap(config) is None else {**load, "attn_implementation": "eager"}


def check_cap(model: Any, *, stacklevel: int = 2) -> None:
    """Warn if the attention of a model leaves out the cap of its configuration.

    Args:
        model: The nnsight model or the PyTorch module.
        stacklevel: For the warning, as seen from the caller.

    Warns:
        NLAWarning: It does; once for each model.
    """
    from .adapter import weights_of  # It imports this module.

    model = weights_of(model)
    config: Any = getattr(hosts.module_of(model), "config", None)
    if not hasattr(config, "get_text_config") or model in _WARNED:
        return
    cap, found = _cap(config), _compat.attention_of(config.get_text_config())
    if cap is None or found not in _WITHOUT_CAP:
        return
    _WARNED.add(model)
    name = hosts.describe(model)
    warnings.warn(
        f"{name} runs with attn_implementation={found!r}, which leaves out the soft cap of its "
        f"attention scores (attn_logit_softcapping={cap} in its configuration): its residuals and "
        "texts are not those of the model with the cap. To run it with the cap, load it with "
        "attn_implementation='eager'. Without the cap, use it only for an NLA that was trained "
        "without the cap.",
        NLAWarning,
        stacklevel=stacklevel + 1,
    )


def _cap(config: Any) -> float | None:
    return getattr(config.get_text_config(), "attn_logit_softcapping", None)
