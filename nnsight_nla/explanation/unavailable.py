"""The queue of handles without a model: they keep what they have, and say why there is no more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import VerbalizationError

if TYPE_CHECKING:
    from .handle import Explanation
    from .records import Capture, Owner, Receipt


class Unavailable:
    """The queue of handles whose NLA is not in this process; they keep vectors and texts."""

    def __init__(
        self, why: str, receipt: Receipt | None = None, owner: Owner | None = None
    ) -> None:
        """Store the reason, and the receipt if there is one."""
        self.why, self.owner = why, owner
        self._receipt = receipt

    def add(self, handle: Explanation) -> None:
        """Ignore the handle: nothing can be verbalized."""

    def resolve(self, first: Any, *, implicit: bool = False) -> None:  # noqa: ARG002
        """Raise the reason why there is no text.

        Raises:
            VerbalizationError: Always.
        """
        raise VerbalizationError(self.why)

    def receipt(self, capture: Capture) -> Receipt:  # noqa: ARG002
        """Return the receipt that was pickled with the texts.

        Raises:
            VerbalizationError: There is no receipt.
        """
        if self._receipt is None:
            raise VerbalizationError(self.why)
        return self._receipt
