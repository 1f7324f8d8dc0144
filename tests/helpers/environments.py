"""Virtual environments for tests that need what the project's own environment cannot have.

An environment is in the user's cache folder, named by a hash of the requirement files that it is
made from, so a change to those makes a new one. One file in it, `nnsight-nla-NAME.txt`, says whose
it is and how far it got: `unfinished` from the first moment, the hash at the very end. A folder
without that file is never touched. Imports only the standard library, to run in any Python::

    NDIF = Environment("ndif", [HERE / "requirements.txt"])
    with NDIF.alone():
        NDIF.make(lambda: NDIF.pip("install", "ray"))
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_UNFINISHED = "unfinished"


class InstallError(Exception):
    """The environment cannot be made; the message says what to do."""


class Environment:
    """One of them; nothing is made yet."""

    def __init__(self, name: str, requirements: list[Path]) -> None:
        """Keep its name and files.

        Args:
            name: Of the folder of tests, with an `install.py` that makes it.
            requirements: The files that it is made from.
        """
        self.requirements = requirements
        self.command = f"python -m tests.{name}.install"
        self._name, self._variable = name, f"NNSIGHT_NLA_{name.upper()}_VENV"

    @property
    def folder(self) -> Path:
        """Where it is: the folder that `$NNSIGHT_NLA_NAME_VENV` names, or one in the cache."""
        if chosen := os.environ.get(self._variable):
            return Path(chosen).expanduser().absolute()
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(cache) / "nnsight_nla" / f"{self._name}-{self._key}"

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def complete(self) -> bool:
        """Whether it is made, of the requirement files as they are and for this Python."""
        return self._progress == self._key

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait for other processes that make it."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with self.folder.with_name(f"{self.folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def make(self, fill: Callable[[], None]) -> None:
        """Make it, if it is not complete; call it inside `alone`.

        Args:
            fill: Installs packages, by `pip`.

        Raises:
            InstallError: The folder holds something else.
        """
        if self.complete:
            return
        if self.folder.exists() and any(self.folder.iterdir()):
            if self._progress is None:
                raise InstallError(
                    f"{self.folder} holds something that this did not make: point {self._variable} "
                    "at an empty or new folder."
                )
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._mark.write_text(_UNFINISHED)
        venv.create(self.folder, with_pip=True)
        fill()
        self._mark.write_text(self._key)

    def pip(self, *command: str, without: tuple[str, ...] = ()) -> None:
        """Run its pip; what it prints goes to standard error.

        Args:
            command: The arguments.
            without: Variables of the environment that it does not get.

        Raises:
            subprocess.CalledProcessError: It failed; it wrote why.
        """
        own = {name: value for name, value in os.environ.items() if name not in without}
        words = [str(self.python), "-m", "pip", *command]
        subprocess.run(words, check=True, env=own, stdout=sys.stderr)

    @property
    def _key(self) -> str:
        version = f"python {sys.version_info.major}.{sys.version_info.minor}\n"
        texts = [path.read_text() for path in self.requirements]
        return hashlib.sha256("".join([version, *texts]).encode()).hexdigest()[:12]

    @property
    def _mark(self) -> Path:
        return self.folder / f"nnsight-nla-{self._name}.txt"

    @property
    def _progress(self) -> str | None:
        return self._mark.read_text().strip() if self._mark.is_file() else None


def main(install: Callable[[], Path]) -> None:
    """Install, and print the folder as the last line."""
    try:
        sys.stdout.write(f"{install()}\n")
    except InstallError as error:
        sys.exit(str(error))
