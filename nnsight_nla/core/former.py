"""Names that changed: the old one works, and warns.

>>> import warnings
>>> warnings.simplefilter("ignore")
>>> record = FormerKeys({"injection_cosine": 1.0}, {"cosine": "injection_cosine"})
>>> record["cosine"]
1.0
>>> list(record)
['injection_cosine']
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def warn(old: str, new: str, *, stacklevel: int = 3) -> None:
    """Warn that `old` is called `new` now."""
    warnings.warn(f"{old} is called {new} now.", DeprecationWarning, stacklevel=stacklevel)


class Former:
    """An attribute of a record that has another name now: ``cosine = Former("new_name")``."""

    def __init__(self, new: str) -> None:
        """Store the new name."""
        self.new, self.old = new, ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.old = name

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        if instance is None:
            return self
        warn(f"{type(instance).__name__}.{self.old}", self.new)
        return getattr(instance, self.new)


class HasFormer:
    """A record with `Former` attributes, which may have been pickled under its old names."""

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Restore a pickle of today or of earlier."""
        for name, value in state.items():
            former = getattr(type(self), name, None)
            self.__dict__[former.new if isinstance(former, Former) else name] = value


class FormerKeys(dict[str, Any]):
    """A dictionary in which some keys have other names now."""

    def __init__(self, items: Mapping[str, Any], names: Mapping[str, str]) -> None:
        """Copy `items`; `names` maps old names to new ones."""
        super().__init__(items)
        self._names = names

    def __missing__(self, key: str) -> Any:
        if key not in self._names:
            raise KeyError(key)
        warn(f"{key!r}", f"{self._names[key]!r}")
        return self[self._names[key]]

    def __reduce__(self) -> tuple[Any, ...]:
        return (FormerKeys, (dict(self), dict(self._names)))


def table(
    records: Sequence[Mapping[str, Any]],
    names: Mapping[str, str],
    columns: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Return a table whose columns can be taken by their old names: ``table["cosine"]``.

    What is derived from it, and a copy of it, is an ordinary `pandas.DataFrame`.

    Args:
        records: The rows.
        names: Old names to new ones.
        columns: The columns; by default the keys of the records.
    """
    return _frame(tuple(names.items()))(list(map(dict, records)), columns=columns)


@functools.cache
def _frame(names: tuple[tuple[str, str], ...]) -> Any:
    """Return the class of these tables; pandas is imported when the first is made."""
    import pandas as pd

    former = dict(names)

    class Frame(pd.DataFrame):
        @property
        def _constructor(self) -> Any:
            return pd.DataFrame

        def __getitem__(self, key: Any) -> Any:
            if isinstance(key, str):
                return super().__getitem__(self._today(key))
            if isinstance(key, list):
                return super().__getitem__(list(map(self._today, key)))
            return super().__getitem__(key)

        def __reduce_ex__(self, protocol: Any) -> Any:
            return (_plain, (pd.DataFrame(self),))

        def _today(self, name: Any) -> Any:
            new = former.get(name) if isinstance(name, str) else None
            if new is None or name in self.columns:
                return name
            warn(f"The column {name!r}", f"{new!r}", stacklevel=4)
            return new

    def attribute(old: str) -> property:
        def take(self: Any) -> Any:
            if old not in self.columns and former[old] not in self.columns:
                raise AttributeError(old)
            return pd.DataFrame.__getitem__(self, self._today(old))

        return property(take)

    for old in former:
        setattr(Frame, old, attribute(old))
    Frame.__name__ = Frame.__qualname__ = "DataFrame"
    return Frame


def _plain(frame: Any) -> Any:
    """Return what a pickled table is: an ordinary one."""
    return frame
