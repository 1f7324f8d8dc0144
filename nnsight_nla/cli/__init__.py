"""The command line: ``nnsight-nla COMMAND``, one module per group of commands.

With ``--json``, every command prints one JSON document, and nothing else, to standard output.
Exit codes: 0 for success, 1 for an input that cannot be used (the message says what to type), 2 for
a wrong command line, 130 for an interruption.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

from rich.text import Text

from ..errors import NLAError, NLAWarning
from .app import app, command_of, err, in_flags

# Importing a group of commands adds it to the application; `--help` lists them in this order.
# isort: off
from . import demo
from . import explain
from . import ask
from . import info
from . import doctor
from . import data
from . import view
from . import serve
from . import training
from . import reinforcement
from . import calibration
# isort: on

__all__ = [
    "app", "ask", "calibration", "data", "demo", "doctor", "explain", "info", "main",
    "reinforcement", "serve", "training", "view",
]  # fmt: skip


def main() -> None:
    """Run the command line; print a user error as one message, without a traceback."""
    command = command_of(sys.argv[1:])
    usual = warnings.showwarning
    said: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
        if issubclass(category, NLAWarning):
            line = f"Warning: {in_flags(str(message), command)}"
            if line not in said:
                said.add(line)
                err.print(Text(line, style="yellow"))
        else:
            usual(message, category, *where)

    warnings.showwarning = show
    try:
        app()
    except NLAError as error:
        message = in_flags(str(error), command)
        err.print(Text(f"{type(error).__name__}: {message}", style="red"))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
