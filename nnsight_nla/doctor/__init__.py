"""Compare each declared setting of a checkpoint with alternatives on a few activations."""

from .examine import diagnose
from .report import Diagnosis, Finding, Variant

__all__ = ["Diagnosis", "Finding", "Variant", "diagnose"]
