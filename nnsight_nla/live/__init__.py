"""Live pages: click a token, and its explanation streams in.

* ``nnsight-nla view`` serves one to a browser (`server`).
* `view(model, nla, prompt)` shows one in a notebook (`widget`).
* `Session` takes messages and sends messages; it knows no transport.
"""

from .session import Client, Session
from .widget import view

__all__ = ["Client", "Session", "view"]
