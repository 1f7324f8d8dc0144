"""The NDIF fixtures, for the figures of remote runs."""

from tests.ndif.conftest import by_path, ndif, server  # noqa: F401
