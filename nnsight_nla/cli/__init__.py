"""The command line: ``nnsight-nla COMMAND``, a module for each group of commands.

Every command takes ``--json`` and then prints one JSON document on standard output, nothing else.
Exit codes: 0 done, 1 something you passed cannot be used (the message says what to type), 2 the
command line itself is wrong, 130 interrupted.
"""

from __future__ import annotations

import sys

from rich.text import Text

from ..errors import NLAError
from .app import app, err

# A group of commands adds itself to the application; `--help` lists them in this order.
# isort: off
from . import inspect
from . import doctor
from . import data
from . import training
# isort: on

__all__ = ["app", "data", "doctor", "inspect", "main", "training"]


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error, not a stack trace."""
    try:
        app()
    except NLAError as error:
        err.print(Text(f"{type(error).__name__}: {error}", style="red"))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
