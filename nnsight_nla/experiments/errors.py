"""What can go wrong in an experiment, under the package's one root."""

from __future__ import annotations

from typing import Any

from ..errors import NLAError


class ExperimentError(NLAError):
    """An experiment cannot be run as it was asked for, or it stopped on the way."""

    partial: Any = None
    """The `Sweep` with the cells that were done, where it stopped on the way."""
