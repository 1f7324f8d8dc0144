"""Import what cannot be imported while ``.save`` is on `object`, where nnsight mounts it.

anyio's sets of typed attributes refuse to be defined with it. nnsight imports anyio first, but
anyio 4.16 imports most of itself at its first use: a server in this process (FastAPI's, so
vLLM's) then answers some requests with "Attribute 'save' is missing its type annotation". If
nnsight was imported before this package, its ``.save`` is taken off for the time of the import.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress


@contextmanager
def _without_save() -> Generator[None, None, None]:
    save = vars(object).get("save") if "nnsight" in sys.modules else None
    if save is None:
        yield
        return
    from nnsight._c import mount, unmount

    unmount("save")
    try:
        yield
    finally:
        mount(save, "save")


with _without_save(), suppress(ImportError):
    from anyio.abc import SocketAttribute  # noqa: F401
    from anyio.streams.file import FileStreamAttribute  # noqa: F401
    from anyio.streams.tls import TLSAttribute  # noqa: F401
