"""Read a text: one forward pass of the target, and an explanation for every token."""

from .records import Reading, SideBySide, TokenReading

__all__ = ["Reading", "SideBySide", "TokenReading"]
