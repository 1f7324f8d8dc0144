"""``nnsight-nla serve``: start a vLLM server that verbalizes for many clients."""

from __future__ import annotations

import os
import shlex
import socket
from typing import Annotated

from rich.text import Text
from typer import Argument, Option

from ..errors import NLAError
from . import options
from .app import command, err, open_av, spinner


@command()
def serve(
    av: options.AvArgument,
    more: Annotated[
        list[str] | None,
        Argument(
            metavar="OPTIONS...",
            help="Options of vllm serve, as they are, after two dashes.",
        ),
    ] = None,
    host: Annotated[
        str, Option(metavar="NAME", help="The address to listen on; 0.0.0.0 for other machines.")
    ] = "127.0.0.1",
    port: Annotated[int, Option(min=1, metavar="N", help="The port to listen on.")] = 8000,
    dtype: options.Dtype = "auto",
    dry_run: Annotated[
        bool, Option("--dry-run", help="Print the command of vLLM, and do not run it.")
    ] = False,
) -> None:
    """Serve a verbalizer with vLLM, for NLA(url=...) on any machine.

    The server has vLLM's own routes as well. Ctrl-C stops it. If VLLM_API_KEY is set, clients need
    the same key.
    """
    from ..verbalize.vllm.launch import check_installed, serve_command

    with spinner("reading the verbalizer"):
        if not dry_run:
            _check_free(host, port)  # vLLM would say so after it has loaded everything.
            check_installed()
        verbalizer, load = open_av(av, dtype)
        words = serve_command(verbalizer, load, host=host, port=port, more=more or [])
    if dry_run:
        print(shlex.join(words))  # noqa: T201
        return
    err.print(Text(f"NLA(url='http://{host}:{port}', engine='vllm')", "green"))
    os.execv(words[0], words)


def _check_free(host: str, port: int) -> None:
    """Check that a server may listen there.

    Raises:
        NLAError: Another program does, or there is no such address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise NLAError(
                f"Cannot listen on {host}, port {port}: {error.strerror}. Choose another port, "
                f"such as --port {port + 1}, or another --host."
            ) from error
