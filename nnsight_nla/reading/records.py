"""`Reading`: every token of a text with what the residual there is about; plain records, no model.

As a page, a table, a file::

    reading = nla.read(model, "The Eiffel Tower is in the city of")
    reading                              # in a notebook: the page
    reading[-1].explanation              # one token's
    reading.to_pandas()                  # a row per token
    reading.to_html("paris.html")        # one file, to be mailed or put in a supplement
    reading.beside(patched)              # two of them on one page, their difference marked

It has a record for *every* token of the text, so that the page can show all of it; where a position
was not read, the record has no explanation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from .. import view
from ..errors import NLAError

if TYPE_CHECKING:
    import pandas as pd

FORMAT, VERSION = "nnsight_nla.reading", 1
_NOTEBOOK = 400
"""Above this many tokens a notebook's frame is as high as it gets."""


@dataclass(frozen=True)
class TokenReading:
    """One token of the text, and what was read there."""

    position: int
    """Counted from 0 at the text's first real token, padding left out."""
    token: str
    """The token, decoded by itself."""
    part: str
    """``"prompt"``, ``"reply"`` (what the model wrote), a chat role, or ``"template"``: the chat
    template's own tokens and special ones."""
    explanation: str | None = None
    """What the verbalizer wrote; ``None`` where nothing was read, or where `error` says why not."""
    norm: float | None = None
    """The residual's L2 norm; ``None`` where nothing was read."""
    cosine: float | None = None
    """Between the residual and its reconstruction from the explanation alone, where it was made."""
    fve: float | None = None
    """Fraction of variance explained by that reconstruction, where a baseline is known."""
    grade: str | None = None
    """The trust label's grade, where there is one; see `trust.Trust`."""
    trust: str | None = None
    """The trust label in one line."""
    warnings: tuple[str, ...] = ()
    """What a careful reader should know."""
    error: str | None = None
    """Why this position can have no explanation."""

    @property
    def read(self) -> bool:
        """Whether the residual at this token was read."""
        return self.norm is not None


@dataclass(frozen=True)
class Reading:
    """A text, token by token, with what the residual at each is about."""

    records: tuple[TokenReading, ...]
    """One per token of the text, in order."""
    target: str
    """The model that read the text."""
    verbalizer: str
    """The model that wrote the explanations."""
    layer: int
    """The residual is the output of this block, counted from 0."""

    @property
    def tokens(self) -> tuple[str, ...]:
        """The text's tokens."""
        return tuple(record.token for record in self.records)

    @property
    def positions(self) -> tuple[int, ...]:
        """The positions that were read."""
        return tuple(record.position for record in self.records if record.read)

    @property
    def explanations(self) -> tuple[str | None, ...]:
        """One per token."""
        return tuple(record.explanation for record in self.records)

    @property
    def norms(self) -> tuple[float | None, ...]:
        """L2 norms of the residuals, one per token."""
        return tuple(record.norm for record in self.records)

    @property
    def scores(self) -> tuple[float | None, ...]:
        """Round-trip cosines, one per token; see `TokenReading.cosine`."""
        return tuple(record.cosine for record in self.records)

    @property
    def warnings(self) -> tuple[tuple[str, ...], ...]:
        """Sentences of caution, one tuple per token."""
        return tuple(record.warnings for record in self.records)

    def to_pandas(self) -> pd.DataFrame:
        """A table with a row per token, a column per field of `TokenReading`."""
        import pandas as pd

        rows = [{**asdict(record), "warnings": list(record.warnings)} for record in self.records]
        return pd.DataFrame(rows, columns=[field.name for field in fields(TokenReading)])

    def to_parquet(self, path: str | Path) -> None:
        """Write a table that `from_parquet` (and anything else that reads parquet) reads.

        Args:
            path: The file; what was there is replaced.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        about = {"target": self.target, "verbalizer": self.verbalizer, "layer": self.layer}
        note = json.dumps({"format": FORMAT, "version": VERSION, **about})
        columns = {
            field.name: [getattr(record, field.name) for record in self.records]
            for field in fields(TokenReading)
        }
        columns["warnings"] = [list(each) for each in columns["warnings"]]
        schema = pa.schema(
            [
                pa.field(
                    name, _arrow_type(name), nullable=name not in ("position", "token", "part")
                )
                for name in columns
            ],
            metadata={FORMAT: note},
        )
        pq.write_table(pa.table(columns, schema=schema), Path(path))

    @staticmethod
    def from_parquet(path: str | Path) -> Reading:
        """Read what `to_parquet` wrote.

        Args:
            path: The file.

        Raises:
            NLAError: The file holds no reading, or one of a later version of this package.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(Path(path))
        except pa.ArrowInvalid as error:
            raise NLAError(f"{path} is no parquet file: {error}") from error
        note = json.loads((table.schema.metadata or {}).get(FORMAT.encode(), b"{}"))
        if note.get("format") != FORMAT:
            raise NLAError(
                f"{path} holds no reading (columns: {', '.join(table.column_names)}). Write one "
                "with nla.read(model, prompt).to_parquet(path)."
            )
        if note["version"] != VERSION:
            raise NLAError(
                f"{path} is a reading of version {note['version']}, this package reads version "
                f"{VERSION}. Update it: pip install -U nnsight-nla."
            )
        rows: list[dict[str, Any]] = table.to_pylist()
        for row in rows:
            row["warnings"] = tuple(row["warnings"])
        records = tuple(TokenReading(**row) for row in rows)
        return Reading(records, note["target"], note["verbalizer"], note["layer"])

    def to_html(
        self,
        path: str | Path,
        *,
        beside: Reading | None = None,
        labels: tuple[str, str] = ("clean", "patched"),
        title: str = "",
    ) -> Path:
        """Write the page: one file that needs no network, for any browser.

        Args:
            path: The file; what was there is replaced.
            beside: A second reading, shown to the right of this one with their difference marked.
            labels: What the two are called, where there are two.
            title: Of the page; the beginning of the text where it is empty.

        Returns:
            Where the page was written.
        """
        written = Path(path)
        written.write_text(self._page(beside, labels, title), "utf-8")
        return written

    def beside(
        self, other: Reading, *, labels: tuple[str, str] = ("clean", "patched")
    ) -> SideBySide:
        """This reading and another on one page, for a notebook; see `to_html` for a file.

        Args:
            other: Shown to the right of this one.
            labels: What the two are called.
        """
        return SideBySide(self, other, labels)

    def _page(
        self,
        beside: Reading | None = None,
        labels: tuple[str, str] = ("clean", "patched"),
        title: str = "",
        *,
        table: bool = True,
    ) -> str:
        if beside is None:
            return view.reading([_side(self, "reading")], title=title, table=table)
        sides = [_side(self, labels[0]), _side(beside, labels[1])]
        return view.reading(sides, title=title, table=table)

    def _repr_html_(self) -> str:
        return view.frame(self._page(table=False), height=_height(len(self)))

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, key: int) -> TokenReading: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[TokenReading, ...]: ...
    def __getitem__(self, key: int | slice) -> TokenReading | tuple[TokenReading, ...]:
        return self.records[key]

    def __iter__(self) -> Iterator[TokenReading]:
        return iter(self.records)

    def __repr__(self) -> str:
        read = len(self.positions)
        return (
            f"<Reading of {len(self)} tokens, {read} explained, {self.target} block {self.layer}>"
        )

    def __str__(self) -> str:
        return "\n".join(_line(record) for record in self.records if record.read)


@dataclass(frozen=True)
class SideBySide:
    """Two readings as a notebook shows them: one page, their difference marked."""

    left: Reading
    """Such as the clean run's."""
    right: Reading
    """Such as the patched run's."""
    labels: tuple[str, str]
    """What the two are called."""

    def _repr_html_(self) -> str:
        sides = [_side(self.left, self.labels[0]), _side(self.right, self.labels[1])]
        page = view.reading(sides, table=False)
        return view.frame(page, height=160 + _height(2 * len(self.left)))


def _side(reading: Reading, label: str) -> dict[str, Any]:
    """A reading as the view takes it."""
    about = {"label": label, "target": reading.target, "verbalizer": reading.verbalizer}
    return {**about, "layer": reading.layer, "records": list(map(asdict, reading.records))}


def _height(tokens: int) -> int:
    """Of a notebook's frame, in CSS pixels."""
    return 380 + int(min(1.0, tokens / _NOTEBOOK) * 320)


def _line(record: TokenReading) -> str:
    said = record.explanation
    said = f"[{record.error}]" if said is None else " / ".join(filter(None, said.splitlines()))
    return f"{record.position:>4} {record.token!r}: {said}"


def _arrow_type(name: str) -> Any:
    import pyarrow as pa

    found = {
        "position": pa.int64(),
        "norm": pa.float64(),
        "cosine": pa.float64(),
        "fve": pa.float64(),
        "warnings": pa.list_(pa.string()),
    }
    return found.get(name, pa.string())
