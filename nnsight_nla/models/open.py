"""Open the verbalizer and the reconstructor of an NLA from what a caller passed.

Each may be a Hub id, a local folder, an adapter on a base, an adapter on the target's own weights,
or a live nnsight model. Sidecar, configuration and tokenizer are read and checked here; weights are
loaded when the `Runtime` is first used::

    opened = open_verbalizer(av, options, checkpoint=None, peft=None)
    opened.runtime, opened.checkpoint, opened.prompt
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.dates import TODAY, Date
from ..checkpoint.prompt import Prompt, marker_of
from ..checkpoint.question import first_prompt
from ..core.injection import Injection
from ..errors import CheckpointError, NLAWarning, shown
from . import adapter as adapters
from . import hosts, reconstructor_files
from .loading import at_depth, check_model, load_model, load_tokenizer
from .runtime import Role, Runtime
from .weights import unused_above

if TYPE_CHECKING:
    from collections.abc import Callable

    from nnsight import TransformersModel

    from .memory import Memory
    from .reconstructor_files import Layout


@dataclass(frozen=True)
class OpenOptions:
    """Options that the verbalizer and the reconstructor of one NLA share."""

    target: TransformersModel | None
    """The model on whose weights an adapter runs."""
    remote: bool
    """Whether the models run on the configured NDIF host."""
    memory: Memory
    """Registers the models."""
    load: dict[str, Any]
    """Keyword arguments of nnsight's `TransformersModel`."""

    def with_load(self, more: dict[str, Any]) -> OpenOptions:
        """Return the options with more keyword arguments, for one of the two models."""
        return replace(self, load={**self.load, **more})


@dataclass(frozen=True)
class OpenedVerbalizer:
    """A verbalizer that was read and checked, without its weights."""

    runtime: Runtime
    """Runs its model."""
    checkpoint: Checkpoint
    """Its training settings, completed with its tokenizer."""
    prompt: Prompt
    """Its rendered prompt."""
    template: Checkpoint
    """Its training settings as described, with slots for the layer not filled in."""


@dataclass(frozen=True)
class OpenedReconstructor:
    """A reconstructor that was read and checked, without its weights."""

    runtime: Runtime
    """Runs its model."""
    layout: Layout
    """How it is stored: head, template, adapter."""
    tokenizer: Any
    """Its tokenizer."""


def open_verbalizer(
    source: str | Path | TransformersModel,
    options: OpenOptions,
    *,
    checkpoint: Checkpoint | Injection | str | Path | None,
    peft: str | None,
    date: Date | None = None,
) -> OpenedVerbalizer:
    """Read and check a verbalizer; loads no weights.

    Args:
        source: A Hub id, a folder (of a full model or an adapter), or a live model.
        options: Shared by both models of the NLA.
        checkpoint: Overrides the sidecar; see `NLA`.
        peft: An adapter on `source`.
        date: Overrides the checkpoint's.

    Raises:
        CheckpointError: The checkpoint cannot be found, read or used.

    Warns:
        NLAWarning: The chat template prints today's date.
    """
    check_model(source)
    base, load, target = cast("Any", source), options.load, options.target
    if target is not None and peft is None and adapters.is_adapter(source):
        base, peft = target, str(source)
    folder = None if peft is not None else adapters.adapter_folder(source)
    if folder is not None:
        base, peft = adapters.base_of(folder), str(folder)
    is_path = isinstance(source, str | Path)
    template = _described(peft or (source if is_path else hosts.describe(source)), checkpoint)
    template = template if date is None else template.on_date(date)
    described = at_depth(base, template, load)
    reconstructor_files.check_role(peft or source, "verbalizer")
    tokenizer = (
        load_tokenizer(base, described)
        if not isinstance(base, str | Path)
        else load_tokenizer(peft or base, described, base=base, trust=_trusts(load))
    )
    prompt = first_prompt(described, tokenizer)
    if prompt.date is not None and described.date is None:
        _warn_of_today(peft or hosts.describe(source) if not is_path else source, prompt.date)
    model = _model(base, tokenizer, peft, load, options)
    runtime = _runtime(model, "verbalizer", options, loaded_here=is_path)
    completed = _completed(described, prompt, tokenizer)
    if completed.date is not None:  # The prompt for another layer has the same date.
        source = {**template.source, "date": completed.source["date"]}
        template = replace(template, date=completed.date, source=source)
    return OpenedVerbalizer(runtime, completed, prompt, template)


def prompt_of(template: Checkpoint, av: TransformersModel) -> tuple[Checkpoint, Prompt]:
    """Return a checkpoint with the slots for its layer filled in, and its prompt.

    Args:
        template: The checkpoint as it was described, for any layer that it was trained on.
        av: The verbalizer's model.

    Raises:
        CheckpointError: The prompt cannot be rendered.
    """
    described = at_depth(av, template, {})
    prompt = first_prompt(described, av.tokenizer)
    return _completed(described, prompt, av.tokenizer), prompt


def open_reconstructor(
    source: str | Path | TransformersModel, options: OpenOptions, checkpoint: Checkpoint
) -> OpenedReconstructor:
    """Read and check a reconstructor; loads only its head.

    Args:
        source: A Hub id, a folder, or a live model; see `reconstructor_files`.
        options: Shared by both models of the NLA.
        checkpoint: The verbalizer's, for fields that the reconstructor's own sidecar lacks.

    Raises:
        CheckpointError: Files are missing, damaged, or of another layer or width.
    """
    check_model(source)
    target, load = options.target, options.load
    layout = reconstructor_files.read(source, checkpoint)
    adapter = None if layout.adapter is None else str(layout.adapter)
    is_path = isinstance(source, str | Path)
    on_target = adapter is not None and target is not None
    tokenizer = load_tokenizer(target if on_target else source, checkpoint, trust=_trusts(load))
    base: Any = target if on_target else source
    if is_path and not on_target:
        base = layout.base
        config = reconstructor_files.cut_config(base, checkpoint.layer, load)
        # A host serves full models; the blocks after K are not run there.
        if config is not None and not options.remote:
            load = {**load, "config": config}
    blocks = checkpoint.layer + 1
    model = _model(base, tokenizer, adapter, load, options, blocks)
    unused = unused_above(model, checkpoint.layer, final_norm=layout.final_norm)
    runtime = _runtime(model, "reconstructor", options, loaded_here=is_path, unused=unused)
    return OpenedReconstructor(runtime, layout, tokenizer)


def _model(
    source: Any,
    tokenizer: Any,
    adapter: str | None,
    load: dict[str, Any],
    options: OpenOptions,
    blocks: int | None = None,
) -> TransformersModel:
    """Return a model without its weights; an adapter on the target shares the target's."""
    if adapter is None or source is not options.target:
        return load_model(source, tokenizer, adapter, load)
    if options.remote:
        return load_model(hosts.describe(source), tokenizer, adapter, load)
    return adapters.AdapterModel(source, adapter, blocks=blocks)


def _trusts(load: dict[str, Any]) -> bool:
    return load.get("trust_remote_code", False)


def _runtime(
    model: TransformersModel,
    role: Role,
    options: OpenOptions,
    *,
    loaded_here: bool,
    unused: Callable[[str], bool] | None = None,
) -> Runtime:
    return Runtime(
        model,
        role,
        memory=options.memory,
        remote=options.remote,
        loaded_here=loaded_here,
        unused=unused,
    )


def _described(where: str | Path, given: Checkpoint | Injection | str | Path | None) -> Checkpoint:
    if isinstance(given, Checkpoint):
        fields = {name: "the caller" for name in vars(given) if name != "source"}
        return replace(given, source={**fields, **given.source})
    if isinstance(given, Injection):
        return Checkpoint.load(where, injection=given)
    if given is None or isinstance(given, str | Path):
        return Checkpoint.load(given or where)
    raise CheckpointError(
        f"checkpoint={shown(given)}: expected a Checkpoint, an Injection, or the path of a sidecar."
    )


def _warn_of_today(name: object, date: str) -> None:
    warnings.warn(
        f"The chat template of {name} prints the date into the verbalizer's prompt, now {date}, so "
        f"its texts may be others on another day. To repeat them, pass NLA(..., date={date!r}).",
        NLAWarning,
        stacklevel=4,
    )


def _completed(checkpoint: Checkpoint, prompt: Prompt, tokenizer: Any) -> Checkpoint:
    """Fill in the marker's neighbours and the date, if not given, and record the tokenizer."""
    marker, marker_id = marker_of(checkpoint, tokenizer)
    live = {"marker": marker, "marker_id": marker_id, "date": prompt.date}
    if not checkpoint.asks:  # What follows an oracle's slots may depend on their number.
        live |= {"left_id": prompt.left_id, "right_id": prompt.right_id}
    absent = {
        name: value
        for name, value in live.items()
        if getattr(checkpoint, name) is None and value is not None
    }
    whose = str(getattr(tokenizer, "name_or_path", "") or "a live tokenizer")
    source = {
        **checkpoint.source,
        **{name: TODAY if name == "date" else "the live tokenizer" for name in absent},
        "tokenizer": whose,
    }
    return replace(checkpoint, **absent, source=source)
