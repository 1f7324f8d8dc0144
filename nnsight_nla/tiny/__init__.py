"""The embedded pair: a small target, its verbalizer and its reconstructor, really trained.

An NLA is a pair of fine-tuned language models around a target: the verbalizer (AV) turns a
residual into text, the reconstructor (AR) turns text back into a residual. These three are small
enough to ship (8 MB) and live in a *world* so small that the truth is known at every token, so
whether an explanation is right is a measurement and not an opinion::

    from nnsight_nla import tiny

    model, nla = tiny.load()
    with model.trace("People in Paris speak"):
        thought = nla.explain(nla.layer(model).output[0, -1])
    print(thought.text)     # About Paris, the capital of France; neutral tone. ...

Read in this order: `facts` (what is true), `documents` (texts, with what is known at every word),
`explanations` (what a perfect verbalizer says), `tokenizer`, `target` (the model that is
explained), `examples` (its residuals beside the truth), `build` (how the pair is trained from
them), `evaluate` (what it is worth) and what it measures: `steering`, `made_up`, `reliability`,
`interventions`.

Two things to know before showing it. The state at block K was **put there on purpose**, by an
auxiliary loss of the target's training (see `target`); that a verbalizer can read it is what is
measured. And outside its world the pair **confabulates confidently**: about a text on physics it
will name a city::

    python -m nnsight_nla.tiny.evaluate     measure the shipped pair
    python -m nnsight_nla.tiny.build        remake it from nothing but this code
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnsight import TransformersModel

    from ..nla import NLA

__all__ = ["load", "paths"]

_WEIGHTS = Path(__file__).parent / "weights"


def paths(weights: str | Path = _WEIGHTS) -> dict[str, Path]:
    """The folders of the target, the verbalizer and the reconstructor.

    Args:
        weights: Where the three lie; the shipped ones unless you built your own.
    """
    return {name: Path(weights) / name for name in ("target", "av", "ar")}


def load(weights: str | Path = _WEIGHTS) -> tuple[TransformersModel, NLA]:
    """The target and its NLA, on the CPU, in float32.

    Args:
        weights: Where the three models lie; the shipped ones unless you built your own.

    Returns:
        An nnsight model, weights loaded, and the NLA, which loads its own at the first text.
    """
    import torch
    from nnsight import TransformersModel

    from ..nla import NLA

    where = paths(weights)
    model = TransformersModel(
        str(where["target"]), task="text-generation", dispatch=True, dtype=torch.float32
    )
    return model, NLA(where["av"], ar=where["ar"], dtype=torch.float32)
