"""The client's side of a remote run: what an NLA and its handles become when they are pickled.

Who pickles decides. A *remote request* (nnsight's own pickler, recognised by its ``dispatch_table``)
gets the stand-ins of `wire`, always, also where the server has this package. Everything else (a
worker process, a file) gets a plain ``__reduce__``: an `NLA` that is rebuilt from its arguments, an
`Explanation` that carries its texts. What comes back from a server is remade by `receive_capture`
and `receive_handle`, which never raise on a value: a result is not lost because one option was bad.
"""

from __future__ import annotations

import math
import types
import weakref
from collections import ChainMap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import nnsight
import numpy as np
from nnsight.intervention.serialization import CustomCloudPickler
from torch import Tensor

from . import wire
from .capture import Capture, Reply
from .errors import NLAError, VerbalizationError
from .explanation import Explanation
from .hosts import Positions
from .injection import Injection
from .sampling import Sampling

if TYPE_CHECKING:
    from .nla import NLA

NLAS: weakref.WeakValueDictionary[str, NLA] = weakref.WeakValueDictionary()
"""Every NLA of this process by its uid."""
_CAPTURES: weakref.WeakValueDictionary[str, Capture] = weakref.WeakValueDictionary()
_BY_VALUE = ("nnsight_nla.wire", "nnsight_nla.injection", "nnsight_nla.sampling")


class Unavailable:
    """The queue of handles whose NLA is not in this process."""

    def __init__(self, why: str) -> None:
        self.why = why

    def add(self, handle: Explanation) -> None:
        """Nothing waits here: there is nobody to wait for."""

    def resolve(self, first: Any, *, implicit: bool = False) -> None:
        """Say why there is no text.

        Raises:
            VerbalizationError: Always.
        """
        raise VerbalizationError(self.why)

    def receipt(self, capture: Capture) -> Any:
        """Say why there is no receipt.

        Raises:
            VerbalizationError: Always.
        """
        raise VerbalizationError(self.why)
