"""Compare what a file or handle claims about its vectors with the checkpoint that reads them.

A vector looks like any other of its width, and one of another block or model gets a fluent text
that is wrong. Whatever comes with vectors (a sidecar, the columns of a table, the metadata of a
file, a handle) is therefore read as an `Origin` and compared with the checkpoint that reads them::

    origin = Origin.from_sidecar(tree, "rows.parquet.nla_meta.yaml")
    origin.check(checkpoint, "rows.parquet")     # raises if it is another model's or block's

A field is ``None`` where nothing is claimed, and nothing is then compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from ..core.numeric import is_int
from ..errors import CheckpointError, NLAError, shown
from . import dialects, sidecar
from .identity import same_model

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

Kind = Literal["residual", "difference", "direction"]
"""A residual as it was read, a difference of two residuals, or a direction of some other source."""
Claims = Literal["check", "ignore"]
"""Whether vectors of another origin are refused, or used and reported."""

_NAMES: dict[str, tuple[str, ...]] = {
    "model": ("base_model", "activation_model", "model_name", "model", "base_checkpoint"),
    "layer": (
        "activation_layer", "layer", "layer_index", "extraction_layer_index", "hook_layer",
        "hook_name", "hook_point",
    ),
    "d_model": ("d_model", "d_in"),
    "norm": ("norm",),
    "kind": ("vector_kind", "kind"),
    "config": ("base_config",),
}  # fmt: skip
"""The names that each field has in the metadata of a file."""
COLUMNS = ("activation_layer", "layer", "layer_index", "base_model", "activation_model")
"""The columns of a table that claim something about its vectors."""
_KEYS = {"model": "base_model", "config": "base_config"}
"""The names that fields have in a `Checkpoint`, where they differ."""
_HOOK = re.compile(r"blocks\.(\d+)\.hook_(resid_post|out|resid_pre|in)")
_ASSUMED = "assumed"
_ACTIVATION = "activation_"
"""The beginning of a column's name in data sets of several blocks."""


@dataclass(frozen=True)
class Origin:
    """What is claimed about vectors: model, block, width, norm and kind."""

    model: str | None = None
    """The name of the model that they were read from."""
    layer: int | None = None
    """K: they are the output of this block, counted from 0."""
    d_model: int | None = None
    """Their width."""
    norm: str | None = None
    """``"none"`` for raw vectors, or how they were normalised."""
    kind: Kind | None = None
    """What they are."""
    config: str | None = None
    """The fingerprint of the model's configuration; see `identity.fingerprint`."""
    source: Mapping[str, str] = field(default_factory=dict[str, str], compare=False)
    """Field name to the place where it was found."""

    def __post_init__(self) -> None:
        """Check the fields; they may come from a file.

        Raises:
            CheckpointError: One of them has another type.
        """
        for name, valid, expected in (
            ("model", isinstance(self.model, str | None), "a model's name"),
            ("layer", self.layer is None or is_int(self.layer, 0), "a block number from 0"),
            ("d_model", self.d_model is None or is_int(self.d_model, 1), "a width from 1"),
            ("norm", isinstance(self.norm, str | None), "a word such as none"),
            ("kind", self.kind in (None, *get_args(Kind)), ", ".join(get_args(Kind))),
            ("config", isinstance(self.config, str | None), "a fingerprint"),
        ):
            if not valid:
                value = shown(getattr(self, name))
                raise CheckpointError(f"{self._where(name)} is {value}, expected {expected}.")

    @staticmethod
    def of(checkpoint: Checkpoint) -> Origin:
        """Return the origin of the vectors that a verbalizer was trained on."""
        return Origin(
            checkpoint.base_model,
            checkpoint.layer,
            checkpoint.d_model,
            "none",
            "residual",
            checkpoint.base_config,
            {
                "model": checkpoint.source.get("base_model", "the checkpoint"),
                "layer": checkpoint.source.get("layer", "the checkpoint"),
            },
        )

    @staticmethod
    def from_sidecar(tree: object, file: str, column: str | None = None) -> Origin:
        """Read the origin of the vectors that a sidecar belongs to.

        Args:
            tree: The parsed sidecar. It may have any other content, or none.
            file: Its path, for messages.
            column: The column that holds the vectors, for a data set with a column for each block
                (``extraction.checkpoints``).

        Raises:
            CheckpointError: It is not a mapping, contradicts itself, or says that they are not the
                output of a block.
        """
        fields, source = dialects.find_fields(tree, file)
        extraction = cast("dict[str, Any]", tree).get("extraction")
        extraction = cast("dict[str, Any]", extraction if isinstance(extraction, dict) else {})
        held = {name: _KEYS.get(name, name) for name in ("model", "layer", "d_model", "config")}
        found = {name: fields.get(key) for name, key in held.items()}
        where = {name: source[key] for name, key in held.items() if key in source}
        for name in ("norm", "kind"):
            found[name] = extraction.get(name)
            where[name] = f"extraction.{name} in {file}"
        if found["norm"] is None:
            found["norm"], where["norm"] = dialects.find_norm(tree), f"activation_norm in {file}"
        of_column = _of_column(extraction, file, column)
        return Origin(**found, source=where)._without(extraction.get(_ASSUMED)).joined(of_column)

    @staticmethod
    def next_to(path: Path, column: str | None = None) -> Origin:
        """Return what the sidecars next to a file, or in a folder, say about its vectors.

        Args:
            path: The file or the folder.
            column: The column that holds the vectors.

        Raises:
            CheckpointError: One of them cannot be read, or they contradict each other.
        """
        files = [path.with_name(path.name + sidecar.DATASET_SUFFIX)]
        if path.is_dir():
            files += [path / name for name in sidecar.SIDECARS]
            files += sorted(path.glob(f"*{sidecar.DATASET_SUFFIX}"))
        found = [
            Origin.from_sidecar(sidecar.read(file), file.name, column)
            for file in files
            if file.is_file()
        ]
        return Origin().joined(*found)

    @staticmethod
    def from_metadata(entries: Mapping[str, Any], file: str) -> Origin:
        """Read the origin from a file's metadata: names to strings, some of them JSON.

        A sidecar in JSON under any name is read as one, and a TransformerLens hook such as
        ``blocks.3.hook_resid_post`` as a layer.

        Args:
            entries: The metadata.
            file: The file, for messages.

        Raises:
            CheckpointError: They contradict each other.
        """
        found: dict[str, Any] = {}
        source: dict[str, str] = {}
        nested: list[Origin] = []
        for key, value in entries.items():
            tree = _json(value)
            if isinstance(tree, dict):
                inner = {"extraction": tree} if key == "extraction" else tree
                nested.append(Origin.from_sidecar(inner, f"{key} in the metadata of {file}"))
        for name, keys in _NAMES.items():
            for key in keys:
                value = _scalar(name, entries.get(key))
                if value is not None:
                    found[name], source[name] = value, f"{key} in the metadata of {file}"
                    break
        return Origin(**found, source=source).joined(*nested)

    @staticmethod
    def from_columns(values: Mapping[str, Iterable[Any]], file: str) -> Origin:
        """Read the origin from the columns of a table, where all its rows agree.

        Args:
            values: Column to its values; of `COLUMNS`.
            file: The table, for messages.
        """
        found: dict[str, Any] = {}
        source: dict[str, str] = {}
        for column, held in values.items():
            name = next(each for each, keys in _NAMES.items() if column in keys)
            given = {_scalar(name, value) for value in held} - {None}
            if len(given) == 1 and name not in found:
                found[name], source[name] = given.pop(), f"column {column} of {file}"
        return Origin(**found, source=source)

    def joined(self, *others: Origin) -> Origin:
        """Return this origin with the fields that it lacks from others.

        Raises:
            CheckpointError: Two of them contradict each other.
        """
        fields = self.to_dict()
        source = dict(self.source)
        for other in others:
            for name, value in other.to_dict().items():
                if name not in fields:
                    fields[name] = value
                    source[name] = other.source.get(name, "")
                elif name != "config" and not _equal(name, fields[name], value):
                    here = replace(self, source=source)._where(name)
                    raise CheckpointError(
                        f"{here} is {fields[name]!r}, but {other._where(name)} is {value!r}. "
                        "Correct the one that is wrong, or remove it."
                    )
        return Origin(**fields, source=source)

    def completed(self, other: Origin) -> Origin:
        """Return this origin with what it does not say from another, which it may contradict."""
        mine, theirs = self.to_dict(), other.to_dict()
        if self.model is not None:
            theirs.pop("config", None)
        source = {name: place for name, place in other.source.items() if name not in mine}
        return Origin(**{**theirs, **mine}, source={**source, **self.source})

    def differences(self, other: Origin, *, any_kind: bool = False) -> list[str]:
        """List what is claimed here and is different there, a phrase each.

        Args:
            other: The origin that is expected.
            any_kind: Leave out the kind; a direction can be explained as well as a residual.
        """
        found: list[str] = []
        for name in ("model", "layer", "d_model", "norm", "kind"):
            here, there = getattr(self, name), getattr(other, name)
            if here is None or there is None or (name == "kind" and any_kind):
                continue
            if name == "model":
                equal = same_model(here, there, (self.config, other.config))
            else:
                equal = _equal(name, here, there)
            if not equal:
                found.append(f"{self._where(name)} is {here}, expected {there}")
        return found

    def check(
        self,
        expected: Checkpoint | Origin,
        what: str,
        *,
        claims: Claims = "check",
        any_kind: bool = False,
        insist: str | None = "claims='ignore'",
        error: type[NLAError] = NLAError,
    ) -> list[str]:
        """Refuse vectors of another origin, or say in what it differs.

        Args:
            expected: What is to read them.
            what: What holds them, for the message.
            claims: ``"ignore"`` uses them all the same.
            any_kind: Leave out the kind.
            insist: What to pass to use them all the same, for the message, if anything.
            error: The class of the error.

        Returns:
            The differences that are ignored; none if there are none.

        Raises:
            NLAError: The origin is another one, or `claims` is neither word.
        """
        if claims not in get_args(Claims):
            raise error(f"claims={shown(claims)}: expected 'check' or 'ignore'.")
        origin = expected if isinstance(expected, Origin) else Origin.of(expected)
        found = self.differences(origin, any_kind=any_kind)
        if found and claims == "check":
            listed = "; ".join(found)
            more = "" if insist is None else f"; to use them all the same, pass {insist}"
            raise error(
                f"{what} does not hold the vectors that this verbalizer reads: {listed}. Use the "
                "vectors of that model and block, or the verbalizer that was trained on these. If "
                f"the claim is wrong, correct it{more}."
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return what is claimed as plain data."""
        fields = asdict(self)
        del fields["source"]
        return {name: value for name, value in fields.items() if value is not None}

    def to_sidecar(self, checkpoint: Checkpoint, ignored: list[str]) -> dict[str, Any]:
        """Return the sidecar of a data set of these vectors, with a checkpoint's prompt.

        Args:
            checkpoint: The verbalizer's. It fills in what is not claimed, and that is said.
            ignored: The differences between the two that were ignored.

        Raises:
            CheckpointError: No sidecar can describe the injection.
        """
        full = self.completed(Origin.of(checkpoint)).to_dict()
        described = replace(
            checkpoint,
            base_model=full.get("model"),
            layer=full["layer"],
            layers=None,
            d_model=full["d_model"],
            base_config=full.get("config"),
            baseline=None if ignored else checkpoint.baseline,
        )
        tree: dict[str, Any] = {**described.to_sidecar("av"), "kind": "nla_dataset"}
        del tree["role"]
        assumed = sorted(set(full) - set(self.to_dict()) - {"config"})
        tree["extraction"] |= {
            "norm": full["norm"],
            "kind": full["kind"],
            **({_ASSUMED: assumed} if assumed else {}),
        }
        if ignored:
            tree["claims_ignored"] = list(ignored)
        return tree

    def _without(self, names: object) -> Origin:
        """Return this origin without fields that were assumed by whoever wrote them."""
        given = names if isinstance(names, list) else []
        blank = [name for name in asdict(self) if name in given and name != "source"]
        return replace(self, **dict.fromkeys(blank)) if blank else self

    def _where(self, name: str) -> str:
        place = self.source.get(name)
        return f"{name} ({place})" if place else name


def _of_column(extraction: Mapping[str, Any], file: str, column: str | None) -> Origin:
    """Return what ``extraction.checkpoints`` of a sidecar says about a column's vectors.

    Data sets of several blocks list them, each with a ``name``, its ``kind`` (``block_output`` or
    ``embedding``) and ``layer_index``; block ``name`` is in column ``activation_name``.
    """
    listed = extraction.get("checkpoints")
    entries = [
        cast("dict[str, Any]", each)
        for each in cast("list[Any]", listed if isinstance(listed, list) else [])
        if isinstance(each, dict)
    ]
    if len(entries) > 1:
        names = [f"{_ACTIVATION}{each.get('name')}" for each in entries]
        if column is None or not column.startswith(_ACTIVATION):
            return Origin()
        if names.count(column) != 1:
            raise CheckpointError(
                f"extraction.checkpoints in {file} lists vectors of several blocks, in the columns "
                f"{', '.join(names)}, and not of which one column {column} is. Read one of these, "
                "or add the column to the list."
            )
        entries = [entries[names.index(column)]]
    if not entries:
        return Origin()
    (entry,), place = entries, f"extraction.checkpoints in {file}"
    normed = entry.get("final_norm_applied") not in (None, False)
    if normed or entry.get("kind") not in (None, "block_output"):
        what = "after the final norm" if normed else f"of kind {shown(entry['kind'])}"
        raise CheckpointError(
            f"{place}: {shown(entry.get('name'))} is {what}. A verbalizer reads the output of a "
            "block (block_output), without a norm; take the vectors of one."
        )
    return Origin(layer=entry.get("layer_index"), source={"layer": place})


def _equal(name: str, here: Any, there: Any) -> bool:
    return same_model(here, there) if name == "model" else here == there


def _json(value: Any) -> Any:
    if not isinstance(value, str) or not value.lstrip().startswith("{"):
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


def _scalar(name: str, value: Any) -> Any:
    """Return a claim of metadata in the type of its field; ``None`` if it is none."""
    if value is None or isinstance(value, dict | list):
        return None
    text = str(value).strip()
    if name in ("layer", "d_model"):
        hook = _HOOK.search(text)
        if name == "layer" and hook:  # What enters block K is the output of block K - 1.
            layer = int(hook[1]) - (hook[2] in ("resid_pre", "in"))
            return layer if layer >= 0 else None
        number = re.fullmatch(r"(\d{1,9})(\.0)?", text)  # A column with gaps holds 3.0.
        return int(number[1]) if number else None
    if name == "kind":
        return text if text in get_args(Kind) else None
    if name == "norm" and re.fullmatch(r"[-+.\deE]+|nan|inf", text):
        return None  # The length of something.
    return text or None
