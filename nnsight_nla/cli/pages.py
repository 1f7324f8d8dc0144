"""Write a reading as a page, say where it is, and open it in a browser."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from ..errors import NLAError
from .app import err

if TYPE_CHECKING:
    from ..reading.records import Reading


def check_folder(html: Path | None) -> None:
    """Refuse a page in a folder that is not there, before anything runs.

    Raises:
        NLAError: There is no such folder.
    """
    if html is not None and not html.parent.is_dir():
        raise NLAError(f"--html {html}: there is no folder {html.parent}.")


def open_page(page: Path) -> None:
    """Open a page in the user's browser; if there is none, say so."""
    open_address(page.resolve().as_uri(), str(page))


def open_address(address: str, name: str | None = None) -> None:
    """Open an address in the user's browser; if there is none, say what to open, by its name."""
    if not webbrowser.open(address):
        said = f"No browser was found. Open {name or address} in one."
        err.print(Text(said, "yellow"), soft_wrap=True)


def try_to_write(reading: Reading, page: Path) -> str | None:
    """Write a page that the user did not ask for.

    Returns:
        Why it could not be written; ``None`` if it was.
    """
    try:
        reading.to_html(page)
    except NLAError as error:
        return str(error)
    return None
