"""Store a handle in one Parquet file, and read it without a model.

The rows are those of `Explanation.to_pandas`, a row per vector and sample, with the vector, the
reply as it was generated and the whole trust label (JSON) in further columns. What all rows share
(the shape, the receipt, what the vectors are) is JSON in the schema's metadata, under
``nnsight_nla.explanation``, so the file can also be explained or labelled again as a data set of
vectors.

The file of an oracle's answers has further columns (the question, the number of slots, the
probability of each choice and their sum), and ``activation_vectors``, the vectors of a row's slots,
in place of ``activation_vector``.
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
from ..core.answer_trust import AnswerTrust
from ..core.numeric import is_int
from ..core.sampling import Sampling
from ..core.trust import Trust
from ..errors import NLAError, shown
from ..storage.rows import Format
from .asked import Asked
from .handle import Explanation
from .records import Capture, Receipt, Reply
from .unavailable import Unavailable

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = Format("nnsight_nla.explanation", 1, "an explanation", "handle.to_parquet(path)")
VECTOR = "activation_vector"  # As in the published data sets.
VECTORS = "activation_vectors"
_DTYPES = ("bfloat16", "float16", "float32", "float64")
_KNOWN = ("token", "position", "next_token")
"""The columns that exist if they were passed to ``explain()``."""
_FINISH = ("tag", "eos", "length", "cut", "choice")


def write(handle: Explanation, records: Sequence[dict[str, Any]], path: Path) -> None:
    """Write a handle whose texts have been generated, and its records.

    Raises:
        NLAError: The disk is full, the file cannot be written, or a text is not valid Unicode.
    """
    import pyarrow as pa

    capture, asked = handle.capture, handle.capture.asked
    captured = cast("Tensor", capture.vectors)
    held, d_model = capture.samples, captured.shape[-1]
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
        if asked is not None:
            made["slots"] = asked.slots[row]
            made["probabilities"] = list(record.get("probabilities", {}).items())
        if reply is not None:
            made |= {"raw": reply.raw, "opened": reply.opened, "new_tokens": reply.new_tokens}
        rows.append(made)
    table = FORMAT.table(path, rows, _columns(asks=asked is not None))
    wide = torch.float64 if captured.dtype == torch.float64 else torch.float32
    flat = captured[handle.rows].cpu().to(wide).repeat_interleave(held, dim=0)
    if asked is not None:
        flat = flat[_written([row["slots"] for row in rows], captured.shape[1])]
    column: Any = pa.FixedSizeListArray.from_arrays(pa.array(flat.numpy().reshape(-1)), d_model)
    if asked is not None:
        ends = np.cumsum([0, *(row["slots"] for row in rows)], dtype=np.int32)
        column = pa.ListArray.from_arrays(ends, column)
    origin = handle.origin.to_dict()
    note: dict[str, Any] = {
        "shape": list(handle.shape),
        "lengths": None if handle.lengths is None else list(handle.lengths),
        "samples": held,
        "dtype": str(captured.dtype).removeprefix("torch."),
        "null": capture.null,
        "known": [name for name in _KNOWN if getattr(capture, f"{name}s") is not None],
        "ignored": list(capture.ignored),
        "asked": None if asked is None else _asked_note(asked, captured.shape[1]),
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
    name = VECTOR if asked is None else VECTORS
    FORMAT.write(path, table.append_column(name, column), note)


def read(path: Path) -> Explanation:
    """Read what `write` wrote.

    Raises:
        NLAError: The file does not hold a handle, or one of a later version.
    """
    table, note = FORMAT.read(path)
    try:
        columns = FORMAT.select(path, table, _columns(asks=note.get("asked") is not None))
        rows = columns.to_pylist()
        return _handle(path, rows, _vectors(table, rows, note), note)
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
    asked = _asked(firsts, note)
    answers = asked is not None and bool(asked.questions)
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
        asked=asked,
    )
    for number, each in enumerate(rows):
        row, sample = divmod(number, samples)
        if each["sample"] != sample:
            raise ValueError(f"row {number} is sample {each['sample']}, expected {sample}")
        if each["error"] is not None:
            capture.errors[row] = each["error"]
        else:
            capture.replies[row, sample] = _reply(each, asked)
    for row, each in enumerate(firsts):
        if each["label"] is not None:
            kind = AnswerTrust if answers else Trust
            capture.trust[row] = kind.from_dict(json.loads(each["label"]))
    return Explanation.of(capture, shape)


def _known(rows: list[dict[str, Any]], note: dict[str, Any], name: str) -> list[Any] | None:
    if name not in note["known"]:
        return None
    found = [row[name] for row in rows]
    if None in found:
        raise ValueError(f"row {found.index(None)} has no {name}")
    return found


def _asked_note(asked: Asked, slots: int) -> dict[str, Any]:
    """Return what the questions of all rows share.

    Args:
        asked: The questions.
        slots: The number of slots that the captured vectors have room for.
    """
    return {"layer": asked.layer, "choices": list(asked.choices), "slots": slots}


def _asked(rows: list[dict[str, Any]], note: dict[str, Any]) -> Asked | None:
    """Return the questions of the rows, without prompts, which no model will read."""
    held = note.get("asked")
    if held is None:
        return None
    questions, slots = [row["question"] for row in rows], tuple(row["slots"] for row in rows)
    if not is_int(held["layer"], 0) or not all(isinstance(each, str) for each in held["choices"]):
        raise TypeError(f"its questions are of {shown(held)}")
    if any(questions) and not all(questions):
        raise ValueError(f"row {[bool(each) for each in questions].index(False)} has no question")
    asked = tuple(questions) if any(questions) else ()
    return Asked(asked, (), slots, held["layer"], tuple(held["choices"]))


def _written(slots: Sequence[int], most: int) -> Tensor:
    """Return which of `most` slots each row has vectors for, as booleans ``[rows, most]``."""
    counts = torch.tensor(slots, dtype=torch.int64, device="cpu")
    return torch.arange(most, dtype=torch.int64, device="cpu") < counts[:, None]


def _reply(row: dict[str, Any], asked: Asked | None) -> Reply:
    if row["finish"] not in _FINISH:
        raise ValueError(f"finish is {shown(row['finish'])}, expected one of {', '.join(_FINISH)}")
    for name in ("raw", "text", "new_tokens", "marker_norm_before", "marker_norm_after"):
        if row[name] is None:
            raise ValueError(f"a row without an error has no {name}")
    near = row["injection_cosine"]
    choices = () if asked is None else asked.choices
    shares = dict(row.get("probabilities") or ())
    if choices != tuple(shares):
        raise ValueError(f"it has probabilities of {shown(list(shares))}, not of {shown(choices)}")
    return Reply(
        row["raw"],
        row["text"],
        row["finish"],
        row["new_tokens"],
        row["marker_norm_before"],
        row["marker_norm_after"],
        math.nan if near is None else near,
        row["opened"] or "",
        tagged=asked is None or not asked.questions,
        probabilities=tuple(shares.values()),
        mass=row.get("mass"),
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


def _vectors(table: Any, rows: list[dict[str, Any]], note: dict[str, Any]) -> Tensor:
    """Return the vectors of all rows, as they were captured."""
    import pyarrow as pa

    d_model, dtype, asked = note["d_model"], note["dtype"], note.get("asked")
    if dtype not in _DTYPES or not is_int(d_model, 1):
        raise TypeError(f"its vectors are {shown(dtype)}, of width {shown(d_model)}")
    kind: Any = pa.list_(pa.float64() if dtype == "float64" else pa.float32(), d_model)
    name, counts = VECTOR, [1] * len(rows)
    if asked is not None:
        name, kind, counts = VECTORS, pa.list_(kind), [row["slots"] for row in rows]
    column = table[name].cast(kind).combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], kind)
    if asked is not None:
        lengths = column.value_lengths().to_pylist()
        if lengths != counts or not is_int(asked["slots"], max(counts, default=0)):
            raise ValueError(f"its {VECTORS} do not have as many vectors as its slots say")
        column = column.flatten()
    flat = column.flatten().to_numpy(zero_copy_only=False)
    if flat.size != sum(counts) * d_model:
        raise ValueError(f"{len(table)} rows have {flat.size} numbers in {name}")
    held = torch.from_numpy(flat.copy()).reshape(-1, d_model).to(getattr(torch, dtype))
    if asked is None:
        return held
    most = asked["slots"]
    padded = torch.zeros(len(rows), most, d_model, dtype=held.dtype, device="cpu")
    padded[_written(counts, most)] = held
    return padded


def _columns(*, asks: bool) -> Any:
    import pyarrow as pa

    text, number, whole = pa.string(), pa.float64(), pa.int64()
    of_question = [
        ("question", text), ("slots", whole), ("probabilities", pa.map_(text, number)),
        ("mass", number),
    ]  # fmt: skip
    return pa.schema(
        [
            ("index", pa.list_(whole)), ("token", text), ("position", whole), ("sample", whole),
            ("text", text), ("snippets", pa.list_(text)), ("finish", text), ("norm", number),
            ("marker_norm_before", number), ("marker_norm_after", number),
            ("injection_cosine", number), ("reconstruction_cosine", number), ("fve", number),
            ("grade", text), ("trust", text), ("grounded", text), ("warnings", pa.list_(text)),
            ("error", text), ("raw", text), ("opened", text), ("new_tokens", whole),
            ("next_token", pa.list_(text)), ("label", text),
            *(of_question if asks else []),
        ]
    )  # fmt: skip
