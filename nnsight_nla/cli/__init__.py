"""The command line: ``nnsight-nla COMMAND``, one module per group of commands.

Every command takes ``--json`` and then prints one JSON document, and nothing else, on standard
output. Exit codes: 0 success, 1 an input cannot be used (the message says what to type), 2 the
command line is wrong, 130 interrupted.
"""

from __future__ import annotations

import sys

from rich.text import Text

from ..errors import NLAError
from .app import app, err, in_flags

# Importing a group of commands adds it to the application; `--help` lists them in this order.
# isort: off
from . import inspect
from . import doctor
from . import data
from . import training
# isort: on

__all__ = ["app", "data", "doctor", "inspect", "main", "training"]


def main() -> None:
    """Run the command line; print a user's mistake as one message, without a traceback."""
    try:
        app()
    except NLAError as error:
        command = next(each for each in sys.argv[1:] if not each.startswith("-"))
        message = in_flags(str(error), command)
        err.print(Text(f"{type(error).__name__}: {message}", style="red"))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
