"""Run a PEFT adapter on the weights of a live target, without a second copy of the base.

A verbalizer or a reconstructor may be a PEFT adapter on the target's base model. `AdapterModel` is
a separate nnsight model whose modules hold *the target's tensors* and the adapter's own::

    av = AdapterModel(model, "you/your-av-adapter")      # no weights yet
    with av.generate(ids): ...                           # loads the adapter's weights only

The weights are shared, but the modules are not, so the target is never edited. User traces see no
adapter, and nothing has to be restored after an error. Hooks, edits and adapters of the target act
on the target only, and a text can be read inside a running trace of the target. If the target's
weights change, this model changes too, because the tensors are the same.

If the user has put an adapter on the target, `AdapterModel` ignores it and uses the base below it.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from nnsight import TransformersModel
from torch import Tensor, nn

from .. import _compat
from ..checkpoint import identity, sidecar
from ..errors import CheckpointError, NLAWarning, shown
from . import hosts, reconstructor_files
from .blocks import find_blocks
from .loading import adapter_base, need_peft
from .weights import load as load_weights

if TYPE_CHECKING:
    from collections.abc import Callable

ADAPTER_CONFIG = "adapter_config.json"


class AdapterModel(TransformersModel):
    """A separate nnsight model: an adapter on the weights of a live model."""

    def __init__(
        self, target: TransformersModel, adapter: str | Path, *, blocks: int | None = None
    ) -> None:
        """Read the adapter's configuration. No weights are loaded; `target` is unchanged.

        Args:
            target: The model whose weights are used; this object keeps a reference to it.
            adapter: The PEFT adapter: a folder or a Hub id.
            blocks: How many of the target's blocks this model has; all by default.

        Raises:
            CheckpointError: `target` is not an nnsight model, or the adapter does not fit it.

        Warns:
            NLAWarning: The adapter names another base model than `target`.
        """
        if not isinstance(cast("Any", target), TransformersModel):
            raise CheckpointError(
                f"An adapter needs an nnsight TransformersModel, got {type(target).__name__}. "
                "Write: NLA.on(TransformersModel(name, task='text-generation'), av=...)."
            )
        need_peft(adapter)
        self._target, self._blocks = target, blocks
        self._follows: list[tuple[nn.Module, str, str]] = []
        # nnsight may look up `peft` on the Hub, so a folder is passed with ``~`` expanded.
        where = str(Path(adapter).expanduser() if Path(adapter).expanduser().exists() else adapter)
        _check_base(where, target)
        try:
            super().__init__(
                hosts.describe(target), task=target.task or "text-generation",
                tokenizer=target.tokenizer, peft=where,
            )  # fmt: skip
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"The adapter {where} does not fit {hosts.describe(target)}: "
                f"{str(error).strip().splitlines()[0]}"
            ) from error

    @property
    def target(self) -> TransformersModel:
        """The model whose weights are used."""
        return self._target

    def added(self) -> list[Tensor]:
        """Return the adapter's own tensors, without those of the target."""
        theirs = {id(_slots(owner)[name]) for owner, _, name in self._follows}
        return [each for each in _tensors(hosts.module_of(self)) if id(each) not in theirs]

    def _load_meta(self, repo_id: str, *args: Any, **kwargs: Any) -> nn.Module:  # noqa: ARG002
        return self._built(_weightless, weights=False)

    def _load(self, repo_id: str, *args: Any, **kwargs: Any) -> nn.Module:  # noqa: ARG002
        load_weights(self._target)
        try:
            return self._built(_alias, weights=True)
        except (OSError, ValueError, RuntimeError) as error:
            if _compat.says_out_of_memory(error) or isinstance(error, torch.OutOfMemoryError):
                raise
            raise CheckpointError(
                f"The adapter {self.peft} does not fit {hosts.describe(self._target)}: "
                f"{str(error).strip().splitlines()[0]}"
            ) from error

    def interleave(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a trace with the target's current tensors."""
        self.follow()
        return super().interleave(fn, *args, **kwargs)

    def _built(self, tensor: Callable[[Tensor], Tensor], *, weights: bool) -> nn.Module:
        """Copy the target's modules, map each tensor through `tensor`, and attach the adapter."""
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
        """Use the target's current tensors, if they were moved, replaced or loaded."""
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
    """Return whether `source` is a folder or a Hub repository with a PEFT adapter."""
    if not isinstance(source, str | Path):
        return False
    return sidecar.stored(source, ADAPTER_CONFIG) is not None


def adapter_folder(source: object) -> Path | None:
    """Return `source` as a folder if it holds an adapter and not a full model."""
    folder = Path(source).expanduser() if isinstance(source, str | Path) else None
    if folder is None or not (folder / ADAPTER_CONFIG).is_file():
        return None
    return None if (folder / "config.json").is_file() else folder


def base_of(folder: Path) -> str:
    """Return the base model that an adapter's folder names.

    Raises:
        CheckpointError: The folder does not name one.
    """
    file = folder / ADAPTER_CONFIG
    base = adapter_base(folder)
    if base is None:
        raise CheckpointError(
            f"{file} does not name its base model. Pass it: NLA('path or id', peft='{folder}')."
        )
    return base


def weights_of(model: Any) -> Any:
    """Return the model that holds the weights of `model`: itself, or an adapter's target."""
    return model.target if isinstance(model, AdapterModel) else model


def check_shares(av: Any, ar: Any, target: Any) -> None:
    """Check that at least one model of an `NLA.on` is an adapter.

    Raises:
        CheckpointError: Neither the verbalizer nor the reconstructor is an adapter.
    """
    models = [model for model in (av, ar) if model is not None]
    if not any(isinstance(model, AdapterModel) or model.peft is not None for model in models):
        names = " and ".join(hosts.describe(model) for model in models)
        raise CheckpointError(
            f"NLA.on runs adapters on {hosts.describe(target)}, but found no adapter in {names} "
            f"({ADAPTER_CONFIG} or {reconstructor_files.META}). For full models, write "
            "NLA(av, ar=ar)."
        )


def check_used(load: dict[str, Any], *opened: Any) -> None:
    """Refuse loading options when nothing is loaded.

    Args:
        load: The options.
        opened: The models that they are for, ``None`` for one that was not passed.

    Raises:
        CheckpointError: There is no such model, or all of them run on the target's weights.
    """
    models = [model for model in opened if model is not None]
    if load and not models:
        raise CheckpointError(
            f"ar_options={shown(load)}, but there is no reconstructor. Pass it: NLA(av, ar=...)."
        )
    if load and all(isinstance(model, AdapterModel) for model in models):
        raise CheckpointError(
            f"{', '.join(load)} cannot be applied: these adapters run on a model that is already "
            "loaded. Pass the option when you load that model: TransformersModel(..., "
            f"{next(iter(load))}=...)."
        )


def _check_base(adapter: str, target: TransformersModel) -> None:
    """Check an adapter and its base's name against the model that it will run on."""
    file = sidecar.stored(adapter, ADAPTER_CONFIG)
    if file is None:
        raise CheckpointError(
            f"{adapter} has no {ADAPTER_CONFIG}, so it is not a PEFT adapter. Pass a full model to "
            "NLA(av, ar=...)."
        )
    merged = [
        name
        for name, module in hosts.module_of(target).named_modules()
        if getattr(module, "merged", False) and hasattr(module, "base_layer")
    ]
    if merged:
        raise CheckpointError(
            f"{hosts.describe(target)} has an adapter merged into {len(merged)} of its modules "
            f"({merged[0]}, ...), so its weights differ from the base's. Unmerge it first: "
            "module.unmerge()."
        )
    config = sidecar.read(file)
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} is not a JSON object: {shown(config)}.")
    named = config.get("base_model_name_or_path")
    name, shape = hosts.describe(target), identity.fingerprint(hosts.config(target))
    if named and not identity.same_model(name, str(named), (shape, None)):
        warnings.warn(
            f"The adapter {adapter} was trained on {named} and runs on {name} here. If the weights "
            "differ, do not trust its texts and vectors.",
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
    """Copy a tree of modules, with new modules and configurations and without hooks.

    Tied tensors stay tied. `follows` collects, for every tensor, its new owner, its path in the old
    tree and its name.
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
    """Return a module without the adapter that the user has wrapped around it."""
    children = _compat.children(module)
    if "base_layer" in children and hasattr(module, "get_base_layer"):
        return cast("Any", module).get_base_layer()
    if "original_module" in children and "modules_to_save" in children:
        return cast("nn.Module", children["original_module"])
    return module


def _cut(module: nn.Module, blocks: int) -> None:
    """Remove the blocks after the first `blocks` from a copied tree and its configuration.

    Raises:
        CheckpointError: The tree has fewer blocks.
    """
    _, found = find_blocks(module)
    if len(found) < blocks:
        raise CheckpointError(
            f"The target has blocks 0 to {len(found) - 1}; a reconstructor of layer {blocks - 1} "
            f"has {blocks}."
        )
    del found[blocks:]
    reconstructor_files.shorten(cast("Any", module).config, blocks)


def _weightless(tensor: Tensor) -> Tensor:
    if type(tensor) not in (
        nn.Parameter,
        Tensor,
    ):  # A quantized tensor has more state than a shape.
        return tensor
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return nn.Parameter(empty, False) if isinstance(tensor, nn.Parameter) else empty


def _alias(tensor: Tensor) -> Tensor:
    """Return a new parameter on the same memory, with a ``requires_grad`` of its own."""
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
