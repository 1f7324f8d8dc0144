"""Read a text: one forward pass of the target, and an explanation for every token."""

from .records import Depths, Reading, SideBySide, TokenReading

__all__ = ["Depths", "Reading", "SideBySide", "TokenReading"]
