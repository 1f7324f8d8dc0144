"""The tiny pair: a small target, its verbalizer and its reconstructor, trained and shipped.

The three models are small enough to ship (8 MB). The texts they were trained on come from a made-up
*world* whose facts are known, so it can be measured whether an explanation is right::

    from nnsight_nla import tiny

    model, nla = tiny.load()
    with model.trace("People in Paris speak"):
        thought = nla.explain(nla.layer(model).output[0, -1])
    print(thought.text)     # About Paris, the capital of France; neutral tone. ...

Read the world in this order: `facts` (what is true), `sentences` (how it is stated), `documents`
(texts, with what is known after each word), `explanations` (what a perfect verbalizer says), and
`examples` (residuals of the target, each with its true explanation). `demo` uses all of these.

Two caveats. The state at block K was **put there on purpose**, by an auxiliary loss in the target's
training; the measurements show only that a verbalizer can read it. And outside its world the pair
**confabulates confidently**: for a text about physics it names a city.

``tutorials/recipes/tiny`` in the repository shows how the pair was trained and measured. Run it
from the root of a clone::

    python -m tutorials.recipes.tiny.evaluate     measure the shipped pair
    python -m tutorials.recipes.tiny.build        train it again from scratch
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnsight.modeling.transformers import TransformersModel

    from ..nla import NLA

__all__ = ["figures", "load", "paths"]

_FOLDER = Path(__file__).parent
_WEIGHTS = _FOLDER / "weights"


def paths(weights: str | Path = _WEIGHTS) -> dict[str, Path]:
    """Return the folders of the target, the verbalizer, the reconstructor and the oracle.

    Args:
        weights: The folder that holds all of them, if you built your own.
    """
    return {name: Path(weights) / name for name in ("target", "av", "ar", "oracle")}


def load(weights: str | Path = _WEIGHTS) -> tuple[TransformersModel, NLA]:
    """Load the target and its NLA, on the CPU, in float32.

    Args:
        weights: The folder that holds the three models, if you built your own.

    Returns:
        An nnsight model with its weights loaded, and the NLA, which loads its weights when a text
        is first generated.
    """
    import torch

    from ..models import loading
    from ..models import weights as checkpoint_weights
    from ..nla import NLA

    folders = paths(weights)
    model = loading.load_model(folders["target"], None, None, {"dtype": torch.float32})
    checkpoint_weights.load(model)
    return model, NLA(folders["av"], ar=folders["ar"], dtype=torch.float32)


def figures() -> dict[str, Any]:
    """Return the measured figures of the shipped pair, as nested mappings of numbers.

    The key ``truth`` has those on truth and calibration.
    """
    names = ("figures.json", "calibration.json")
    found, truth = (json.loads((_FOLDER / name).read_text("utf-8")) for name in names)
    return {**found, "truth": truth}
