"""Load the tokenizer, configuration and nnsight model of a Hub id, folder or live model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from .. import _compat
from ..checkpoint import sidecar
from ..checkpoint.checkpoint import DEPTH_SLOT, LAYER_SLOT, Checkpoint
from ..core.numeric import is_int
from ..errors import CheckpointError, shown
from . import hosts
from .attention import check_cap, with_cap

if TYPE_CHECKING:
    from nnsight import TransformersModel
    from transformers import GenerationConfig


def load_tokenizer(
    source: str | Path | TransformersModel,
    checkpoint: Checkpoint,
    *,
    base: str | Path | None = None,
    trust: bool = False,
) -> Any:
    """Return the tokenizer of `source`, or of its base model if it ships without one.

    Args:
        source: A Hub id, a folder, or a live model.
        checkpoint: Names the base model; if `source` is an adapter, that names it first.
        base: The base model, where the caller passed one.
        trust: Whether code in the repository may run; if not, needing it is an error.

    Raises:
        CheckpointError: Neither has a readable tokenizer.
    """
    if not isinstance(source, str | Path):
        tokenizer = getattr(source, "tokenizer", None)
        if tokenizer is None:
            raise CheckpointError(_not_a_model(source))
        return tokenizer
    from transformers import AutoTokenizer

    tried: list[str] = []
    for name in _tokenizer_sources(source, base, checkpoint):
        try:
            tokenizer = from_pretrained(AutoTokenizer, name, trust_remote_code=trust)
        except Exception as error:  # tokenizers raises plain Exceptions on a damaged file.
            tried.append(f"{name}: {_first_line(error)}")
            continue
        # For a folder that has only a config.json, transformers 5 returns an empty tokenizer.
        if set(tokenizer.get_vocab()) - set(tokenizer.get_added_vocab()):
            return tokenizer
        tried.append(f"{name}: no tokenizer files")
    raise CheckpointError(
        f"No tokenizer for {source}. Tried {'; '.join(tried)}. Put the base model's tokenizer "
        "files into the checkpoint's folder, or pass a TransformersModel(..., tokenizer=...)."
    )


def check_model(source: object) -> None:
    """Check that `source` names a model or is one that nnsight has wrapped.

    Raises:
        CheckpointError: It is something else; the message says how to wrap a transformers model.
    """
    from nnsight import TransformersModel

    if not isinstance(source, str | Path | TransformersModel):
        raise CheckpointError(_not_a_model(source))


def _not_a_model(source: object) -> str:
    how = (
        " Wrap it: nnsight.TransformersModel(model, tokenizer=tokenizer, task='text-generation')."
        if isinstance(source, torch.nn.Module)
        else ""
    )
    return (
        "Expected a path, a Hub id or a TransformersModel with a tokenizer, got "
        f"{type(source).__name__}.{how}"
    )


def _tokenizer_sources(
    source: str | Path, base: str | Path | None, checkpoint: Checkpoint
) -> Iterator[str]:
    """Yield where a tokenizer may be, each once; a later one is looked up if it is needed."""
    seen: set[str | None] = {None}
    for find in (
        lambda: expanded(source),
        lambda: base and expanded(base),
        lambda: adapter_base(source),
        lambda: checkpoint.base_model and expanded(checkpoint.base_model),
    ):
        name = find()
        if name not in seen:
            seen.add(name)
            yield str(name)


def at_depth(
    source: str | Path | TransformersModel, checkpoint: Checkpoint, load: dict[str, Any]
) -> Checkpoint:
    """Fill in a template's layer and depth; a verbalizer has as many blocks as its target.

    Raises:
        CheckpointError: The template has such a slot, and the configuration cannot be read.
    """
    if not checkpoint.tells_layer:
        return checkpoint
    if not isinstance(source, str | Path):
        return checkpoint.at_depth(hosts.text_config(source).num_hidden_layers)
    try:
        config = load_config(source, load)
    except (OSError, ValueError) as error:
        slot = DEPTH_SLOT if DEPTH_SLOT in checkpoint.template else LAYER_SLOT
        raise CheckpointError(
            f"{checkpoint.where('template')} has {slot}, which needs the number of blocks, "
            f"and the configuration of {str(source)!r} could not be read: {_first_line(error)} "
            f"Replace {slot} with the number."
        ) from error
    return checkpoint.at_depth(config.get_text_config().num_hidden_layers)


def config_of(source: str | Path, load: dict[str, Any]) -> Any:
    """Return the configuration among the options, or else that of the folder or the Hub id."""
    return load.get("config") or load_config(source, load)


def load_config(source: str | Path, load: dict[str, Any]) -> Any:
    """Return the configuration of a folder or a Hub id, with the options that apply to it.

    Raises:
        OSError: It cannot be read (or a ValueError).
    """
    from transformers import AutoConfig

    options = {name: load[name] for name in ("revision", "trust_remote_code") if name in load}
    return from_pretrained(AutoConfig, source, **options)


def from_pretrained(auto: Any, source: str | Path, **options: Any) -> Any:
    """Call ``auto.from_pretrained(source)``; code of the repository runs only if `options` say so.

    Everything that transformers loads for this package goes through this function or `load_model`.
    Without ``trust_remote_code``, transformers asks on the terminal, and a "y" on the standard
    input runs the code of whatever repository a sidecar names.

    Raises:
        CheckpointError: The repository has code that would have to run.
        OSError: It cannot be read (or a ValueError).
    """
    try:
        return auto.from_pretrained(expanded(source), **{"trust_remote_code": False, **options})
    except ValueError as error:
        _check_code(source, error)
        raise


def load_model(
    source: str | Path | TransformersModel,
    tokenizer: Any,
    peft: str | None,
    load: dict[str, Any],
) -> TransformersModel:
    """Return the nnsight model of `source` without its weights; a live model as it is.

    Args:
        source: A Hub id, a folder, or a live model.
        tokenizer: Its tokenizer; ``None`` for the one in `source`.
        peft: An adapter on it.
        load: Keyword arguments of nnsight's `TransformersModel`. The task is text generation, and
            no code of the repository runs, unless they say otherwise. Attention has the soft cap
            of the configuration, unless they choose an implementation.

    Raises:
        CheckpointError: The configuration cannot be read, `load` has no such dtype, or the model
            no such attention.

    Warns:
        NLAWarning: Attention leaves out the soft cap of the configuration.
    """
    if not isinstance(source, str | Path):
        hosts.text_config(source)
        if peft is not None or load:
            given = ", ".join([*(["peft"] if peft else []), *load])
            raise CheckpointError(
                f"{given} cannot be applied to a model that is already loaded. Load it yourself: "
                "TransformersModel(..., peft=...), or pass its path instead. Options for the other "
                "model only: NLA(..., av_options={...}) or ar_options={...}."
            )
        check_cap(source, stacklevel=5)
        return source
    if peft is not None:
        need_peft(peft)
    check_dtype(load)
    from huggingface_hub.errors import StrictDataclassError
    from nnsight import TransformersModel

    options = {"task": "text-generation", "trust_remote_code": False, **load}
    name = expanded(source)
    ends = end_ids(name, options.get("revision"))
    try:
        options = with_cap(config_of(source, options), options)
        model = TransformersModel(
            name, tokenizer=tokenizer, peft=peft, **{"generation_config": ends, **options}
        )
    except (ImportError, OSError, ValueError, StrictDataclassError) as error:
        _check_code(source, error)
        _check_attention(source, load, error)
        if isinstance(error, ImportError):
            raise
        if peft is not None and "arget modules" in str(error):
            raise CheckpointError(
                f"The adapter {peft} does not fit {source} as task={options['task']!r}: "
                f"{_first_line(error)} If it was trained on a multimodal model, pass "
                "task='image-text-to-text'."
            ) from error
        raise CheckpointError(
            f"The configuration of {str(source)!r} could not be read: {_first_line(error)} "
            f"{_elsewhere(source)}"
        ) from error
    check_cap(model, stacklevel=5)
    if ends is not None:  # For a model that runs on a host, whose weights are never loaded here.
        cast("Any", hosts.module_of(model)).generation_config = ends
    return model


def end_ids(source: str, revision: str | None = None) -> GenerationConfig | None:
    """Read the end and pad ids of ``generation_config.json``, and no other setting.

    Args:
        source: A Hub id or a folder.
        revision: A branch, tag or commit of the repository.

    Returns:
        Settings that have these ids only; ``None`` if there is no such file.

    Raises:
        CheckpointError: The file says something else than token ids for them.
    """
    from transformers import GenerationConfig
    from transformers.utils.hub import cached_file

    try:
        file = cached_file(source, "generation_config.json", revision=revision)
        said: Any = json.loads(Path(str(file)).read_text("utf-8"))
    except (OSError, ValueError):  # Absent or no JSON: transformers uses the ids of config.json.
        return None
    where = f"generation_config.json of {source}"
    if not isinstance(said, dict):
        raise CheckpointError(f"{where} has a {type(said).__name__}, expected a JSON object.")
    ends, pads = (
        token_ids(said.get(name), name, where) for name in ("eos_token_id", "pad_token_id")
    )
    return GenerationConfig(eos_token_id=ends or None, pad_token_id=pads[0] if pads else None)


def token_ids(value: object, name: str, where: str) -> list[int]:
    """Return the token ids of a generation setting: one id, a list of them, or ``None``.

    Args:
        value: What the checkpoint says; a negative id means none.
        name: The setting.
        where: The file or the model that it comes from.

    Raises:
        CheckpointError: It is something else.
    """
    listed: list[Any] = value if isinstance(value, list) else [value]
    if not all(each is None or is_int(each) for each in listed):
        raise CheckpointError(
            f"{where} says {name}: {value!r:.80}, expected a token id or a list of them. Correct "
            "it, or remove it: the tokenizer has an end-of-sequence token too."
        )
    return [each for each in listed if each is not None and each >= 0]


def _elsewhere(source: str | Path) -> str:
    """Return what to do about a model that cannot be read."""
    if Path(source).expanduser().exists():
        return "Use a folder that save_pretrained() wrote."
    return (
        f"There is no folder {Path(source).expanduser().absolute()}. If it is a Hub id and there "
        "is no network, download the repository elsewhere and pass its folder."
    )


def need_peft(adapter: str | Path) -> None:
    """Check that PEFT is installed, which adapters need.

    Raises:
        CheckpointError: PEFT is not installed.
    """
    if find_spec("peft") is None:
        raise CheckpointError(
            f"{adapter} is an adapter, which needs the package peft. Install it: "
            "pip install 'nnsight-nla[adapters]'."
        )


def _check_code(source: str | Path, error: Exception) -> None:
    """Raise if `error` is transformers' refusal to run code."""
    if "trust_remote_code" in str(error):
        raise CheckpointError(
            f"{str(source)!r} can only be loaded by running code from its repository, which is "
            "never done unasked. Read that code; if you trust it, pass trust_remote_code=True."
        ) from error


def _check_attention(source: str | Path, load: dict[str, Any], error: Exception) -> None:
    """Raise if `error` says that the model has no attention of the kind in `load`."""
    from transformers import AutoModelForCausalLM

    chosen = load.get("attn_implementation")
    if chosen is None:
        return
    try:
        config = config_of(source, load)
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    except (ImportError, OSError, ValueError):  # Something else is wrong with it.
        return
    raise CheckpointError(
        f"attn_implementation={shown(chosen)} does not work for {str(source)!r}: "
        f"{_first_line(error)} Choose another, such as attn_implementation='eager', or leave it "
        "out."
    ) from error


def check_dtype(load: dict[str, Any], *, quantized: bool = True) -> None:
    """Check the dtype among the keyword arguments of a loader.

    Args:
        load: The arguments.
        quantized: Whether the dtype may be ``"auto"`` or one that nnsight quantizes to.

    Raises:
        CheckpointError: It is not a floating-point dtype, nor one of those.
    """
    for name in ("dtype", "torch_dtype"):
        dtype = load.get(name)
        special = (
            quantized
            and isinstance(dtype, str)
            and (dtype == "auto" or _compat.quantization(dtype) is not None)
        )
        if dtype is None or special:
            continue
        found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        if not isinstance(found, torch.dtype) or not found.is_floating_point:
            more = ", 'auto', or a quantized dtype: 'int8', 'nf4', 'fp8'" if quantized else ""
            raise CheckpointError(
                f"{name}={shown(dtype)}: expected 'float32', 'bfloat16', 'float16'{more}."
            )


def last_line(error: BaseException) -> str:
    """Return the type and the last line of an error that may quote a whole traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    return last if len(lines) > 1 else f"{type(error).__name__}: {last}"


def expanded(source: str | Path) -> str:
    """Return the absolute path of a folder, which is the same from every folder, or the Hub id."""
    folder = Path(source).expanduser()
    return str(folder.absolute() if folder.exists() else source)


def located(name: str, near: str | Path) -> str:
    """Return the path of the base model that an adapter names, or its Hub id.

    A relative path counts from the working folder, as PEFT has it. Otherwise it was stored as
    somebody typed it, so it is looked for in the adapter's own folder and in those above it.

    Args:
        name: The name of the base model, as stored.
        near: The adapter: a folder or a Hub id.

    Raises:
        CheckpointError: It is a path at which there is no folder, or at which there are two.
    """
    here = Path(name).expanduser()
    folder = Path(near).expanduser().absolute()
    places = [here, *(parent / here for parent in (folder, *folder.parents) if folder.is_dir())]
    found = dict.fromkeys(str(path.resolve()) for path in places if path.is_dir())
    if len(found) > 1:
        raise CheckpointError(
            f"The adapter {near} names its base model {name!r}, which may be "
            f"{' or '.join(found)}. Pass the right one: NLA('/path/to/base', "
            f"peft={str(near)!r})."
        )
    if found:
        return next(iter(found))
    if sidecar.is_hub_id(name):
        return name
    raise CheckpointError(
        f"The adapter {near} names its base model {name!r}, and there is no such folder: neither "
        f"{here.absolute()} nor one above the adapter. Pass it: NLA('/path/to/base', "
        f"peft={str(near)!r})."
    )


def adapter_base(source: str | Path) -> str | None:
    """Return the base model that an adapter names; ``None`` if `source` is not an adapter.

    Raises:
        CheckpointError: Its file cannot be read, or the folder that it names does not exist.
    """
    for name, key in (
        ("adapter_config.json", "base_model_name_or_path"),
        ("ar_meta.json", "base_model"),
    ):
        file = sidecar.stored(source, name)
        tree = None if file is None else sidecar.read(file)
        if isinstance(tree, dict) and tree.get(key):
            return located(str(tree[key]), source)
    return None


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
