"""A `Reading`: every token of a text with the explanation of its residual; plain records, no model.

Show it as a page, a table or a file::

    reading = nla.read(model, "The Eiffel Tower is in the city of")
    reading                              # in a notebook: the page; on a code host, a table
    reading[-1].explanation              # one token's
    reading.to_pandas()                  # a row per token
    reading.to_html("paris.html")        # one file, to send or publish
    reading.beside(patched)              # two readings on one page, their difference marked

It has a record for *every* token of the text, so that the page can show all of it; a position that
was not read has a record without an explanation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from .. import view
from ..core import former
from ..core.former import Former, HasFormer
from ..errors import NLAError
from ..storage.atomic import atomic_file
from . import parquet

if TYPE_CHECKING:
    import pandas as pd

_NOTEBOOK = 400
"""From this many tokens on, a notebook's frame has its greatest height."""
_LINES, _WIDTH = 30, 120
"""The most lines of a reading as text in a notebook's output, and their length."""


@dataclass(frozen=True)
class TokenReading(HasFormer):
    """One token of a text and the explanation of its residual."""

    position: int
    """Counted from 0 at the text's first real token, padding left out."""
    token: str
    """The token, decoded by itself."""
    part: str
    """``"prompt"``, ``"reply"`` (what the model wrote), a chat role, or ``"template"``: the chat
    template's own tokens and special ones."""
    explanation: str | None = None
    """The verbalizer's text; ``None`` where nothing was read, or where `error` says why not."""
    norm: float | None = None
    """The residual's L2 norm; ``None`` where nothing was read."""
    reconstruction_cosine: float | None = None
    """Between the residual and its reconstruction from the explanation alone, if there is one."""
    fve: float | None = None
    """Fraction of variance explained by that reconstruction, where a baseline is known."""
    grade: str | None = None
    """The trust label's grade, where there is one; see `trust.Trust`."""
    trust: str | None = None
    """The trust label's first line, as text; a handle's ``trust`` is the `Trust` itself."""
    warnings: tuple[str, ...] = ()
    """Warnings on this explanation."""
    error: str | None = None
    """Why this position cannot have an explanation."""
    grounded: str | None = None
    """What the text shows of the explanation, in one line; ``None`` if nothing can be checked."""
    whole: str | None = None
    """The character that this token begins, where several tokens are one (most emoji); ``""`` for
    the others of the character, ``None`` for a token that is text by itself."""
    next_tokens: tuple[str, ...] = ()
    """The target's likeliest next tokens, the likeliest first; none where they were not read."""
    next_probabilities: tuple[float, ...] = ()
    """Their probabilities."""
    against: str | None = None
    """What the grade was measured against, in words."""
    denominator: str | None = None
    """The denominator of `fve`, in words."""
    cosine = Former("reconstruction_cosine")

    @property
    def read(self) -> bool:
        """Whether the residual at this token was read."""
        return self.norm is not None


@dataclass(frozen=True)
class Reading:
    """A text, token by token, with the explanation of each residual."""

    records: tuple[TokenReading, ...]
    """One per token of the text, in order."""
    target: str
    """The model that read the text."""
    verbalizer: str
    """The model that wrote the explanations."""
    layer: int
    """The residual is the output of this block, counted from 0."""
    receipt: tuple[tuple[str, str], ...] = field(default=(), compare=False)
    """How the explanations were made, as pairs of a name and a few words."""
    code: str | None = field(default=None, compare=False)
    """The call that gives this reading again, with ``model`` and ``nla`` as they were."""

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
        """The explanations, one per token."""
        return tuple(record.explanation for record in self.records)

    @property
    def norms(self) -> tuple[float | None, ...]:
        """L2 norms of the residuals, one per token."""
        return tuple(record.norm for record in self.records)

    @property
    def scores(self) -> tuple[float | None, ...]:
        """Round-trip cosines, one per token; see `TokenReading.reconstruction_cosine`."""
        return tuple(record.reconstruction_cosine for record in self.records)

    @property
    def warnings(self) -> tuple[tuple[str, ...], ...]:
        """Warnings, one tuple per token."""
        return tuple(record.warnings for record in self.records)

    def to_pandas(self) -> pd.DataFrame:
        """Return a table with a row per token and a column per field of `TokenReading`."""
        lists = ("warnings", "next_tokens", "next_probabilities")
        rows = [
            {**asdict(record), **{name: list(getattr(record, name)) for name in lists}}
            for record in self.records
        ]
        names = [field.name for field in fields(TokenReading)]
        return former.table(rows, {"cosine": "reconstruction_cosine"}, names)

    def to_parquet(self, path: str | Path) -> None:
        """Write a table for `from_parquet` or any other reader of parquet.

        Args:
            path: The file; a file that is there is replaced when the new one is complete.

        Raises:
            NLAError: The disk is full, or the file cannot be written.
        """
        header = {name: value for name, value in vars(self).items() if name != "records"}
        parquet.write(Path(path), [asdict(record) for record in self.records], header)

    @staticmethod
    def from_parquet(path: str | Path) -> Reading:
        """Read a file that `to_parquet` wrote.

        Args:
            path: The file.

        Raises:
            NLAError: The file does not hold a reading, or one of another version.
        """
        rows, header = parquet.read(Path(path))
        for row in rows:
            for name in ("warnings", "next_tokens", "next_probabilities"):
                row[name] = tuple(row[name])
        return Reading(tuple(TokenReading(**row) for row in rows), **header)

    def to_html(
        self,
        path: str | Path,
        *,
        beside: Reading | None = None,
        labels: tuple[str, str] = ("clean", "patched"),
        title: str = "",
    ) -> Path:
        """Write the page: one file for any browser, which needs no network.

        Args:
            path: The file; a file that is there is replaced when the new one is complete.
            beside: A second reading, shown to the right of this one with their difference marked.
            labels: The names of the two, if there are two.
            title: The page's title; by default the beginning of the text.

        Returns:
            The path of the page.

        Raises:
            NLAError: The disk is full, or the file cannot be written.
        """
        both = [] if beside is None else [(self, labels[0]), (beside, labels[1])]
        page = view.reading(_named(*both or [(self, "reading")]), title=title)
        with atomic_file(Path(path)) as file:
            file.write(page.encode())
        return Path(path)

    def beside(
        self, other: Reading, *, labels: tuple[str, str] = ("clean", "patched")
    ) -> SideBySide:
        """Show this reading and another on one page in a notebook; see `to_html` for a file.

        Args:
            other: Shown to the right of this one.
            labels: The names of the two.
        """
        return SideBySide(self, other, labels)

    @staticmethod
    def by_depth(readings: Sequence[Reading]) -> Depths:
        """Show readings of one text at several layers on one page, a column for each layer.

        Args:
            readings: Each by the NLA of another layer, or by one with ``read(layer=...)``.

        Raises:
            NLAError: They are fewer than two, or of different texts, or two are of one layer.
        """
        found = sorted(readings, key=lambda reading: reading.layer)
        layers = [reading.layer for reading in found]
        if len(found) < 2 or len(set(layers)) < len(layers):
            raise NLAError(f"by_depth: got layers {layers}; expected two or more, each once.")
        for reading in found[1:]:
            if reading.tokens != found[0].tokens:
                raise NLAError(
                    f"by_depth: the readings of layers {layers[0]} and {reading.layer} have other "
                    f"tokens ({len(found[0])} and {len(reading)}). Read one text with each NLA."
                )
        return Depths(tuple(found))

    def _repr_html_(self) -> str:
        """Return the page in a frame, and a plain table for code hosts, which take frames out."""
        return _shown((self, "reading"), height=_height(len(self)))

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        """Return what a notebook shows and stores; a console shows the beginning as text."""
        lines = str(self).splitlines()
        left = [f"… {len(lines) - _LINES} more: print(reading)"] if len(lines) > _LINES else []
        plain = "\n".join([repr(self), *map(_cut, lines[:_LINES]), *left])
        return {"text/html": self._repr_html_(), "text/plain": plain}

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
    """Two readings on one page of a notebook, their difference marked."""

    left: Reading
    """The first reading, such as that of the clean run."""
    right: Reading
    """The second reading, such as that of the patched run."""
    labels: tuple[str, str]
    """The names of the two."""

    def _repr_html_(self) -> str:
        sides = zip((self.left, self.right), self.labels, strict=True)
        return _shown(*sides, height=260 + _height(2 * len(self.left)))


@dataclass(frozen=True)
class Depths:
    """Readings of one text at several layers, on one page with a column for each layer."""

    readings: tuple[Reading, ...]
    """One per layer, the lowest first."""

    def to_pandas(self) -> pd.DataFrame:
        """Return a table with a row per token and a column of explanations per layer."""
        import pandas as pd

        columns = {reading.layer: list(reading.explanations) for reading in self.readings}
        return pd.DataFrame({"token": list(self.readings[0].tokens), **columns})

    def to_html(self, path: str | Path, *, title: str = "") -> Path:
        """Write the page: one file for any browser, which needs no network.

        Args:
            path: The file; a file that is there is replaced when the new one is complete.
            title: The page's title; by default the beginning of the text.

        Returns:
            The path of the page.

        Raises:
            NLAError: The disk is full, or the file cannot be written.
        """
        page = view.reading(_named(*self._sides()), title=title, depth=True)
        with atomic_file(Path(path)) as file:
            file.write(page.encode())
        return Path(path)

    def _sides(self) -> list[tuple[Reading, str]]:
        return [(reading, f"block {reading.layer}") for reading in self.readings]

    def _repr_html_(self) -> str:
        return _shown(*self._sides(), height=_height(len(self.readings[0])) + 120, depth=True)


def _shown(*sides: tuple[Reading, str], height: int, depth: bool = False) -> str:
    """Return what a notebook shows: the page in a frame, and the same as a plain table."""
    named = _named(*sides)
    page = view.reading(named, table=False, depth=depth)
    return view.frame(page, height=height) + view.fallback(named, depth=depth)


def _named(*sides: tuple[Reading, str]) -> list[dict[str, Any]]:
    """Return readings as plain data, each with its label."""
    return [
        {
            **vars(reading),
            "label": label,
            "records": [_plain(record) for record in reading.records],
        }
        for reading, label in sides
    ]


def _plain(record: TokenReading) -> dict[str, Any]:
    following = list(zip(record.next_tokens, record.next_probabilities, strict=True))
    return {**asdict(record), "read": record.read, "next": following}


def _height(tokens: int) -> int:
    """Return the height of a notebook's frame, in CSS pixels."""
    return 420 + int(min(1.0, tokens / _NOTEBOOK) * 280)


def _line(record: TokenReading) -> str:
    text = record.explanation
    text = f"[{record.error}]" if text is None else " / ".join(filter(None, text.splitlines()))
    return f"{record.position:>4} {record.token!r}: {text}"


def _cut(line: str) -> str:
    return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 1]}…"
