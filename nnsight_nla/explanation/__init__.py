"""`Explanation`: a handle on text that may not have been generated yet, and its records."""

from .handle import Explanation
from .records import Capture, Receipt, Reply

__all__ = ["Capture", "Explanation", "Receipt", "Reply"]
