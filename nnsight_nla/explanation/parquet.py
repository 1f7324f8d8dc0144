"""Store a handle in one Parquet file, and read it without a model.

The rows are those of `Explanation.to_pandas`, a row per vector and sample, with the vector, the
reply as it was generated and the whole trust label (JSON) in further columns. What all rows share
(the shape, the receipt, what the vectors are) is JSON in the schema's metadata, under
``nnsight_nla.explanation``, so the file can also be explained or labelled again as a data set of
vectors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from ..checkpoint.origin import Origin
from ..core.numeric import is_int
from ..core.sampling import Sampling
from ..core.trust import Trust
from ..errors import NLAError, shown
from ..storage.rows import Format
from .handle import Explanation
from .records import Capture, Receipt, Reply
from .unavailable import Unavailable

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = Format("nnsight_nla.explanation", 1, "an explanation", "handle.to_parquet(path)")
VECTOR = "activation_vector"  # As in the published data sets.
_DTYPES = ("bfloat16", "float16", "float32", "float64")
_KNOWN = ("token", "position", "next_token")
"""The columns that exist if they were passed to ``explain()``."""
_FINISH = ("tag", "eos", "length", "cut")


def write(handle: Explanation, records: Sequence[dict[str, Any]], path: Path) -> None:
    """Write a handle whose texts have been generated, and its records.

    Raises:
        NLAError: The disk is full, the file cannot be written, or a text is not valid Unicode.
    """
    import pyarrow as pa

    capture, vectors = handle.capture, handle.vectors
    held, d_model = capture.samples, vectors.shape[-1]
    rows: list[dict[str, Any]] = []
    for number, record in enumerate(records):
        row, sample = handle.rows[number // held], number % held
        reply, label = capture.replies.get((row, sample)), record["label"]
        following = capture.next_tokens
        made = {
            **record,
            "label": None if label is None else json.dumps(label, allow_nan=False),
            "trust": None if label is None else label["line"],
            "next_token": None if following is None else list(following[row]),
        }
        if reply is not None:
            made |= {"raw": reply.raw, "opened": reply.opened, "new_tokens": reply.new_tokens}
        rows.append(made)
    table = FORMAT.table(path, rows, _columns())
    wide = torch.float64 if vectors.dtype == torch.float64 else torch.float32
    flat = vectors.cpu().to(wide).reshape(-1, d_model).repeat_interleave(held, dim=0)
    column = pa.FixedSizeListArray.from_arrays(pa.array(flat.numpy().reshape(-1)), d_model)
    origin = handle.origin.to_dict()
    note: dict[str, Any] = {
        "shape": list(handle.shape),
        "lengths": None if handle.lengths is None else list(handle.lengths),
        "samples": held,
        "dtype": str(vectors.dtype).removeprefix("torch."),
        "null": capture.null,
        "known": [name for name in _KNOWN if getattr(capture, f"{name}s") is not None],
        "ignored": list(capture.ignored),
        "origin": origin,
        "receipt": asdict(capture.queue.receipt(capture)),
        # The same where a sidecar has it, for readers of data sets.
        "d_model": d_model,
        "base_model": origin.get("model"),
        "extraction": {
            "layer_index": origin.get("layer"),
            "norm": origin.get("norm"),
            "kind": origin.get("kind"),
        },
    }
    FORMAT.write(path, table.append_column(VECTOR, column), note)


def read(path: Path) -> Explanation:
    """Read what `write` wrote.

    Raises:
        NLAError: The file does not hold a handle, or one of a later version.
    """
    table, note = FORMAT.read(path)
    try:
        columns = FORMAT.select(path, table, _columns())
        return _handle(path, columns.to_pylist(), _vectors(table, note), note)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise FORMAT.damaged(path, str(error)) from error
    except NLAError as error:
        if str(path) in str(error):
            raise
        raise FORMAT.damaged(path, str(error)) from error


def _handle(
    path: Path, rows: list[dict[str, Any]], vectors: Tensor, note: dict[str, Any]
) -> Explanation:
    shape, lengths, samples = _shape(note)
    count = math.prod(shape)
    if len(rows) != count * samples:
        raise ValueError(f"it has {len(rows)} rows, expected {count * samples}")
    receipt = dict(note["receipt"])
    sampling = Sampling(**receipt.pop("sampling"))
    receipt = Receipt(**receipt, sampling=sampling)
    if not isinstance(receipt.verbalizer, str) or not isinstance(receipt.prompt_hash, str):
        raise TypeError("its receipt names no verbalizer or no prompt")
    origin = Origin(**note["origin"], source=dict.fromkeys(note["origin"], path.name))
    queue = Unavailable(
        f"This handle was read from {path}, without a model: it has what the file holds. For "
        "more, hand its vectors to an NLA: nla.explain(handle.vectors).",
        receipt,
    )
    firsts = rows[::samples]
    tokens, positions, following = (_known(firsts, note, name) for name in _KNOWN)
    capture = Capture(
        queue,
        vectors[::samples].clone(),
        count,
        samples,
        sampling,
        null=bool(note["null"]),
        tokens=tokens,
        positions=positions,
        width=shape[-1] if shape else 1,
        lengths=lengths,
        next_tokens=None if following is None else list(map(tuple, following)),
        origin=origin,
        ignored=tuple(map(str, note["ignored"])),
        stored_warnings={
            row: tuple(each["warnings"]) for row, each in enumerate(firsts) if each["warnings"]
        },
    )
    for number, each in enumerate(rows):
        row, sample = divmod(number, samples)
        if each["sample"] != sample:
            raise ValueError(f"row {number} is sample {each['sample']}, expected {sample}")
        if each["error"] is not None:
            capture.errors[row] = each["error"]
        else:
            capture.replies[row, sample] = _reply(each)
    for row, each in enumerate(firsts):
        if each["label"] is not None:
            capture.trust[row] = Trust.from_dict(json.loads(each["label"]))
    return Explanation.of(capture, shape)


def _known(rows: list[dict[str, Any]], note: dict[str, Any], name: str) -> list[Any] | None:
    if name not in note["known"]:
        return None
    found = [row[name] for row in rows]
    if None in found:
        raise ValueError(f"row {found.index(None)} has no {name}")
    return found


def _reply(row: dict[str, Any]) -> Reply:
    if row["finish"] not in _FINISH:
        raise ValueError(f"finish is {shown(row['finish'])}, expected one of {', '.join(_FINISH)}")
    for name in ("raw", "text", "new_tokens", "marker_norm_before", "marker_norm_after"):
        if row[name] is None:
            raise ValueError(f"a row without an error has no {name}")
    near = row["injection_cosine"]
    return Reply(
        row["raw"],
        row["text"],
        row["finish"],
        row["new_tokens"],
        row["marker_norm_before"],
        row["marker_norm_after"],
        math.nan if near is None else near,
        row["opened"] or "",
    )


def _shape(note: dict[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...] | None, int]:
    shape, lengths, samples = note["shape"], note["lengths"], note["samples"]
    for name, given in (("shape", shape), ("lengths", lengths or [])):
        listed = cast("list[Any]", given if isinstance(given, list) else [None])
        if not all(is_int(each, 0) for each in listed):
            raise TypeError(f"its {name} is {shown(given)}")
    if not is_int(samples, 1):
        raise TypeError(f"its samples is {shown(samples)}")
    if lengths is not None and sum(lengths) != math.prod(shape):
        raise ValueError(f"its lengths are {shown(lengths)}, of the shape {shown(shape)}")
    return tuple(shape), None if lengths is None else tuple(lengths), samples


def _vectors(table: Any, note: dict[str, Any]) -> Tensor:
    """Return the vectors of all rows, in the dtype that they were captured in."""
    import pyarrow as pa

    d_model, dtype = note["d_model"], note["dtype"]
    if dtype not in _DTYPES or not is_int(d_model, 1):
        raise TypeError(f"its vectors are {shown(dtype)}, of width {shown(d_model)}")
    wide = pa.float64() if dtype == "float64" else pa.float32()
    column = table[VECTOR].cast(pa.list_(wide, d_model)).combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else None
    flat = np.empty(0) if column is None else column.flatten().to_numpy(zero_copy_only=False)
    if flat.size != len(table) * d_model:
        raise ValueError(f"{len(table)} rows have {flat.size} numbers in {VECTOR}")
    held = torch.from_numpy(flat.copy()).reshape(-1, d_model)
    return held.to(getattr(torch, dtype))


def _columns() -> Any:
    import pyarrow as pa

    text, number, whole = pa.string(), pa.float64(), pa.int64()
    return pa.schema(
        [
            ("index", pa.list_(whole)), ("token", text), ("position", whole), ("sample", whole),
            ("text", text), ("snippets", pa.list_(text)), ("finish", text), ("norm", number),
            ("marker_norm_before", number), ("marker_norm_after", number),
            ("injection_cosine", number), ("reconstruction_cosine", number), ("fve", number),
            ("grade", text), ("trust", text), ("grounded", text), ("warnings", pa.list_(text)),
            ("error", text), ("raw", text), ("opened", text), ("new_tokens", whole),
            ("next_token", pa.list_(text)), ("label", text),
        ]
    )  # fmt: skip
