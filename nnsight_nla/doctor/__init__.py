"""Try each setting of a checkpoint against its neighbours; report what the evidence supports."""

from .examine import diagnose
from .report import Diagnosis, Finding, Variant

__all__ = ["Diagnosis", "Finding", "Variant", "diagnose"]
