"""Live pages: click a token, and its explanation streams in.

* `Session` takes messages and sends messages; it knows no transport.
* ``nnsight-nla view`` serves it to a browser (`server`).
* `view(model, nla, prompt)` shows it in a notebook (`widget`).
"""

from .session import Client, Session

__all__ = ["Client", "Session"]
