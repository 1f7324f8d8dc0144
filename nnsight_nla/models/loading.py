"""Getting a half of an NLA by Hub id, folder or live model: tokenizer first, weights last."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.checkpoint import DEPTH_SLOT, Checkpoint
from ..errors import CheckpointError
from . import hosts

if TYPE_CHECKING:
    from nnsight import TransformersModel


def load_tokenizer(
    source: str | Path | TransformersModel, checkpoint: Checkpoint, *, trust: bool = False
) -> Any:
    """The tokenizer of `source`, or that of its base model where it ships none.

    Args:
        source: A Hub id, a folder, or a live model.
        checkpoint: Where the base model is named.
        trust: Whether code in the repository may run; otherwise that is an error, not a question.

    Raises:
        CheckpointError: Neither has one that can be read.
    """
    if not isinstance(source, str | Path):
        tokenizer = getattr(source, "tokenizer", None)
        if tokenizer is None:
            raise CheckpointError(
                f"Expected a path, a Hub id or a TransformersModel with a tokenizer, got "
                f"{type(source).__name__}."
            )
        return tokenizer
    from transformers import AutoTokenizer

    tried: list[str] = []
    for name in dict.fromkeys(filter(None, [_place(source), checkpoint.base_model])):
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust)
        except Exception as error:  # tokenizers raises plain Exceptions on a damaged file.
            tried.append(f"{name}: {_first_line(error)}")
            continue
        # From a folder with a config.json only, transformers 5 makes an empty tokenizer.
        if set(tokenizer.get_vocab()) - set(tokenizer.get_added_vocab()):
            return tokenizer
        tried.append(f"{name}: no tokenizer files")
    raise CheckpointError(
        f"No tokenizer for {source}. Tried {'; '.join(tried)}. Put the base model's tokenizer "
        "files into the checkpoint's folder, or pass a TransformersModel(..., tokenizer=...)."
    )


def at_depth(
    source: str | Path | TransformersModel, checkpoint: Checkpoint, load: dict[str, Any]
) -> Checkpoint:
    """Fill a template's ``{depth_pct}``; a verbalizer is as deep as the target it was made from.

    Raises:
        CheckpointError: There is such a slot, and no configuration that says how deep.
    """
    if DEPTH_SLOT not in checkpoint.template:
        return checkpoint
    if not isinstance(source, str | Path):
        return checkpoint.at_depth(hosts.text_config(source).num_hidden_layers)
    from transformers import AutoConfig

    options = {name: load[name] for name in ("revision",) if name in load}
    trust = load.get("trust_remote_code", False)
    try:
        config = AutoConfig.from_pretrained(_place(source), trust_remote_code=trust, **options)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{checkpoint.where('template')} has {DEPTH_SLOT}, and the configuration of "
            f"{str(source)!r}, which says how deep it is, could not be read: "
            f"{_first_line(error)} Put the number in place of {DEPTH_SLOT}."
        ) from error
    return checkpoint.at_depth(config.get_text_config().num_hidden_layers)


def load_model(
    source: str | Path | TransformersModel,
    tokenizer: Any,
    peft: str | None,
    load: dict[str, Any],
) -> TransformersModel:
    """The nnsight model of `source`, without its weights; a live model is taken as it is.

    Raises:
        CheckpointError: Its configuration cannot be read.
    """
    if not isinstance(source, str | Path):
        hosts.text_config(source)
        if peft is not None or load:
            given = ", ".join([*(["peft"] if peft else []), *load])
            raise CheckpointError(
                f"{given} cannot be applied to a model that is already there. Load it yourself: "
                "TransformersModel(..., peft=...), or pass its path instead."
            )
        return source
    if peft is not None:
        need_peft(peft)
    from huggingface_hub.errors import StrictDataclassError
    from nnsight import TransformersModel

    try:
        # Left unsaid, transformers asks on the terminal whether to run a repository's own code.
        load = {"trust_remote_code": False, **load}
        return TransformersModel(
            _place(source), task="text-generation", tokenizer=tokenizer, peft=peft, **load
        )
    except (OSError, ValueError, StrictDataclassError) as error:
        raise CheckpointError(
            f"The configuration of {str(source)!r} could not be read: {_first_line(error)} With no "
            "network, download the repository elsewhere and pass its folder."
        ) from error


def need_peft(adapter: str | Path) -> None:
    """Check that PEFT is installed, which an adapter needs.

    Raises:
        CheckpointError: It is not.
    """
    if find_spec("peft") is None:
        raise CheckpointError(
            f"{adapter} is an adapter, which needs the package peft. Install it: "
            "pip install 'nnsight-nla[adapters]'."
        )


def _place(source: str | Path) -> str:
    """A folder's path with ``~`` written out, or the Hub id as it is."""
    folder = Path(source).expanduser()
    return str(folder if folder.exists() else source)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
