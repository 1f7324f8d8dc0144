"""Tensor maths and plain records; no model is used here."""
