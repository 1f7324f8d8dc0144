"""One set of weights, several roles: an adapter that stands on a live target's own tensors.

Where a verbalizer or a reconstructor is a PEFT adapter over the target's base, a second copy of the
base is not needed. `AdapterModel` is an nnsight model of its own whose modules hold *the target's
tensors*, and the adapter on top::

    av = AdapterModel(model, "you/your-av-adapter")      # no weights yet
    with av.generate(ids): ...                           # now: the adapter's, and no others

The weights are shared, the modules are not. So the target is never edited: there is no adapter to
switch off inside the user's traces and nothing to restore after an error, its own hooks, edits and
adapters keep acting on it and never act here, and a text can be read inside a running trace of the
target, as with a verbalizer that is a model of its own. What is changed in the target's weights is
changed here too, for they are the same.

An adapter of the user's own on the target is left out: an `AdapterModel` stands on the base below.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from nnsight import TransformersModel
from torch import Tensor, nn

from .. import _compat
from ..errors import CheckpointError, NLAWarning
from . import hosts, reconstructor_files

if TYPE_CHECKING:
    from collections.abc import Callable

ADAPTER_CONFIG = "adapter_config.json"


class AdapterModel(TransformersModel):
    """An adapter on the weights of a live model, as an nnsight model of its own."""

    def __init__(
        self, target: TransformersModel, adapter: str | Path, *, blocks: int | None = None
    ) -> None:
        """Read the adapter's configuration; no weights are loaded and `target` is not touched.

        Args:
            target: The model whose weights are used; held for as long as this one lives.
            adapter: The PEFT adapter: a folder or a Hub id.
            blocks: How many of the target's blocks this model has; all of them unless given.

        Raises:
            CheckpointError: `target` is no nnsight model, or the adapter cannot stand on it.

        Warns:
            NLAWarning: The adapter names another base model than `target`.
        """
        if not isinstance(cast("Any", target), TransformersModel):
            raise CheckpointError(
                f"An adapter stands on an nnsight TransformersModel, got {type(target).__name__}. "
                "Write: NLA.on(TransformersModel(name, task='text-generation'), av=...)."
            )
        self._target, self._blocks = target, blocks
        self._follows: list[tuple[nn.Module, str, str]] = []
        # From a path, nnsight may resolve `peft` against the Hub; a folder is written out.
        where = str(Path(adapter).expanduser() if Path(adapter).expanduser().exists() else adapter)
        _check_base(where, target)
        try:
            super().__init__(
                hosts.describe(target), task="text-generation", tokenizer=target.tokenizer,
                peft=where,
            )  # fmt: skip
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"The adapter {where} cannot stand on {hosts.describe(target)}: "
                f"{str(error).strip().splitlines()[0]}"
            ) from error

    @property
    def target(self) -> TransformersModel:
        """The model whose weights these are."""
        return self._target

    def added(self) -> list[Tensor]:
        """The tensors that are not the target's: the adapter's own."""
        theirs = {id(_slots(owner)[name]) for owner, _, name in self._follows}
        return [each for each in _tensors(hosts.module_of(self)) if id(each) not in theirs]

    def _load_meta(self, repo_id: str, *args: Any, **kwargs: Any) -> nn.Module:  # noqa: ARG002
        return self._built(_weightless, weights=False)

    def _load(self, repo_id: str, *args: Any, **kwargs: Any) -> nn.Module:  # noqa: ARG002
        self._target.dispatch()
        try:
            return self._built(_alias, weights=True)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"The adapter {self.peft} does not fit {hosts.describe(self._target)}: "
                f"{str(error).strip().splitlines()[0]}"
            ) from error

    def interleave(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run, on the tensors that the target has now."""
        self.follow()
        return super().interleave(fn, *args, **kwargs)

    def _built(self, tensor: Callable[[Tensor], Tensor], *, weights: bool) -> nn.Module:
        """The target's modules with `tensor` of its tensors, and the adapter on top."""
        self._follows = []
        module = _copy(hosts.module_of(self._target), tensor, {}, {}, "", self._follows)
        self._of = hosts.module_of(self._target)
        if self._blocks is not None:
            _cut(module, self._blocks)
        _compat.attach_adapter(module, str(self.peft), weights=weights)
        module.requires_grad_(False).eval()
        self.pipeline = copy.copy(self._target.pipeline)
        cast("Any", self.pipeline).model = module
        return module

    def follow(self) -> None:
        """Take up what happened to the target's tensors: moved, replaced, loaded."""
        if not self.dispatched:
            return
        module = hosts.module_of(self._target)
        before = _device(hosts.module_of(self))
        if module is not self._of:
            _compat.replace_module(self, self._load(""))
            return
        aliases: dict[int, Tensor] = {}
        for owner, path, name in self._follows:
            theirs = _slots(_bare(module.get_submodule(path)))[name]
            mine = _slots(owner)[name]
            if mine is None or theirs is None or _same(mine, theirs):
                continue
            if id(theirs) not in aliases:
                aliases[id(theirs)] = _alias(theirs)
            parameters, buffers = _compat.tables(owner)
            (parameters if name in parameters else buffers)[name] = aliases[id(theirs)]
        if _device(hosts.module_of(self)) != before:
            _compat.replace_module(self, self._load(""))


def is_adapter(source: object) -> bool:
    """Whether `source` is a folder or a Hub repository that holds a PEFT adapter."""
    if not isinstance(source, str | Path):
        return False
    return reconstructor_files.stored(source, ADAPTER_CONFIG) is not None


def adapter_folder(source: object) -> Path | None:
    """The folder that `source` is, where it holds an adapter and no whole model."""
    folder = Path(source).expanduser() if isinstance(source, str | Path) else None
    if folder is None or not (folder / ADAPTER_CONFIG).is_file():
        return None
    return None if (folder / "config.json").is_file() else folder


def base_of(folder: Path) -> str:
    """The base model that an adapter's folder names.

    Raises:
        CheckpointError: It names none.
    """
    file = folder / ADAPTER_CONFIG
    config = json.loads(file.read_text("utf-8"))
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not base:
        raise CheckpointError(
            f"{file} does not name its base model. Say it: NLA('path or id', peft='{folder}')."
        )
    return str(base)


def weights_of(model: Any) -> Any:
    """The model that holds the weights `model` runs on: itself, or the target it stands on."""
    return model.target if isinstance(model, AdapterModel) else model


def check_shares(av: Any, ar: Any, target: Any) -> None:
    """Refuse an `NLA.on` that shares nothing.

    Raises:
        CheckpointError: Neither half is an adapter.
    """
    halves = [half for half in (av, ar) if half is not None]
    if not any(isinstance(half, AdapterModel) or half.peft is not None for half in halves):
        names = " and ".join(hosts.describe(half) for half in halves)
        raise CheckpointError(
            f"NLA.on runs adapters on {hosts.describe(target)}; {names}: no adapter "
            f"({ADAPTER_CONFIG}, {reconstructor_files.META}). For models of their own write "
            "NLA(av, ar=ar)."
        )


def check_used(load: dict[str, Any], av: Any, ar: Any) -> None:
    """Refuse options of a load that no half makes.

    Raises:
        CheckpointError: Every half runs on the target's weights.
    """
    halves = [half for half in (av, ar) if half is not None]
    if load and all(isinstance(half, AdapterModel) for half in halves):
        raise CheckpointError(
            f"{', '.join(load)} cannot be applied: what is run here are adapters on a model that "
            "is already there. Load that one so: TransformersModel(..., "
            f"{next(iter(load))}=...)."
        )


def _check_base(adapter: str, target: TransformersModel) -> None:
    """Hold the base that an adapter names against the model it is to stand on."""
    file = reconstructor_files.stored(adapter, ADAPTER_CONFIG)
    if file is None:
        raise CheckpointError(
            f"{adapter} has no {ADAPTER_CONFIG}: it is no PEFT adapter. A model of its own goes "
            "into NLA(av, ar=...)."
        )
    merged = [
        name
        for name, module in hosts.module_of(target).named_modules()
        if getattr(module, "merged", False) and hasattr(module, "base_layer")
    ]
    if merged:
        raise CheckpointError(
            f"{hosts.describe(target)} has an adapter merged into {len(merged)} of its modules "
            f"({merged[0]}, ...), so its weights are not the base's. Unmerge it first: "
            "module.unmerge()."
        )
    try:
        named = json.loads(file.read_text("utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{file} is no JSON object: {error}") from error
    name = hosts.describe(target)
    if named and Path(str(named)).name.lower() != Path(name).name.lower():
        warnings.warn(
            f"The adapter {adapter} was trained on {named}; it is put on {name} here. If these are "
            "not the same weights, its texts and vectors are not to be trusted.",
            NLAWarning,
            stacklevel=4,
        )


def _copy(
    module: nn.Module,
    tensor: Callable[[Tensor], Tensor],
    modules: dict[int, nn.Module],
    configs: dict[int, Any],
    path: str,
    follows: list[tuple[nn.Module, str, str]],
    tensors: dict[int, Tensor] | None = None,
) -> nn.Module:
    """The tree below `module` with its own modules and configurations, and no hooks.

    Ties stay ties. `follows` lists every tensor: its new owner, its path in the old tree, its name.
    """
    from transformers import GenerationConfig, PreTrainedConfig

    tensors = {} if tensors is None else tensors
    if id(module) in modules:
        return modules[id(module)]
    bare = _bare(module)
    new = _compat.empty_copy(bare)
    modules[id(module)] = new
    own = set(vars(new))
    for name, value in vars(bare).items():
        if name in own or name in _compat.NOT_COPIED:
            continue
        if isinstance(value, PreTrainedConfig | GenerationConfig):
            value = copy.deepcopy(value, configs)
        vars(new)[name] = value
    for mine, theirs in zip(_compat.tables(new), _compat.tables(bare), strict=True):
        for name, value in theirs.items():
            if value is not None:
                if id(value) not in tensors:
                    tensors[id(value)] = tensor(value)
                follows.append((new, path, name))
            mine[name] = None if value is None else tensors[id(value)]
    for name, child in _compat.children(bare).items():
        below = f"{path}.{name}" if path else name
        _compat.children(new)[name] = (
            None
            if child is None
            else _copy(child, tensor, modules, configs, below, follows, tensors)
        )
    return new


def _bare(module: nn.Module) -> nn.Module:
    """A module without the adapter that the user has put around it."""
    children = _compat.children(module)
    if "base_layer" in children and hasattr(module, "get_base_layer"):
        return cast("Any", module).get_base_layer()
    if "original_module" in children and "modules_to_save" in children:
        return cast("nn.Module", children["original_module"])
    return module


def _cut(module: nn.Module, blocks: int) -> None:
    """Take the blocks above the first `blocks` out of a copied tree, and out of its configuration.

    Raises:
        CheckpointError: It has fewer.
    """
    _, found = blocks.find_blocks(module)
    if len(found) < blocks:
        raise CheckpointError(
            f"The target has blocks 0 to {len(found) - 1}; a reconstructor of layer {blocks - 1} "
            f"has {blocks}."
        )
    del found[blocks:]
    reconstructor_files.shorten(cast("Any", module).config, blocks)


def _weightless(tensor: Tensor) -> Tensor:
    if type(tensor) not in (nn.Parameter, Tensor):  # A quantized one carries more than a shape.
        return tensor
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return nn.Parameter(empty, False) if isinstance(tensor, nn.Parameter) else empty


def _alias(tensor: Tensor) -> Tensor:
    """The same memory as another parameter, so that nobody's ``requires_grad`` is the other's."""
    if type(tensor) is nn.Parameter:
        return nn.Parameter(tensor.detach(), False)
    return tensor


def _same(mine: Tensor, theirs: Tensor) -> bool:
    return mine is theirs or (
        mine.data_ptr() == theirs.data_ptr()
        and mine.device == theirs.device
        and mine.shape == theirs.shape
        and mine.dtype == theirs.dtype
    )


def _slots(module: nn.Module) -> dict[str, Tensor | None]:
    parameters, buffers = _compat.tables(module)
    return {**buffers, **parameters}


def _device(module: nn.Module) -> torch.device:
    return next(_tensors(module)).device


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
