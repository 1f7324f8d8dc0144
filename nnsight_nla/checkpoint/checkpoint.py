"""Describe how a verbalizer and its reconstructor were trained, in one frozen `Checkpoint`.

A checkpoint is made from a sidecar of any dialect (see `dialects`), from the built-in preset of a
published checkpoint, or by hand. Every field is checked, and `Checkpoint.source` says where each
value came from.

>>> checkpoint = Checkpoint.preset("ceselder/nanonla-l24-av-qwen3-8b")
>>> checkpoint.layer, checkpoint.d_model, checkpoint.injection.operation
(24, 4096, 'add')
>>> checkpoint.source["injection"]
'preset ceselder/nanonla-l24-av-qwen3-8b'
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..core.baseline import Baseline
from ..core.calibration import FILE as CALIBRATION
from ..core.calibration import Calibration
from ..core.injection import Injection
from ..core.numeric import is_int, is_unicode
from ..errors import CheckpointError, NLAWarning, ReconstructionError, shown
from . import dialects, sidecar
from .dates import Date, to_iso
from .oracle_presets import ORACLE_FIELDS, ORACLE_TEMPLATE
from .presets import AR_TEMPLATE, AV_TEMPLATE, PRESET_FIELDS

__all__ = [
    "AR_TEMPLATE", "AV_TEMPLATE", "DEPTH_SLOT", "EXPLANATION_SLOT", "LAYER_SLOT", "MARKER_SLOT",
    "ORACLE_TEMPLATE", "PRESETS", "QUESTION_SLOT", "Checkpoint", "parse_sidecar",
]  # fmt: skip

MARKER_SLOT = "{injection_char}"
EXPLANATION_SLOT = "{explanation}"
DEPTH_SLOT = "{depth_pct}"
LAYER_SLOT = "{layer}"
QUESTION_SLOT = "{question}"


@dataclass(frozen=True)
class Checkpoint:
    """The description of a verbalizer and its reconstructor."""

    layer: int
    """K: the vector is the output of the target's block K, from 0 (``hidden_states[K+1]``)."""
    d_model: int
    """The width of the residual stream, in entries."""
    template: str
    """The verbalizer's user message. It contains ``{injection_char}`` at each position of the
    marker, and may contain ``{layer}`` and ``{depth_pct}`` (see `at_depth`). That of an activation
    oracle also contains ``{question}``; its ``{injection_char}`` is repeated for each vector."""
    marker: str | None = None
    """The text of the one token at which the vector is written; ``None`` means that of
    `marker_id`."""
    marker_id: int | None = None
    """The token id of the marker; ``None`` means that the live tokenizer decides."""
    left_id: int | None = None
    """The id of the token before the marker; ``None`` means that the live prompt decides."""
    right_id: int | None = None
    """The id of the token after the marker; ``None`` means that the live prompt decides."""
    injection: Injection = field(default_factory=Injection)
    """How the vector is written."""
    ar_template: str | None = None
    """The reconstructor's prompt, with ``{explanation}`` at the position of the text."""
    ar_suffix_ids: tuple[int, ...] | None = None
    """The token ids at the end of the reconstructor's prompt; ``None`` if unknown."""
    system: str | None = None
    """The system message before the template; ``None`` means that none is given, and that the chat
    template may add its own."""
    prefill: str | None = None
    """The beginning of the reply, written after the rendered chat, such as ``<explanation>\\n``."""
    thinking: bool | None = None
    """The chat template's argument ``enable_thinking``; ``None`` means that it is not passed."""
    date: str | None = None
    """The date, in ISO 8601, for a chat template that prints one; ``None`` is the day of use."""
    baseline: Baseline | None = None
    """The denominator of an FVE on this model's residuals; ``None`` if unknown."""
    layers: tuple[int, ...] | None = None
    """The blocks whose residuals the verbalizer was trained on; ``None`` means only `layer`."""
    vectors: int | None = None
    """How many vectors one explanation is of, with a marker for each, such as both ends of a
    difference; ``None`` means one, which every marker of the template gets."""
    base_model: str | None = None
    """The name of the target model, as in the sidecar."""
    base_config: str | None = None
    """The fingerprint of the target's configuration; see `identity.fingerprint`."""
    sidecar_hash: str | None = None
    """SHA-256 of the sidecar file, in hex; ``None`` for a preset or a checkpoint made by hand."""
    calibration: Calibration | None = field(default=None, repr=False, compare=False)
    """How often its explanations are right, as measured; ``None`` if it was not measured."""
    source: Mapping[str, str] = field(default_factory=dict[str, str], compare=False)
    """Field name to the origin of its value."""

    def __post_init__(self) -> None:
        """Check every field; the values may come from a file."""
        given: dict[str, Any] = vars(self)
        for key in ("ar_suffix_ids", "layers"):
            if isinstance(given[key], list | range):
                object.__setattr__(self, key, tuple(given[key]))
        if given["date"] is not None:
            object.__setattr__(self, "date", self._date(given["date"]))
        if isinstance(given["baseline"], Mapping):
            object.__setattr__(self, "baseline", self._baseline(given["baseline"]))
        marker, name, suffix = given["marker"], given["base_model"], given["ar_suffix_ids"]

        def is_text(value: Any) -> bool:
            return value is None or (isinstance(value, str) and is_unicode(value))

        are_ids = isinstance(suffix, tuple) and all(is_int(each, 0) for each in suffix)
        for key, valid, expected in (
            ("layer", is_int(self.layer, 0), "a block number from 0"),
            ("layers", self._lists_layer(), "block numbers from 0, the layer among them"),
            ("d_model", is_int(self.d_model, 1), "a width from 1"),
            (
                "vectors",
                self.vectors is None or is_int(self.vectors, 1),
                "a number of vectors from 1",
            ),
            ("marker_id", self.marker_id is None or is_int(self.marker_id, 0), "a token id"),
            ("marker", marker is None or (marker and is_text(marker)), "the text of a token"),
            ("left_id", self.left_id is None or is_int(self.left_id, 0), "a token id"),
            ("right_id", self.right_id is None or is_int(self.right_id, 0), "a token id"),
            ("baseline", isinstance(given["baseline"], Baseline | None), "a Baseline(...)"),
            ("injection", isinstance(given["injection"], Injection), "an Injection(...)"),
            ("system", is_text(given["system"]), "a text"),
            ("prefill", is_text(given["prefill"]), "a text"),
            ("thinking", isinstance(given["thinking"], bool | None), "True, False or None"),
            ("base_model", name is None or (isinstance(name, str) and name), "a model's name"),
            ("base_config", isinstance(given["base_config"], str | None), "a fingerprint"),
            ("ar_suffix_ids", suffix is None or are_ids, "token ids"),
        ):
            if not valid:
                got = shown(given[key])
                raise CheckpointError(f"{self.where(key)} is {got}, expected {expected}.")
        if marker is None and self.marker_id is None:
            raise CheckpointError(
                "The checkpoint has neither marker nor marker_id. Pass the token at which vectors "
                "are written, by its text or by its id: Checkpoint(..., marker=' ?')."
            )
        if isinstance(self.template, str) and QUESTION_SLOT in self.template:
            self._check_template("template", MARKER_SLOT, QUESTION_SLOT, LAYER_SLOT, DEPTH_SLOT)
        else:
            self._check_template("template", MARKER_SLOT, LAYER_SLOT, DEPTH_SLOT, several=True)
        slots = self.template.count(MARKER_SLOT)
        if self.vectors not in (None, 1, slots):
            raise CheckpointError(
                f"{self.where('vectors')} is {self.vectors}, but the template has {MARKER_SLOT} "
                f"{slots} times, expected one for each vector: {shown(self.template)}."
            )
        if self.ar_template is not None:
            self._check_template("ar_template", EXPLANATION_SLOT)

    @property
    def asks(self) -> bool:
        """Whether it is an activation oracle, which answers a question about its vectors."""
        return QUESTION_SLOT in self.template

    @staticmethod
    def load(path_or_id: str | Path, *, injection: Injection | None = None) -> Checkpoint:
        """Read the sidecar of a local folder or a Hub repository.

        Args:
            path_or_id: A folder with an ``nla_meta.yaml``, such a file itself, or a Hub id
                ``owner/name``. A known repository without a sidecar gets its preset; `source` says
                so.
            injection: How the vector is written, in place of what the sidecar says.

        Raises:
            CheckpointError: There is no sidecar, or it is malformed, contradictory or incomplete.
        """
        if not isinstance(path_or_id, str | Path):
            raise CheckpointError(
                f"Checkpoint.load({shown(path_or_id)}): expected the path of a folder or of a "
                "sidecar, or a Hub id of the form 'owner/name'."
            )
        name = str(path_or_id)
        file = sidecar.find(name, tuple(PRESETS))
        if file is None:
            preset = Checkpoint.preset(name)
            if injection is not None:
                source = {**preset.source, "injection": "the caller"}
                return replace(preset, injection=injection, source=source)
            return preset
        raw = sidecar.read_bytes(file)
        checkpoint = parse_sidecar(sidecar.parse(raw, file), str(file), name, injection)
        digest = hashlib.sha256(raw).hexdigest()
        found = _calibration(name, digest, checkpoint.d_model)
        return replace(checkpoint, sidecar_hash=digest, calibration=found)

    @staticmethod
    def preset(name: str) -> Checkpoint:
        """Return the built-in description of a published checkpoint, by its Hub id.

        Raises:
            CheckpointError: There is no preset of that name.
        """
        if name not in PRESETS:
            raise CheckpointError(
                f"There is no preset named {name!r}. Built in: {', '.join(sorted(PRESETS))}. "
                "Describe any other checkpoint with NLA(..., checkpoint=Checkpoint(...))."
            )
        preset = PRESETS[name]
        names = [each for each in (*dialects.KEYS, "injection") if vars(preset)[each] is not None]
        return replace(preset, source=dict.fromkeys(names, f"preset {name}"))

    @property
    def slots(self) -> int:
        """How many vectors one explanation is of."""
        return self.vectors or 1

    @property
    def tells_layer(self) -> bool:
        """Whether the template has a slot for the layer that is not filled in yet."""
        return LAYER_SLOT in self.template or DEPTH_SLOT in self.template

    def at_layer(self, layer: int) -> Checkpoint:
        """Return the checkpoint for the residuals of another block that it was trained on.

        What was measured at one block does not hold at another, so the result has no `baseline`
        and no `calibration`.

        Args:
            layer: The block, counted from 0.

        Raises:
            CheckpointError: The verbalizer was not trained on this block.
        """
        if not is_int(layer, 0):
            raise CheckpointError(f"layer={shown(layer)}: expected a block's number, from 0.")
        if layer == self.layer:
            return self
        told = self.layers or (self.layer,)
        if layer not in told:
            raise CheckpointError(
                f"layer={shown(layer)}: the verbalizer was trained on "
                f"{'layer' if len(told) == 1 else 'layers'} {', '.join(map(str, told))}. If it was "
                "trained on more, list them: NLA(..., "
                "checkpoint=dataclasses.replace(Checkpoint.load(path), layers=(...)))."
            )
        source = {**self.source, "layer": "the caller"}
        return replace(self, layer=layer, baseline=None, calibration=None, source=source)

    def at_depth(self, blocks: int) -> Checkpoint:
        """Return the checkpoint with ``{layer}`` and ``{depth_pct}`` in its template filled in.

        Verbalizers of several layers have these slots. The depth is that of the layer in percent,
        ``round(100 * layer / blocks)``. The result is for one layer, so its `layers` is ``None``.

        Args:
            blocks: The number of blocks of the target.

        Raises:
            CheckpointError: The target has no block `layer`.
        """
        if not self.tells_layer:
            return self
        if not is_int(blocks, self.layer + 1):
            slot = DEPTH_SLOT if DEPTH_SLOT in self.template else LAYER_SLOT
            raise CheckpointError(
                f"{self.where('layer')} is {self.layer}, but the target has {blocks!r} blocks: "
                f"{slot} in the template cannot be filled in."
            )
        percent = round(100 * self.layer / blocks)
        said = {LAYER_SLOT: str(self.layer), DEPTH_SLOT: f"{percent}"}
        filled = " and ".join(
            f"{slot} is {value}" for slot, value in said.items() if slot in self.template
        )
        filled += f", block {self.layer} of {blocks}"
        origin = self.source.get("template")
        source = {**self.source, "template": f"{origin}; {filled}" if origin else filled}
        template = self.template
        for slot, value in said.items():
            template = template.replace(slot, value)
        return replace(self, template=template, layers=None, source=source)

    def on_date(self, date: Date) -> Checkpoint:
        """Return the checkpoint with the date that the caller chose for its prompt.

        Raises:
            CheckpointError: It is not a date.
        """
        source = {**self.source, "date": "the caller"}
        return replace(self, date=to_iso(date), source=source)

    def to_sidecar(self, role: str, **extra: Any) -> dict[str, Any]:
        """Return this checkpoint as a ``schema_version: 2`` sidecar, ready for `yaml.safe_dump`.

        Args:
            role: ``"av"`` or ``"ar"``.
            extra: More top-level entries, such as ``stage`` or ``trained_on``.

        Raises:
            CheckpointError: No sidecar can describe the injection.
        """
        return {**dialects.write(vars(self), role), **extra}

    def where(self, name: str) -> str:
        """Return the name of a field, with the origin of its value if it is known."""
        return f"{name} ({self.source[name]})" if name in self.source else name

    def _lists_layer(self) -> bool:
        """Return whether `layers` is absent, or lists blocks of which `layer` is one."""
        if self.layers is None:
            return True
        listed = isinstance(vars(self)["layers"], tuple) and all(is_int(k, 0) for k in self.layers)
        return listed and self.layer in self.layers

    def _baseline(self, fields: Mapping[str, Any]) -> Baseline:
        try:
            return Baseline(**fields)
        except (TypeError, ReconstructionError) as error:
            raise CheckpointError(f"{self.where('baseline')}: {error}") from error

    def _date(self, date: Any) -> str:
        try:
            return to_iso(date)
        except CheckpointError:
            raise CheckpointError(
                f"{self.where('date')} is {shown(date)}, expected a date such as '2026-11-26'."
            ) from None

    def _check_template(self, name: str, slot: str, *others: str, several: bool = False) -> None:
        template = getattr(self, name)
        if isinstance(template, str) and not is_unicode(template):
            raise CheckpointError(
                f"{self.where(name)} is not Unicode: it has half of a surrogate pair. It is "
                f"{shown(template)}."
            )
        found = template.count(slot) if isinstance(template, str) else 0
        if found != 1 and not (several and found > 1):
            raise CheckpointError(
                f"{self.where(name)} contains {slot} {found} times, expected "
                f"{'at least' if several else 'exactly'} once: {shown(template)}."
            )
        if template.count(QUESTION_SLOT) > 1:
            raise CheckpointError(
                f"{self.where(name)} contains {QUESTION_SLOT} {template.count(QUESTION_SLOT)} "
                f"times, expected at most once: {shown(template)}."
            )
        unknown = sorted(set(re.findall(r"\{\w+\}", template)) - {slot, *others})
        if unknown:
            raise CheckpointError(
                f"{self.where(name)} has slots that nnsight_nla does not know: "
                f"{', '.join(unknown)}. Fill them in and pass "
                f"NLA(..., checkpoint=Checkpoint({name}=...))."
            )


def _calibration(name: str, digest: str, d_model: int) -> Calibration | None:
    """Read the calibration of a folder or a repository, if it has one for this sidecar.

    Raises:
        CheckpointError: It is malformed.
    """
    if Path(name).expanduser().is_file():
        return None
    path = sidecar.stored(name, CALIBRATION)
    if path is None:
        return None
    found = Calibration.from_dict(sidecar.parse(sidecar.read_bytes(path), path), str(path))
    if found.sidecar_hash not in (None, digest):
        warnings.warn(
            f"{path} was measured on another checkpoint than its folder holds, so it is not used. "
            "Measure again: nnsight-nla calibrate.",
            NLAWarning,
            stacklevel=3,
        )
        return None
    if found.residuals is not None and len(found.residuals.mean) != d_model:
        raise CheckpointError(
            f"{path}: residuals has a mean of {len(found.residuals.mean)} numbers, expected "
            f"d_model, {d_model}. Measure again: nnsight-nla calibrate."
        )
    return found


def parse_sidecar(
    content: object, file: str, name: str = "", injection: Injection | None = None
) -> Checkpoint:
    """Turn a parsed sidecar of any dialect into a `Checkpoint`.

    Args:
        content: The parsed YAML or JSON.
        file: The path of the file, for messages and `Checkpoint.source`.
        name: The Hub id of the checkpoint. If it is known, its preset supplies what the sidecar
            lacks.
        injection: The caller's injection, which overrides the sidecar and the preset.
    """
    fields, source = dialects.read_fields(content, file)
    preset = PRESETS.get(name)
    if injection is not None:
        found = injection, "the caller"
    else:
        known = None if preset is None else (preset.injection, f"preset {name}")
        found = dialects.read_injection(content, file, known)
    fields["injection"], source["injection"] = found
    if preset and (preset.layer, preset.d_model) == (fields["layer"], fields["d_model"]):
        for key in {"base_model", "baseline"} - set(fields):
            fields[key], source[key] = getattr(preset, key), f"preset {name}"
    return Checkpoint(**fields, source=source)


PRESETS = {
    name: Checkpoint(**fields) for name, fields in {**PRESET_FIELDS, **ORACLE_FIELDS}.items()
}
"""The published checkpoints by their Hub id; see `presets` and `oracle_presets`."""
