"""Import what cannot be imported after nnsight.

nnsight mounts ``.save`` on `object`, and anyio's sets of typed attributes refuse to be defined with
it. nnsight imports anyio first, but anyio 4.16 imports most of itself at its first use: a server in
this process (FastAPI's, so vLLM's) then answers some requests with "Attribute 'save' is missing its
type annotation".
"""

from __future__ import annotations

from contextlib import suppress

with suppress(ImportError):
    from anyio.abc import SocketAttribute  # noqa: F401
    from anyio.streams.file import FileStreamAttribute  # noqa: F401
    from anyio.streams.tls import TLSAttribute  # noqa: F401
